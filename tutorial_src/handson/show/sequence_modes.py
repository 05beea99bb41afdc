"""Today's modes of sequence parallelism, side by side: what a rank works on, whether it is right, and what it costs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from matplotlib.patches import Rectangle

from handson.show import picture, style
from handson.show.conditions import Runs, by_conditions, communication, largest, last
from handson.show.run_tables import formula_table
from handson.show.style import number, quantity, relative
from handson.show.tables import Cell, Table, code, failure, lines

GRADIENT_TOLERANCE = 1e-4  # of a gradient's largest entry; fp32 sums in another order differ by some 1e-6
LOSS_TOLERANCE = 1e-5
# panel: (title, recorded size along its rows, along its columns)
PANELS = (
    ("between layers:\ntokens × features", "tokens", None),
    ("in attention:\nqueries × heads", "queries", "heads"),
    ("in the MLP:\ntokens × width", "mlp_tokens", "mlp_width"),
)


def ways(run: Any) -> dict[str, Any]:
    """Return a view of the run for each mode that ran, with that mode's rows alone, for other tables and pictures."""
    names = dict.fromkeys(row["way"] for row in run.data if row["kind"] == "memory")
    common = [row for row in run.data if "way" not in row]
    return {
        name: dataclasses.replace(run, data=common + [row for row in run.data if row.get("way") == name])
        for name in names
    }


def mode_map(run: Any) -> picture.Picture:
    """Draw, as each rank saw it in its first layer, which part of the work is a rank's under each mode.

    Data parallelism, which cuts none of it, and the same cuts with other kernels are left out.
    """
    names = dict.fromkeys(row["way"] for row in run.rows("witness"))
    rows = {name: [] for name in names if name != "data" and not name.endswith("+flash")}
    for row in run.rows("witness"):
        if row["way"] in rows:
            rows[row["way"]].append(row)
    whole = rows.pop("one process")[0]
    words = []
    with style.context():
        drawn, axes = picture.new(height=0.62 * len(rows) + 0.7, ncols=3, nrows=len(rows))
        for ax, (title, *_) in zip(axes[0], PANELS, strict=True):
            ax.set_title(title, fontsize=9.5, color=style.MUTED)
        for line, (name, seen) in zip(axes, rows.items(), strict=True):
            for ax, (_, down, across) in zip(line, PANELS, strict=True):
                _panel(ax, seen, whole, down, across)
            line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10.5, labelpad=8)
            first = seen[0]
            words.append(
                f"{name}: {first['tokens']} of {whole['tokens']} tokens between layers, {first['heads']} of "
                f"{whole['heads']} heads in attention, {first['mlp_width']} of {whole['mlp_width']} of the MLP's width"
            )
        return picture.finish(drawn, f"What each of {run.ranks} ranks works on. {'; '.join(words)}.")


def _panel(ax: Any, seen: list[dict[str, Any]], whole: dict[str, Any], down: str, across: str | None) -> None:
    """Draw one square for each rank, its own part filled: rows from the top, columns from the left."""
    for place, row in enumerate(sorted(seen, key=lambda row: row["rank"])):
        tall = row[down] / whole[down]
        wide = row[across] / whole[across] if across else 1.0
        x = 1.25 * place + (place * wide) % 1
        y = 1 - tall - (place * tall) % 1
        ax.add_patch(Rectangle((x, y), wide, tall, color=style.rank_colour(row["rank"]), linewidth=0))
        ax.add_patch(Rectangle((1.25 * place, 0), 1, 1, fill=False, edgecolor=style.MUTED, linewidth=0.8))
    ax.set(xlim=(-0.05, 1.25 * len(seen) - 0.2), ylim=(-0.05, 1.05), aspect="equal", xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def verdict(run: Any, way: str) -> Cell | str:
    """Return whether a mode computes what one process computes, or what it says instead."""
    row = next(row for row in run.rows("mode", rank=0) if row["way"] == way)
    if not row["runs"]:
        return "refused"
    loss = next(r["max_loss_difference"] for r in run.rows("parity", rank=0) if r["way"] == way)
    if loss > LOSS_TOLERANCE:
        return failure("wrong loss and gradients")
    if row["gradient_difference"] > GRADIENT_TOLERANCE:
        return failure(f"{row['wrong']} of {row['compared']} gradients wrong")
    tokens = {name: _tokens(run, name) for name in (way, "one process")}
    if row["layout"]["sequence"] > 1 and tokens[way] == tokens["one process"]:
        return failure("divides nothing")
    return "equal"


def mode_table(runs: Runs, *, caption: str = "") -> Table:
    """Every mode of every model: what it divides, whether it is right, and what a step costs beside one process."""
    body, refused = [], []
    for model, run in runs.items():
        views = ways(run)
        alone = views.get("one process")
        for row in run.rows("mode", rank=0):
            way, view = row["way"], views.get(row["way"])
            if not row["runs"]:
                refused.append(f"{model} · {way} says: {row['message']}.")
            cells: list[Any] = [f"{model} · {way}", _share(run, way), verdict(run, way)]
            loss = next((r["max_loss_difference"] for r in run.rows("parity", 0) if r["way"] == way), None)
            cells.append(lines(number(loss), number(row.get("gradient_difference"))) if row["runs"] else "—")
            if alone is not None:
                cells += _costs(view, alone)
            body.append(cells)
    measured = all("one process" in ways(run) for run in runs.values())
    columns = ["model · mode", "tokens, heads", "verdict", "loss, gradients differ"]
    notes = [
        "Tokens between a rank's layers, heads in its attention. The loss differs by so much from that of one process, "
        "and the worst gradient by so much of its largest entry; equal means "
        f"{number(LOSS_TOLERANCE)} and {number(GRADIENT_TOLERANCE)}."
    ]
    if measured:
        columns += ["step time", "peak memory", "sent"]
        notes.append(
            "× is against one process with the whole batch, measured in the same job. Memory is the fullest rank's, "
            "bytes sent are the busiest rank's, in one training step with AdamW in fp32."
        )
    notes += refused
    where = " and ".join(dict.fromkeys(title for title, _ in by_conditions(runs)))
    return Table(columns, body, caption or f"Today's modes on {_ranks(runs)} ranks, on {where}", notes)


def fault_table(cases: Mapping[str, tuple[Any, Any, str]], *, caption: str) -> Table:
    """Rows {repair: (run as it comes, run repaired, mode)}: what a mode does without the repair and with it."""
    body = []
    for repair, (before, after, way) in cases.items():
        row = next(row for row in before.rows("mode", rank=0) if row["way"] == way)
        loss = next(r["max_loss_difference"] for r in before.rows("parity", rank=0) if r["way"] == way)
        model = before.value("sizes", "model")
        cells = [code(repair), f"{model}, {way}", verdict(before, way), verdict(after, way)]
        body.append([*cells, number(loss), number(row["gradient_difference"])])
    columns = ["repair", "where", "as it comes", "repaired", "loss differed", "gradients differed"]
    return Table(columns, body, caption)


def traffic_table(runs: Runs, *, caption: str) -> Table:
    """Bytes of activations that a rank sends in a step: the formula's and those counted."""
    rows = [
        {
            "what": f"{model} · {row['way']}",
            "formula": row["formula"],
            "expected": row["expected"],
            "counted": row["counted"],
            "unit": "B",
        }
        for model, run in runs.items()
        for row in run.rows("traffic", rank=0)
    ]
    return formula_table(rows, caption=caption)


def _costs(view: Any, alone: Any) -> list[Any]:
    if view is None:
        return ["—", "—", "—"]
    time, peak = last(view, "step_time", "median_ms"), largest(view, "memory", "peak_bytes")
    sent: dict[int, float] = {}
    for row in communication(view):
        sent[row["rank"]] = sent.get(row["rank"], 0) + row["wire_bytes"]
    return [
        lines(quantity(time, "ms"), relative(time, last(alone, "step_time", "median_ms"))),
        lines(quantity(peak, "B"), relative(peak, largest(alone, "memory", "peak_bytes"))),
        quantity(max(sent.values(), default=0), "B"),
    ]


def _tokens(run: Any, way: str) -> int | None:
    return next((row["tokens"] for row in run.rows("witness") if row["way"] == way and "tokens" in row), None)


def _share(run: Any, way: str) -> str:
    seen = next((row for row in run.rows("witness", rank=0) if row["way"] == way), None)
    return f"{seen['tokens']}, {seen['heads']}" if seen else "—"


def _ranks(runs: Runs) -> str:
    return " or ".join(str(size) for size in dict.fromkeys(run.ranks for run in runs.values()))
