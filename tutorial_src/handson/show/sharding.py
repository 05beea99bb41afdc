"""Reads a "parameter" row: who holds which block, and how the site writes that down.

The notation, one on every page: `W[I_row, J_col]` is a matrix W whose dimension I is split over the mesh axis
"row" and J over "col"; a dimension without an axis is whole; `I_row·col` is split over both, row first.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import combinations, permutations
from math import prod
from typing import Any

from handson.show.conditions import RunLike
from handson.show.style import listed

Block = tuple[tuple[int, int], ...]
# The mesh axes a rank has a coordinate on. "tensor" only numbers what 2D, 2.5D and 3D split further.
COARSE = ("data", "pipeline", "sequence")
FINE = ("dep", "row", "col", "input", "weight", "output")
NOT_AXES = {"rank", "kind", "world_size", "mode"}


@dataclass(frozen=True)
class Split:
    """How one array is cut: per dimension the mesh axes it is split over; the axes it is copied over; its place.

    `only` holds the axes on which just one index has the array at all, such as its pipeline stage.
    """

    letter: str
    axes: tuple[tuple[str, ...], ...]
    copied: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    dims: str = "IJKLMN"

    def _written(self, before: str, join: str, after: str, letter: str) -> str:
        dims = []
        for name, names in zip(self.dims, self.axes, strict=False):
            dims.append(name + (before + join.join(names) + after if names else ""))
        return f"{letter}[{', '.join(dims)}]"

    def __str__(self) -> str:
        return self._written("_", "·", "", self.letter)

    @property
    def html(self) -> str:
        """The notation with subscripts."""
        return self._written("<sub>", "·", "</sub>", f"<i>{escape(self.letter)}</i>")

    @property
    def mathtext(self) -> str:
        """The notation for matplotlib."""
        return "$" + self._written(r"_\mathrm{", r"·", "}", self.letter).replace(", ", r",\,") + "$"

    @property
    def where(self) -> str:
        """What the notation leaves out: on which ranks the array is, and along which axes they hold equal blocks."""
        places = f"only on {listed(self.only)}" if self.only else ""
        return "; ".join(filter(None, [places, f"copied over {listed(self.copied)}" if self.copied else ""]))


def coordinates(run: RunLike) -> dict[int, dict[str, int]]:
    """Return {rank: {mesh axis: index}} for the axes along which ranks differ."""
    found: dict[int, dict[str, int]] = {}
    for row in run.rows("mesh"):
        named = {
            key: value
            for key, value in row.items()
            if key not in NOT_AXES and isinstance(value, int) and not isinstance(value, bool)
        }
        found[row["rank"]] = {key: value for key, value in named.items() if not key.endswith("size")}
    names = {name for places in found.values() for name in places}
    if names & set(FINE):
        names.discard("tensor")
    order = [n for n in (*COARSE, "tensor", *FINE) if n in names]
    order += sorted(names - set(order))
    order = [n for n in order if len({places.get(n) for places in found.values()}) > 1]
    return {rank: {n: places[n] for n in order if n in places} for rank, places in sorted(found.items())}


def parameter(run: RunLike, name: str) -> dict[str, Any]:
    """Return the row of one parameter, by its name or by the end of its name."""
    rows = run.rows("parameter")
    exact = [row for row in rows if row["name"] == name]
    found = exact or [row for row in rows if row["name"].endswith(name)]
    if len(found) != 1:
        names = ", ".join(row["name"] for row in found or rows) or "none recorded"
        problem = "more than one parameter ends in" if found else "no parameter is called"
        raise KeyError(f"{problem} {name!r}; there are: {names}")
    return found[0]


def holders(row: dict[str, Any]) -> dict[Block, list[int]]:
    """Return {block: ranks that hold it}, in the order of the blocks."""
    found: dict[Block, list[int]] = {}
    for shard in sorted(row["shards"], key=lambda shard: shard["rank"]):
        block = tuple((int(start), int(stop)) for start, stop in shard["block"])
        found.setdefault(block, []).append(shard["rank"])
    return dict(sorted(found.items()))


def split(row: dict[str, Any], places: dict[int, dict[str, int]]) -> Split:
    """Return how a parameter is cut, read off its blocks and its ranks' places on the mesh."""
    blocks = {shard["rank"]: shard["block"] for shard in row["shards"]}
    held = {rank: places.get(rank, {}) for rank in blocks}
    first = next(iter(held.values()), {})
    varying = [name for name in first if len({place[name] for place in held.values()}) > 1]
    only = tuple(f"{name} {index}" for name, index in first.items() if name not in varying)
    axes = []
    for dim in range(len(row["global_shape"])):
        starts = {rank: block[dim][0] for rank, block in blocks.items()}
        axes.append(_axes_of(starts, held, varying))
    used = {name for names in axes for name in names}
    copied = () if "?" in used else tuple(name for name in varying if name not in used)
    named = {"weight": "W", "bias": "b"}.get(row["name"].rsplit(".", 1)[-1], "P")
    return Split(row.get("letter", named), tuple(axes), copied, only, row.get("dims", Split.dims))


def _axes_of(starts: dict[int, int], held: dict[int, dict[str, int]], names: list[str]) -> tuple[str, ...]:
    """Return the fewest mesh axes, in order, that number the pieces of one dimension; ("?",) if none do."""
    pieces = sorted(set(starts.values()))
    if len(pieces) == 1:
        return ()
    for size in range(1, len(names) + 1):
        for chosen in combinations(names, size):
            for ordered in permutations(chosen):
                keys = {rank: tuple(held[rank][n] for n in ordered) for rank in starts}
                pairs = sorted({(keys[rank], starts[rank]) for rank in starts})
                # One key for each piece, and the pieces in the order of their keys.
                if len({key for key, _ in pairs}) == len(pairs) and [s for _, s in pairs] == pieces:
                    return ordered
    return ("?",)


def described(row: dict[str, Any]) -> str:
    """Return who holds which block, in words: "rank 0: I 0–31, J 0–95; ..."."""
    parts = []
    for block, ranks in holders(row).items():
        who = ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
        where = [
            f"{name} {start}–{stop - 1}"
            for name, (start, stop), size in zip(row.get("dims", Split.dims), block, row["global_shape"], strict=False)
            if (start, stop) != (0, size)
        ]
        parts.append(f"{who}: {', '.join(where) or 'all of it'}")
    return "; ".join(parts)


def grid(row: dict[str, Any]) -> str:
    """Return the ranks as the picture shows them: "0, 1 / 2, 3" are two rows of blocks, "0+4" is held twice."""
    vertical, horizontal = shown_dimensions(row)
    cells: dict[int, list[tuple[int, str]]] = {}
    for block, ranks in holders(row).items():
        top = 0 if vertical is None else block[vertical][0]
        left = block[horizontal][0] if block else 0
        cells.setdefault(top, []).append((left, "+".join(map(str, ranks))))
    return " / ".join(", ".join(who for _, who in sorted(line)) for _, line in sorted(cells.items()))


def shown_dimensions(row: dict[str, Any]) -> tuple[int | None, int]:
    """Return which two dimensions a flat picture shows (None: one row): the split ones first, then the largest."""
    sizes = row["global_shape"]
    cut = [d for d in range(len(sizes)) if len({tuple(s["block"][d]) for s in row["shards"]}) > 1]
    rest = sorted((d for d in range(len(sizes)) if d not in cut and sizes[d] > 1), key=lambda d: -sizes[d])
    chosen = sorted((cut + rest)[:2])
    if len(chosen) < 2:
        return None, (chosen or [max(0, len(sizes) - 1)])[0]
    return chosen[0], chosen[1]


def elements(row: dict[str, Any]) -> int:
    """Return how many elements the whole parameter has, all its folded copies counted."""
    return prod(row["global_shape"]) * int(row.get("count") or 1)
