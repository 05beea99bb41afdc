"""Pictures of who computes when: one lane a rank, from the time stamps that each rank recorded on a common clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from handson.show import picture, style
from handson.show.conditions import RunLike, by_conditions, conditions, crowded, hardware, last

ORDERS = {"1f1b": "1F1B", "gpipe": "GPipe", "data": "data parallel"}
# Phases are told apart by shade and hatching: a hue is a rank.
PHASES = {
    "forward": {"alpha": 1.0, "hatch": ""},
    "backward": {"alpha": 0.45, "hatch": ""},
    "all_reduce": {"alpha": 0.25, "hatch": "//////"},
}
LANE, BELOW = 0.76, 0.24  # a lane's height; that of the all-reduces below it, of one lane's distance


def gantt(run: RunLike, *which: tuple[str, int]) -> picture.Picture:
    """Draw when each rank computed: a panel for each order and number of micro-batches, all on one scale of time.

    Args:
        run: its rows `schedule` hold the spans.
        which: ("1f1b", 4), for example; all that the run recorded where none is given.
    """
    rows = run.rows("schedule")
    which = which or tuple(dict.fromkeys((row["order"], row["micro_batches"]) for row in rows))
    panels = {key: [row for row in rows if (row["order"], row["micro_batches"]) == key] for key in which}
    for key, spans in panels.items():
        if not spans:
            known = sorted({(row["order"], row["micro_batches"]) for row in rows})
            raise LookupError(f"this run recorded no schedule {key}; it recorded {known}")
    longest, words = max(span["end_ms"] for spans in panels.values() for span in spans), []
    ranks = [sorted({span["rank"] for span in spans}) for spans in panels.values()]
    heights = [0.75 + 0.27 * len(present) for present in ranks]
    with style.context():
        drawn, axes = picture.new(height=0.55 + sum(heights), nrows=len(panels), sharex=True, height_ratios=heights)
        for ax, (key, spans) in zip(axes.flat, panels.items(), strict=True):
            words.append(_lanes(ax, key, spans, longest))
        turns = "; ranks take turns on the cores" if crowded(run) else ""
        axes[-1, 0].set_xlabel(f"time in the step (ms){turns}")
        phases = [name for name in PHASES if any(row["phase"] == name for s in panels.values() for row in s)]
        keys = []
        for name in phases:
            alpha, hatch = PHASES[name]["alpha"], PHASES[name]["hatch"]
            # Matplotlib fades the hatching with the face: a hatched key takes the pale grey itself.
            look = {"facecolor": style.PALE, "hatch": hatch} if hatch else {"facecolor": style.NEUTRAL, "alpha": alpha}
            line = {"edgecolor": style.FOREGROUND, "linewidth": 0.7 if hatch else 0}
            keys.append(Patch(label=name.replace("_", "-"), **look, **line))
        drawn.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.2)
        return picture.finish(drawn, f"When each rank computes in one step, on {hardware(run)}: {'; '.join(words)}.")


def _lanes(ax: Axes, key: tuple[str, int], spans: Sequence[dict[str, Any]], longest: float) -> str:
    """Draw one order's lanes and return it in words."""
    order, pieces = key
    ranks = sorted({span["rank"] for span in spans})
    below = any(span["phase"] == "all_reduce" for span in spans)
    for span in spans:
        lane, colour = ranks.index(span["rank"]), style.rank_colour(span["rank"])
        apart, width = span["phase"] == "all_reduce", span["end_ms"] - span["start_ms"]
        shape = {"alpha": PHASES[span["phase"]]["alpha"], "facecolor": colour, "linewidth": 0}
        top, height = (lane + LANE - BELOW, BELOW) if apart else (lane, LANE - BELOW if below else LANE)
        corner = (span["start_ms"], top - LANE / 2)
        ax.add_patch(Rectangle(corner, width, height, **shape))
        thin = 0.7 if width > 0.005 * longest else 0.4
        edge = {"edgecolor": style.FOREGROUND if apart else style.BACKGROUND, "linewidth": thin}
        ax.add_patch(Rectangle(corner, width, height, fill=False, hatch=PHASES[span["phase"]]["hatch"], **edge))
        if not apart and pieces > 1 and width > 0.022 * longest:
            ink = style.text_on(colour) if span["phase"] == "forward" else style.FOREGROUND
            middle = (span["start_ms"] + width / 2, top - LANE / 2 + height / 2)
            ax.text(*middle, str(span["micro_batch"]), ha="center", va="center_baseline", fontsize=9, color=ink)
    ax.set(xlim=(-0.004 * longest, 1.01 * longest), ylim=(len(ranks) - 0.45, -0.55))
    ax.set_yticks(range(len(ranks)), [f"rank {rank}" for rank in ranks])
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    name = ORDERS.get(order, order)
    if order != "data":
        name += f", {pieces} micro-batch{'es' * (pieces > 1)}"
    idle = f": {style.number(100 * idle_share(spans))} % idle" if order != "data" else ""
    ax.set_title(f"{name}{idle}")
    return f"{name}{idle}, {style.quantity(length_ms(spans), 'ms')} long"


def length_ms(spans: Sequence[dict[str, Any]]) -> float:
    """Return the time from the first start to the last end."""
    return max(span["end_ms"] for span in spans) - min(span["start_ms"] for span in spans)


def idle_share(spans: Sequence[dict[str, Any]]) -> float:
    """Return the share of that time in which a rank computes nothing, on average over the ranks."""
    computed = [span for span in spans if span["phase"] in ("forward", "backward")]
    busy = sum(span["end_ms"] - span["start_ms"] for span in computed)
    return 1 - busy / (len({span["rank"] for span in computed}) * length_ms(computed))


def bubbles(run: RunLike) -> picture.Picture:
    """Draw the idle share over the number of micro-batches: the formula as a line, each traced step as a mark."""
    rows = run.rows("bubble", rank=0)
    stages, words = rows[0]["stages"], []
    with style.context():
        drawn, axes = picture.new(height=3.1)
        ax = axes[0, 0]
        pieces = sorted({row["micro_batches"] for row in rows})
        formula = [100 * (stages - 1) / (m + stages - 1) for m in pieces]
        curve = [pieces[0] * (pieces[-1] / pieces[0]) ** (i / 60) for i in range(61)]
        shares = [100 * (stages - 1) / (m + stages - 1) for m in curve]
        ax.plot(curve, shares, color=style.PALE, linewidth=6, solid_capstyle="round", label="(p − 1)/(m + p − 1)")
        looks = {"1f1b": ("o", style.NEUTRAL, 0.92), "gpipe": ("D", style.FOREGROUND, 1.09)}
        for order, (marker, colour, aside) in looks.items():
            for row in (row for row in rows if row["order"] == order):
                m, shares = row["micro_batches"], [100 * share for share in row["bubbles"]]
                median = shares[row["shown"]]
                ax.plot([m * aside] * len(shares), shares, linestyle="", marker=marker, markersize=4, color=colour,
                        alpha=0.5, mew=0, label=ORDERS[order] if m == pieces[0] else None)  # fmt: skip
                ax.plot(m * aside, median, marker="_", markersize=13, mew=2.2, color=colour)
                words.append(f"{ORDERS[order]} with {m} {style.number(median)} %")
        ax.set(xscale="log", xlim=(0.75 * pieces[0], 1.3 * pieces[-1]), ylim=(0, 100))
        ax.set_xticks(pieces, [str(m) for m in pieces])
        ax.xaxis.set_minor_locator(NullLocator())
        turns = "; ranks take turns on the cores" if crowded(run) else ""
        ax.set_xlabel(f"micro-batches m, over p = {stages} stages{turns}")
        ax.set_ylabel("idle time of a rank (%)")
        ax.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=3, handlelength=1.4, columnspacing=1.2)
        line = ", ".join(f"{m} {style.number(f)} %" for m, f in zip(pieces, formula, strict=True))
        return picture.finish(drawn, f"Idle share by micro-batches. Formula: {line}. Measured: {', '.join(words)}.")


def stage_memory(run: RunLike, micro_batches: int) -> picture.Picture:
    """Draw what each stage keeps for the backward pass at most, in both orders, and the formula's value as a stroke."""
    words, found = [], [row for row in run.rows("stage") if row["micro_batches"] == micro_batches]
    orders = [order for order in ORDERS if any(row["order"] == order for row in found)]
    most = max(row["saved_bytes"] for row in found)
    unit = style.quantity(most, "B").split()[-1]
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    with style.context():
        drawn, axes = picture.new(height=2.4, ncols=len(orders), sharex=True, sharey=True)
        for ax, order in zip(axes.flat, orders, strict=True):
            rows = {row["stage"]: row for row in reversed(found) if row["order"] == order}
            for stage, row in rows.items():
                ax.barh(stage, row["saved_bytes"], height=0.62, color=style.rank_colour(row["rank"]), alpha=0.55)
                formula = in_flight(order, micro_batches, row["stages"], stage) * row["micro_batch_bytes"]
                ax.plot([formula] * 2, [stage - 0.4, stage + 0.4], color=style.FOREGROUND, linewidth=2)
                text = style.quantity(row["saved_bytes"], "B")
                ax.annotate(text, (row["saved_bytes"], stage), (5, 0), textcoords="offset points", va="center",
                            fontsize=9.5)  # fmt: skip
                words.append(f"{ORDERS[order]} stage {stage} {text}")
            ax.set_yticks(sorted(rows), [f"stage {stage}" for stage in sorted(rows)])
            ax.set(ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1.42 * most), title=ORDERS[order])
            ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(0, 1.42 * most / scale)
            ax.xaxis.set_major_locator(FixedLocator([tick * scale for tick in ticks]))
            ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.set_xlabel(f"kept for backward ({unit})")
        return picture.finish(drawn, f"Kept for the backward pass, {micro_batches} micro-batches: {', '.join(words)}.")


def in_flight(order: str, micro_batches: int, stages: int, stage: int) -> int:
    """Return how many micro-batches a stage holds at most: all in GPipe's order, as many as are below it in 1F1B."""
    return micro_batches if order == "gpipe" else min(micro_batches, stages - stage)


def scaling(runs: dict[int, RunLike]) -> picture.Picture:
    """Draw throughput over the number of ranks, beside the ideal line; the global batch is the same in all runs.

    Runs under other conditions than that of one rank are left out, and the picture says so.
    """
    left_out = [ranks for ranks, run in runs.items() if conditions(run) != conditions(runs[1])]
    runs = {ranks: run for ranks, run in sorted(runs.items()) if ranks not in left_out}
    speeds = {ranks: last(run, "step_time", "images_per_second") for ranks, run in runs.items()}
    one, words, ((title, _),) = speeds[1], [], by_conditions({str(ranks): run for ranks, run in runs.items()})
    if left_out:
        title += f"\nleft out, measured on other hardware: {style.listed([str(n) for n in left_out])} ranks"
    with style.context():
        drawn, axes = picture.new(height=3.0)
        ax = axes[0, 0]
        ends = [1, max(speeds)]
        ax.plot(ends, [one * n for n in ends], color=style.PALE, linewidth=6, solid_capstyle="round", label="ideal")
        ax.plot(list(speeds), list(speeds.values()), color=style.FOREGROUND, marker="o", label="measured")
        for ranks, speed in speeds.items():
            value, share = style.quantity(speed, "images/s"), f"{style.number(100 * speed / (ranks * one))} %"
            aside = {"xytext": (7, -15), "textcoords": "offset points", "fontsize": 9.5, "va": "center"}
            ax.annotate(f"{value}\n{share} of ideal" if ranks > 1 else value, (ranks, speed), **aside)
            words.append(f"{ranks} rank{'s' * (ranks > 1)} {value}, {share} of ideal")
        ax.set(xlim=(0.85, 1.25 * ends[1]), ylim=(0, 1.08 * max(one * ends[1], *speeds.values())))
        ax.set_title(title)
        ax.set_xticks(list(speeds))
        slow = any(crowded(run) for run in runs.values())
        ax.set_xlabel("data-parallel ranks" + ("; ranks take turns on the cores" if slow else ""))
        ax.set_ylabel("images/s")
        ax.grid(axis="y")
        ax.legend(loc="upper left")
        return picture.finish(drawn, f"Throughput of the same global batch: {'; '.join(words)}.")
