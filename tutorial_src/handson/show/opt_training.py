"""What each strategy keeps, sends and takes, as compare.py of the OPT topic measured it: pictures and tables.

Runs are grouped by hardware and preset, and within a group told apart by their number of ranks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from matplotlib.patches import Patch

from handson.show import picture, style
from handson.show.conditions import crowded
from handson.show.run_plots import _bytes_axis
from handson.show.sequence_length import grouped
from handson.show.style import number, quantity, relative
from handson.show.tables import Table, failure, lines

KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "master": "fp32 master weights",
    "moments": "Adam's moments",
}
# Kinds are told apart by tone and hatching: hues are the ranks'.
LOOKS = {
    "weights": (style.FOREGROUND, ""),
    "gradients": (style.NEUTRAL, ""),
    "master": (style.PALE, ""),
    "moments": (style.PALE, "////"),
    "activations": (style.BACKGROUND, "...."),
}
TOLERANCES = {
    "fp32": 1e-3,
    "bf16": 2e-2,
}  # of the loss, against one process in the same precision
BASE = "ddp"


def ways(run: Any) -> dict[str, dict[str, Any]]:
    """Return {way: its row}, a way being strategy:precision."""
    return {row["way"]: row for row in run.rows("way", rank=0)}


def kept(run: Any) -> dict[str, dict[str, Any]]:
    """Return {way: the memory of the rank that keeps most on its device}."""
    found: dict[str, dict[str, Any]] = {}
    for row in run.rows("training_memory"):
        if row["way"] not in found or on_device(row) > on_device(found[row["way"]]):
            found[row["way"]] = row
    return found


def on_device(row: Mapping[str, Any]) -> int:
    """Return the bytes of weights, gradients and states on a rank's device."""
    return sum(row[kind] for kind in KINDS)


def in_host(row: Mapping[str, Any]) -> int:
    """Return the same bytes in the host's memory."""
    return sum(row[f"host_{kind}"] for kind in KINDS)


def label(way: str) -> str:
    """Return a way as a reader calls it: "zero2, bf16"."""
    return way.replace(":", ", ")


def kept_bars(runs: Iterable[Any], *, precision: str = "bf16") -> picture.Picture:
    """Draw what a rank keeps under each strategy, by kind: a panel for each number of ranks, thin for the host's."""
    panels = [(title, ranks, run) for title, group in grouped(runs) for ranks, run in group.items()]
    rows = [
        (
            title,
            ranks,
            {way: row for way, row in kept(run).items() if way.endswith(precision)},
        )
        for title, ranks, run in panels
    ]
    heights = [0.9 + 0.34 * len(found) for *_, found in rows]
    ends: dict[str, float] = {}  # panels of the same conditions share their scale
    for title, _, found in rows:
        longest = max(max(on_device(row) + row["activations"], in_host(row)) for row in found.values())
        ends[title] = max(
            ends.get(title, 0),
            longest * (1.3 if any(map(in_host, found.values())) else 1),
        )
    words, host = [], False
    with style.context():
        drawn, axes = picture.new(height=sum(heights) + 0.5, nrows=len(rows), height_ratios=heights)
        for ax, (title, ranks, found) in zip(axes[:, 0], rows, strict=True):
            said = []
            for y, (way, row) in enumerate(found.items()):
                left = 0
                for kind, (face, hatch) in LOOKS.items():
                    _bar(ax, y, left, row[kind], 0.62, face, hatch)
                    left += row[kind]
                beside = 0
                for kind in KINDS:
                    _bar(ax, y + 0.4, beside, row[f"host_{kind}"], 0.16, *LOOKS[kind])
                    beside += row[f"host_{kind}"]
                host |= beside > 0
                text = quantity(left, "B") + (f", host {quantity(beside, 'B')}" if beside else "")
                ax.annotate(
                    text,
                    (max(left, beside), y),
                    (6, 0),
                    textcoords="offset points",
                    va="center",
                    fontsize=10,
                )
                said.append(f"{label(way)} {text}")
            ax.set_yticks(range(len(found)), [way.partition(":")[0] for way in found])
            ax.set_ylim(len(found) - 0.4, -0.6)
            ax.tick_params(axis="y", length=0)
            ax.update_datalim([(ends[title], 0)])
            _bytes_axis(ax, "kept by the fullest rank")
            ax.grid(axis="x")
            ax.spines["left"].set_visible(False)
            ax.set_title(f"{_ranks(ranks)}, {title}", fontsize=10, color=style.MUTED)
            words.append(f"on {_ranks(ranks)}: {', '.join(said)}")
        names = {**KINDS, "activations": "activations"}
        keys = [
            Patch(
                facecolor=face,
                hatch=hatch,
                edgecolor=style.FOREGROUND,
                linewidth=0.7,
                label=names[kind],
            )
            for kind, (face, hatch) in LOOKS.items()
        ]
        drawn.legend(
            handles=keys,
            loc="outside upper left",
            ncols=3,
            handlelength=1.5,
            columnspacing=1.2,
        )
        thin = " A thin bar is in the host's memory." if host else ""
        return picture.finish(
            drawn,
            f"What a rank keeps for training, in {precision}. {'; '.join(words)}.{thin}",
        )


def _bar(ax: Any, y: float, left: float, width: float, height: float, face: str, hatch: str) -> None:
    edge = {"edgecolor": style.FOREGROUND, "linewidth": 0.7 if width else 0}
    ax.barh(y, width, left=left, height=height, facecolor=face, hatch=hatch, **edge)


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"


def curves(run: Any, *, precision: str) -> dict[str, Any]:
    """Return a run for each strategy of a precision, as `show.loss_curves` and `show.parity_table` read them."""
    return {
        row["strategy"]: dataclasses.replace(
            run,
            data=[
                {
                    "rank": 0,
                    "kind": "loss",
                    "step": step,
                    "loss": loss,
                    "reference": reference,
                }
                for step, (loss, reference) in enumerate(zip(row["losses"], row["plain"], strict=True), start=1)
            ],
        )
        for row in ways(run).values()
        if row["precision"] == precision
    }


def parity_table(runs: Iterable[Any]) -> Table:
    """How far the losses of each way are from one process of the same precision, and from fp32."""
    groups, body = grouped(runs), []
    for title, group in groups:
        for ranks, run in group.items():
            for way, row in ways(run).items():
                good = row["gap"] <= TOLERANCES[row["precision"]]
                same = [] if row["precision"] == "fp32" else [a - b for a, b in _pairs(row["plain"], row["plain_fp32"])]
                alone = number(max(map(abs, same))) if same else "—"
                verdict = "equal" if good else failure("DIFFERENT")
                place = _place(ranks, title, groups)
                body.append([label(way), place, number(row["gap"]), verdict, number(row["gap_fp32"]), alone])
    columns = ["strategy", "ranks", "from one process", "verdict", "from fp32", "bf16 alone"]
    notes = [
        "Largest difference of the loss over all steps: from one process of the same precision, and from one in fp32. "
        f"Equal means within {number(TOLERANCES['fp32'])} of the first in fp32 and {number(TOLERANCES['bf16'])} in "
        "bf16. The column bf16 alone is one process in bf16 against one in fp32, with no strategy at all.",
        *_everywhere(groups),
    ]
    return Table(columns, body, "Every strategy trains the same model", notes)


def _place(ranks: int, title: str, groups: list[Any]) -> Any:
    """Return the ranks of a row, and on what hardware where a table has several."""
    return ranks if len(groups) == 1 else lines(_ranks(ranks), title.removesuffix(" preset"))


def _everywhere(groups: list[Any]) -> list[str]:
    """Return which model it was on which hardware, as notes."""
    firsts = ((title, next(iter(group.values()))) for title, group in groups)
    return [f"{title}: OPT {run.value('comparison', 'model')}." for title, run in firsts]


def _pairs(first: list[float], second: list[float]) -> Iterable[tuple[float, float]]:
    return zip(first, second, strict=True)


def byte_table(run: Any) -> Table:
    """Bytes per parameter of the fullest rank, formula and count, by kind; and the activations."""
    parameters = run.value("comparison", "parameters")
    body = []
    for way, row in kept(run).items():
        cells, expected = [], 0.0
        for kind in KINDS:
            formula, count = (
                row["formula"][kind],
                (row[kind] + row[f"host_{kind}"]) / parameters,
            )
            expected += formula["bytes"]
            words = f"{formula['words']} = {number(formula['bytes'])}" if "/" in formula["words"] else formula["words"]
            cells.append(lines(words, number(float(count))))
        total = (on_device(row) + in_host(row)) / parameters
        sums = lines(number(expected), number(total))
        body.append(
            [
                label(way),
                *cells,
                sums,
                relative(row["activations"], row["expected_activations"]),
            ]
        )
    columns = ["strategy", *KINDS.values(), "sum", "activations"]
    uses = {row["use"] for row in kept(run).values() if row["use"]}
    notes = [
        f"First line: formula, with w = {run.ranks} ranks; second: count, device and host together, at the rank that "
        f"keeps most, of a model of {quantity(parameters)} parameters. Gradients are counted between backward pass and "
        "update. Activations: count ÷ formula."
    ]
    if uses:
        share = number(100 * min(uses))
        notes.append(f"Gemini's chunks are {share} % full, so it keeps a little more than its formula.")
    return Table(
        columns,
        body,
        f"Bytes per parameter, formula and count, on {_ranks(run.ranks)}",
        notes,
    )


def speed_table(runs: Iterable[Any], *, precision: str = "bf16") -> Table:
    """Step time, tokens a second and bytes sent by each way of a precision, beside data parallelism in it."""
    groups, body, turns, base = grouped(runs), [], False, f"{BASE}:{precision}"
    for title, group in groups:
        for ranks, run in group.items():
            found, sent = ways(run), {row["way"]: row["bytes"] for row in run.rows("sent", rank=0)}
            turns |= crowded(run)
            for way, row in found.items():
                if row["precision"] != precision:
                    continue
                time = relative(row["median_ms"], found[base]["median_ms"]) if base in found else "—"
                moved = lines(quantity(sent[way], "B"), relative(sent[way], sent[base])) if sent.get(base) else "—"
                speed, step = quantity(row["tokens_per_second"], "tokens/s"), quantity(row["median_ms"], "ms")
                body.append([row["strategy"], _place(ranks, title, groups), step, time, speed, moved])
    columns = ["strategy", "ranks", "step time", "÷ ddp", "throughput", "sent, ÷ ddp"]
    notes = [
        f"In {precision}; median of the steps after the third. Sent: by a rank in a step. ÷ ddp: data parallelism on "
        "the same ranks.",
        *_everywhere(groups),
    ]
    if turns:
        notes.append("Where ranks outnumber the CPU's cores they take turns: those times say nothing about speed.")
    return Table(columns, body, "Step time, tokens a second, and what a step sends", notes)
