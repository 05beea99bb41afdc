"""Tables about many runs at once: which machines made them, how long they took and how much memory they needed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from handson.run import Run
from handson.show.conditions import hardware, machine
from handson.show.style import listed, quantity
from handson.show.tables import Cell, Table, code, lines, soft

VERSIONS = {"python": "Python", "torch": "PyTorch", "colossalai": "Colossal-AI"}
VERSIONS |= {"transformers": "transformers", "titans": "titans", "driver": "NVIDIA driver", "cuda": "CUDA"}


def machines(runs: Iterable[Run]) -> list[list[Run]]:
    """Return the runs of each host, the host with most GPUs first."""
    ordered = sorted(runs, key=machine)
    groups = [list(group) for _, group in groupby(ordered, key=machine)]
    return sorted(groups, key=lambda group: -max(run.provenance["accelerators"] for run in group))


def title(runs: Sequence[Run]) -> str:
    """Return a host in a few words: its GPUs, as far as they were used, and its processor's cores."""
    fullest = max(runs, key=lambda run: run.provenance["accelerators"])
    gpus = f"{hardware(fullest)} and " if fullest.provenance["accelerators"] else ""
    return f"{gpus}{fullest.provenance['cores']} CPU cores"


def machine_table(runs: Sequence[Run]) -> Table:
    """Everything that the recordings say of one host: parts, links, versions, dates."""
    rows: list[list[object]] = []

    def add(name: str, field: str) -> None:
        found = dict.fromkeys(str(run.provenance[field]) for run in runs if run.provenance.get(field))
        if found:
            rows.append([name, ", ".join(sorted(found))])

    most = max(run.provenance["accelerators"] for run in runs)
    if most:
        add("accelerator", "accelerator")
        rows.append(["of them used at once", f"up to {most}"])
        add("links between them", "links")
    add("processor", "cpu")
    add("cores", "cores")
    for field, name in VERSIONS.items():
        add(name, field)
    days = sorted(run.provenance["date"][:10] for run in runs)
    rows.append(["recorded", " to ".join(dict.fromkeys((days[0], days[-1])))])
    add("commits", "commit")
    return Table(["property", "value"], rows, f"Parts and versions: {title(runs)}")


def use_table(runs: Sequence[Run]) -> Table:
    """What one host was used for: runs, ranks and time on each number of its devices."""
    body = []
    ordered = sorted(runs, key=lambda run: (run.provenance["device"], run.provenance["accelerators"]))
    for what, group in groupby(ordered, key=hardware):
        made = list(group)
        ranks = sorted({run.ranks for run in made})
        spent = sum(device_seconds(run) or 0.0 for run in made)
        body.append(
            [
                what,
                len(made),
                listed([str(count) for count in ranks]),
                made[0].provenance["backend"],
                quantity(sum(run.seconds for run in made), "s"),
                quantity(spent, "s") if spent else "—",
            ]
        )
    columns = ["devices", "runs", "ranks", "backend", "wall-clock time", "device-seconds"]
    return Table(columns, body, f"What it ran: {title(runs)}")


def link_table(runs: Iterable[Run]) -> Table | None:
    """How fast the links between ranks were measured to be; None when no run measured them."""
    body = []
    for run in runs:
        for row in run.rows("link", rank=0):
            for collective in ("ring", "all_reduce"):
                speed, name = quantity(row[collective], "B"), code(collective.replace("_", "-"))
                body.append([hardware(run), run.ranks, name, quantity(row["message_bytes"], "B"), f"{speed}/s"])
        for row in run.rows("links", rank=0):
            for axis, size in enumerate(row["mesh"]):
                if size > 1:
                    speed, latency = quantity(row["bytes_per_second"][axis], "B"), row["latency_s"][axis]
                    latency = soft(
                        f"latency {quantity(latency, 's')}, before training on {row['images']} images a rank"
                    )
                    what = lines(f"mesh axis of {size}", latency)
                    body.append([hardware(run), run.ranks, what, "fitted", f"{speed}/s"])
    if not body:
        return None
    columns = ["hardware", "ranks", "what", "message", "speed"]
    return Table(columns, sorted(body, key=str), "How fast one rank sends, measured")


def device_seconds(run: Run) -> float | None:
    """Return seconds × accelerators held; None for a run on the CPU, whose ranks share the cores."""
    return run.seconds * run.provenance["accelerators"] or None


def peak_bytes(run: Run) -> int | None:
    """Return the largest peak memory that any rank recorded, or None when the run recorded none."""
    found = [row[name] for row in run.data for name in ("peak_bytes", "peak") if row.get(name) is not None]
    return max(found, default=None)


def times_table(runs: Sequence[Run], *, caption: str, stale: Mapping[str, str] | None = None) -> Table:
    """The runs of one lesson; `stale` says by key which are not made by the code that is here, and why."""
    stale = stale or {}
    body = []
    for run in sorted(runs, key=lambda run: -run.seconds):
        left_out = f"without {', '.join(run.without)}" if run.without else ""
        failed = "failed, as the lesson expects" if run.error else ""
        marks = [soft(text) for text in (left_out, failed, "stale" if run.key in stale else "") if text]
        body.append(
            [
                lines(code(" ".join([run.script.rpartition("/")[2], *run.argv])), *marks),
                hardware(run),
                run.ranks,
                quantity(run.seconds, "s"),
                quantity(device_seconds(run), "s"),
                quantity(peak_bytes(run), "B"),
            ]
        )
    columns = ["run", "hardware", "ranks", "seconds", "device-seconds", "peak memory"]
    notes = [f"Stale: {reason}" for reason in dict.fromkeys(stale.get(run.key, "") for run in runs) if reason]
    return Table(columns, body, caption, notes)


def totals_table(lessons: Mapping[str, tuple[Cell, Sequence[Run]]], every: Sequence[Run]) -> Table:
    """One row a lesson (`lessons` has its name as a link, and its runs), and one for every run counted once."""
    body = []
    for name, runs in [*lessons.values(), ("all lessons", every)]:
        spent = sum(device_seconds(run) or 0.0 for run in runs)
        peaks = [peak for run in runs if (peak := peak_bytes(run)) is not None]
        body.append(
            [
                name,
                len(runs),
                listed([str(count) for count in sorted({run.ranks for run in runs})]),
                quantity(sum(run.seconds for run in runs), "s"),
                quantity(spent, "s") if spent else "—",
                quantity(max(peaks, default=None), "B"),
            ]
        )
    columns = ["lesson", "runs", "ranks", "seconds", "device-seconds", "highest peak"]
    shared = sum(len(runs) for _, runs in lessons.values()) - len(every)
    notes = [f"{shared} times a lesson shows a run that another shows too; all lessons counts each once."]
    return Table(columns, body, "Recorded runs of each lesson", notes if shared else ())
