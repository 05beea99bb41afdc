"""How long a sequence fits under one memory cap, and what the memory is made of: pictures and tables of longest.py.

Runs are grouped by hardware and preset, and within a group told apart by their number of ranks: runs of unlike
conditions never share an axis.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.patches import Patch
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from handson.show import picture, style
from handson.show.conditions import by_conditions
from handson.show.run_tables import formula_table
from handson.show.style import quantity, relative
from handson.show.tables import Table, lines

Groups = list[tuple[str, dict[int, Any]]]
MARKERS = {"plain": "P", "data": "o", "tensor": "s", "ring": "D", "ring_recompute": "^", "ring_online": "v"}


def grouped(runs: Iterable[Any]) -> Groups:
    """Return the runs by conditions, in words, and within each by the number of ranks; each run once."""
    named = {f"{run.preset} {run.ranks}": run for run in runs}
    return [
        (title, {run.ranks: run for run in sorted(group.values(), key=lambda run: run.ranks)})
        for title, group in by_conditions(named)
    ]


def longest(run: Any) -> dict[str, int]:
    """Return {way: the longest length found}; on one rank, tensor parallelism is the plain model."""
    found = {row["way"]: row["length"] for row in run.rows("longest", rank=0)}
    return {"tensor" if way == "plain" else way: length for way, length in found.items()}


def longest_plot(runs: Iterable[Any]) -> picture.Picture:
    """Draw the longest length of each way against the number of ranks, beside lines that grow like P and √P."""
    groups = [(title, group) for title, group in grouped(runs) if len(group) > 1]
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.6 * len(groups), nrows=len(groups))
        for ax, (title, group) in zip(axes[:, 0], groups, strict=True):
            ranks = list(group)
            found = {rank: longest(run) for rank, run in group.items()}
            names = [name for name in found[ranks[0]] if all(name in lengths for lengths in found.values())]
            ends = sorted(names, key=found[ranks[-1]].__getitem__)
            for index, name in enumerate(names):
                lengths = [found[rank][name] for rank in ranks]
                colour = style.FOREGROUND if index % 2 else style.NEUTRAL
                ax.plot(ranks, lengths, color=colour, marker=MARKERS[name], markersize=7, label=name)
                above = [found[ranks[-1]][other] for other in ends[ends.index(name) + 1 :]]
                drop = -9 if above and above[0] < 1.1 * lengths[-1] else 0  # else two labels would be one
                beside = {"textcoords": "offset points", "va": "center"}
                ax.annotate(f"{lengths[-1]:,}", (ranks[-1], lengths[-1]), (8, drop), **beside)
                words.append(f"{name} {', '.join(f'{length:,}' for length in lengths)} tokens on {ranks}")
            first = max(found[ranks[0]][name] for name in names)
            least = min(found[ranks[0]][name] for name in names)
            dashes = (0, (4, 3))
            ax.plot(
                ranks, [first * r / ranks[0] for r in ranks], color=style.MUTED, linestyle=dashes, lw=1, label="× P"
            )
            roots = [least * math.sqrt(r / ranks[0]) for r in ranks]
            ax.plot(ranks, roots, color=style.MUTED, linestyle=(0, (1, 2)), linewidth=1.2, label="× √P")
            ax.set(xscale="log", yscale="log", xlim=(ranks[0] / 1.1, ranks[-1] * 1.35))
            ax.xaxis.set_major_locator(FixedLocator(ranks))
            ax.xaxis.set_minor_locator(NullLocator())
            ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
            lengths_axis(ax.yaxis, [length for row in found.values() for length in row.values()])
            ax.set_xlabel("ranks that share the sequence")
            ax.set_ylabel("longest sequence (tokens)")
            ax.grid(axis="y")
            cap = quantity(next(iter(group.values())).value("sizes", "cap_bytes"), "B")
            ax.set_title(f"under {cap} a rank, {title}", fontsize=10, color=style.MUTED)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside upper left", ncols=5, handlelength=1.8, columnspacing=1.2)
        return picture.finish(drawn, f"Longest sequence under one memory cap. {'; '.join(words)}.")


def longest_table(runs: Iterable[Any], *, caption: str) -> Table:
    """The longest length of each attention for each number of ranks, and how many times that of one rank."""
    body, notes = [], []
    for title, group in grouped(runs):
        base = longest(next(iter(group.values())))
        one = next(iter(group))
        for name in base:
            cells: list[Any] = [name]
            for ranks in (1, 2, 4):
                length = longest(group[ranks]).get(name) if ranks in group else None
                against = relative(length, base[name]) if length and ranks != one else ""
                cells.append(lines(f"{length:,} tokens", against) if length else "—")
            body.append([*cells, title])
        sizes = group[one].rows("sizes", rank=0)[0]
        notes.append(
            f"{title}: cap {quantity(sizes['cap_bytes'], 'B')} a rank; lengths are multiples of {sizes['grain']}, and "
            f"one that is at most {sizes['close']:.0%} or {sizes['grain']} tokens longer was tried and did not fit."
        )
    return Table(["way", "1 rank", "2 ranks", "4 ranks", "where"], body, caption, notes)


PARTS = (("weights and AdamW", 1.0), ("saved for backward", 0.55), ("the rest of the peak", 0.18))


def _parts(row: Mapping[str, Any]) -> tuple[float, float, float]:
    fixed = row["parameter_bytes"] + row["optimizer_bytes"]
    return fixed, row["activation_bytes"], row["peak_bytes"] - fixed - row["activation_bytes"]


def length_parts(group: Mapping[int, Any], names: Sequence[str], *, where: str = "short") -> picture.Picture:
    """Draw of what a rank's peak is made, for each number of ranks: at one `short` length, or at the `longest`."""
    words, body = [], []
    for name in names:
        for ranks, run in group.items():
            rows = [row for row in run.rows("parts") if row["way"] == name and row["where"] == where]
            body.append((name, ranks, max(rows, key=lambda row: row["peak_bytes"])))
    unit = quantity(max(row["peak_bytes"] for *_, row in body), "B").split()[-1]
    scale = 1024 ** ("B", "KiB", "MiB", "GiB").index(unit)
    with style.context():
        drawn, axes = picture.new(height=0.36 * len(body) + 1.1)
        ax, y = axes[0, 0], 0.0
        ticks = []
        for index, (name, ranks, row) in enumerate(body):
            y += 0.5 if index and body[index - 1][0] != name else 0
            left = 0.0
            for width, (_, alpha) in zip(_parts(row), PARTS, strict=True):
                ax.barh(y, width / scale, left=left / scale, height=0.74, color=style.FOREGROUND, alpha=alpha, lw=0)
                left += width
            text = f"{quantity(row['peak_bytes'], 'B')} at {row['length']:,} tokens"
            ax.annotate(text, (left / scale, y), (6, 0), textcoords="offset points", va="center", fontsize=10)
            words.append(
                f"{name} on {ranks}: {text}, of it {quantity(row['activation_bytes'], 'B')} saved for backward"
            )
            ticks.append((y, f"{name}, {ranks} rank{'s' * (ranks > 1)}"))
            y += 1
        ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
        ax.set(ylim=(y - 0.4, -0.6), xlim=(0, 1.5 * max(row["peak_bytes"] for *_, row in body) / scale))
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel(f"peak memory of the fullest rank ({unit})")
        ax.grid(axis="x")
        ax.spines["left"].set_visible(False)
        keys = [Patch(facecolor=style.FOREGROUND, alpha=alpha, label=name) for name, alpha in PARTS]
        drawn.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.2)
        return picture.finish(drawn, f"Peak memory by its parts. {'; '.join(words)}.")


def fixed_table(group: Mapping[int, Any], way: str, *, caption: str) -> Table:
    """What one step at one short length holds on the fullest rank: what shrinks with the ranks and what does not."""
    rows = {}
    for ranks, run in group.items():
        found = [row for row in run.rows("parts") if row["way"] == way and row["where"] == "short"]
        rows[ranks] = max(found, key=lambda row: row["peak_bytes"])
    first = rows[min(rows)]
    parts = {
        "weights": lambda row: row["parameter_bytes"],
        "their gradients": lambda row: row["gradient_bytes"],
        "AdamW's states": lambda row: row["optimizer_bytes"],
        "saved for backward": lambda row: row["activation_bytes"],
        "peak": lambda row: row["peak_bytes"],
    }
    body = []
    for name, part in parts.items():
        cells = [lines(quantity(part(row), "B"), relative(part(row), part(first))) for row in rows.values()]
        body.append([name, *cells])
    columns = ["part", *[f"{ranks} rank{'s' * (ranks > 1)}" for ranks in rows]]
    return Table(columns, body, f"{caption}: {way}, {first['length']:,} tokens")


def activations_table(runs: Iterable[Any], *, caption: str) -> Table:
    """Bytes saved for the backward pass at the longest length: the formula's and those counted."""
    rows = []
    for title, group in grouped(runs):
        for ranks, run in group.items():
            for row in run.rows("parts", rank=0):
                if row["where"] == "longest" and row["way"] in FORMULAS:
                    what = {"what": row["way"], "on": f"{ranks}, {title}", "tokens": row["length"]}
                    sides = {"expected": row["expected_activations"], "counted": row["activation_bytes"]}
                    rows.append(what | {"formula": FORMULAS[row["way"]], "unit": "B"} | sides)
    return formula_table(rows, caption=caption)


FORMULAS = {
    "ring": "L (16\u00a0BSh + n\u00a0BS²)/P",
    "ring_recompute": "L 12\u00a0BSh/P + (4\u00a0BSh\u00a0+\u00a0n\u00a0BS²)/P",
    "ring_online": "L (16\u00a0BSh + n\u00a0BS)/P",
}


def lengths_axis(axis: Any, lengths: Iterable[int], *, every: bool = False) -> None:
    """Label a logarithmic axis of lengths: with each of them, or with round numbers."""
    ticks = sorted(set(lengths)) if every else round_numbers(min(lengths) / 1.2, max(lengths) * 1.2)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))


def round_numbers(low: float, high: float) -> list[float]:
    """Return round numbers between two positive ones: 1, 2 and 5 times the powers of ten."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [m * 10**p for p in powers for m in (1, 2, 5) if low <= m * 10**p <= high]
