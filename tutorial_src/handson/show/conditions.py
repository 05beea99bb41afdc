"""Two runs may be compared only when they were made under the same conditions: preset, device, hardware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol


class RunLike(Protocol):
    """The part of handson.run.Run that tables and plots read."""

    ranks: int
    preset: str
    way: str
    command: str
    provenance: dict[str, Any]

    def rows(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        """Return the rows of one kind."""


Runs = Mapping[str, RunLike]


def conditions(run: RunLike) -> tuple[str, str, str]:
    """Return what must be equal before a ratio of two runs means anything."""
    facts = run.provenance
    chip = facts.get("accelerator") if facts.get("device") == "cuda" else facts.get("cpu")
    return run.preset, str(facts.get("device")), str(chip)


def hardware(run: RunLike) -> str:
    """Return the hardware that a run used, in a few words."""
    facts = run.provenance
    if facts.get("device") == "cuda":
        return f"{facts.get('accelerators')} × {facts.get('accelerator')}"
    return f"CPU, {facts.get('cores')} cores"


def machine(run: RunLike) -> tuple[str, int]:
    """Return what tells one host from another: its processor and how many cores it has."""
    return run.provenance.get("cpu", ""), run.provenance.get("cores", 0)


def crowded(run: RunLike) -> bool:
    """Whether the ranks took turns on fewer CPU cores, so that their times say nothing about speed."""
    facts = run.provenance
    return facts.get("device") == "cpu" and run.ranks > (facts.get("cores") or run.ranks)


def by_conditions(runs: Runs) -> list[tuple[str, dict[str, RunLike]]]:
    """Return the runs in groups that may share an axis, each with its conditions in words."""
    groups: dict[tuple[str, str, str], dict[str, RunLike]] = {}
    for label, run in runs.items():
        groups.setdefault(conditions(run), {})[label] = run
    named = []
    for (preset, device, chip), group in groups.items():
        first = next(iter(group.values()))
        place = chip if device == "cuda" else hardware(first)
        hosts = len({machine(run) for run in group.values()})
        named.append((f"{place}, {preset} preset" + f", runs of {hosts} hosts" * (hosts > 1), group))
    return named


def last(run: RunLike, kind: str, field: str, rank: int = 0) -> Any:
    """Return a field of the last row of a kind, or None when the run has no such row."""
    rows = run.rows(kind, rank=rank)
    return rows[-1].get(field) if rows else None


def per_rank(run: RunLike, kind: str, field: str) -> dict[int, Any]:
    """Return {rank: field of its last row of that kind}, for the ranks that recorded it."""
    found = {row["rank"]: row[field] for row in run.rows(kind) if row.get(field) is not None}
    return dict(sorted(found.items()))


def largest(run: RunLike, kind: str, field: str) -> Any:
    """Return the largest value over the ranks, or None: the fullest rank decides what fits."""
    return max(per_rank(run, kind, field).values(), default=None)


def communication(run: RunLike) -> Iterator[dict[str, Any]]:
    """Yield one row per rank, collective and group: a rank records them one by one, or as a list in `rows`."""
    for row in run.rows("communication"):
        for part in row.get("rows", [row]):
            yield {"rank": row["rank"], **part}
