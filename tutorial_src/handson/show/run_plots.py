"""Pictures of what runs measured: memory, time, communication and loss. Runs of unlike hardware never share an axis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from handson.show import picture, style
from handson.show.conditions import Runs, by_conditions, communication, crowded, last, per_rank

LINE = 0.34  # inches a bar with its label takes


def memory_bars(runs: Runs) -> picture.Picture:
    """Draw each rank's peak memory, in the rank's colour: parameters, what is saved for backward, the rest."""
    parts = [("parameters", 1.0), ("saved for backward", 0.55), ("the rest of the peak", 0.18)]
    words = []

    def draw(ax: Axes, group: Runs) -> None:
        y, middles = 0.0, []
        for label, run in group.items():
            peaks = per_rank(run, "memory", "peak_bytes")
            weights, saved = (per_rank(run, "memory", f"{k}_bytes") for k in ("parameter", "activation"))
            begin = y
            for rank, peak in peaks.items():
                first = min(weights.get(rank, 0), peak)
                second = min(saved.get(rank, 0), peak - first)
                left = 0
                for width, (_, alpha) in zip((first, second, peak - first - second), parts, strict=True):
                    colour = style.rank_colour(rank)
                    ax.barh(y, width, left=left, height=0.82, color=colour, alpha=alpha, linewidth=0)
                    left += width
                ax.barh(y, peak, height=0.82, fill=False, edgecolor=style.MUTED, linewidth=0.6)
                y += 1
            middles.append((begin + y - 1) / 2)
            top = max(peaks.values(), default=0)
            _label(ax, style.quantity(top, "B"), top, middles[-1])
            words.append(f"{label} {style.quantity(top, 'B')}")
            y += 0.7
        ax.set_yticks(middles, list(group))
        ax.set_ylim(y - 0.9, -0.8)
        _bytes_axis(ax, "peak memory of each rank")

    def height(group: Runs) -> float:
        return sum(0.125 * max(1.7, len(per_rank(run, "memory", "peak_bytes"))) + 0.11 for run in group.values())

    keys = [Patch(facecolor=style.FOREGROUND, alpha=alpha, label=name) for name, alpha in parts]
    return _stacked(runs, "memory", draw, height, keys, ("Peak memory, the fullest rank of each run", words))


def step_time_bars(runs: Runs) -> picture.Picture:
    """Draw the median step time of each run, each timed step as a dot."""
    words = []

    def draw(ax: Axes, group: Runs) -> None:
        medians = [last(run, "step_time", "median_ms") for run in group.values()]
        ax.barh(range(len(medians)), medians, height=0.62, color=style.PALE)
        for y, (label, run) in enumerate(group.items()):
            steps = last(run, "step_time", "all_ms") or [medians[y]]
            ax.plot(steps, [y] * len(steps), "o", color=style.NEUTRAL, markersize=4, alpha=0.6, mew=0, clip_on=False)
            ax.plot([medians[y]] * 2, [y - 0.31, y + 0.31], color=style.FOREGROUND, linewidth=2)
            text = style.quantity(medians[y], "ms")
            _label(ax, text, max(*steps, medians[y]), y)
            words.append(f"{label} {text}")
        ax.set_yticks(range(len(medians)), list(group))
        ax.set_ylim(len(medians) - 0.4, -0.6)
        ax.set_xlim(0, 1.16 * max(max(last(r, "step_time", "all_ms") or [0]) for r in group.values()))
        turns = "; ranks take turns on the cores" if any(crowded(run) for run in group.values()) else ""
        ax.set_xlabel(f"time of one training step (ms){turns}")

    return _stacked(
        runs, "step_time", draw, lambda group: LINE * len(group), [], ("Median time of a training step", words)
    )


# Collectives are told apart by tone and hatching: hues are the ranks'.
COLLECTIVES = {
    "all_reduce": (style.NEUTRAL, ""),
    "all_gather": (style.PALE, "////"),
    "reduce_scatter": (style.PALE, "\\\\\\\\"),
    "broadcast": (style.BACKGROUND, ""),
    "reduce": (style.BACKGROUND, "||||"),
    "all_to_all": (style.PALE, "xxxx"),
    "send": (style.FOREGROUND, ""),
}
OTHER = (style.BACKGROUND, "----")


def communication_bars(runs: Runs) -> picture.Picture:
    """Draw what the busiest rank sends over the wire in one step, by collective."""
    sums = {label: _sent(run) for label, run in runs.items()}
    sending = {name for sent in sums.values() for name, size in sent.items() if size}
    used = [name for name in COLLECTIVES if name in sending] + sorted(sending - set(COLLECTIVES))
    words = []

    def draw(ax: Axes, group: Runs) -> None:
        for y, label in enumerate(group):
            sent, left = sums[label], 0.0
            for name in used:
                face, hatch = COLLECTIVES.get(name, OTHER)
                size = sent.get(name, 0)
                edge = {"edgecolor": style.FOREGROUND, "linewidth": 0.7 if size else 0}
                ax.barh(y, size, left=left, height=0.62, facecolor=face, hatch=hatch, **edge)
                left += size
            text = style.quantity(left, "B") if left else "nothing"
            _label(ax, text, left, y)
            parts = ", ".join(f"{name} {style.quantity(size, 'B')}" for name, size in sent.items() if size)
            words.append(f"{label} {text}" + (f" ({parts})" if parts else ""))
        ax.set_yticks(range(len(group)), list(group))
        ax.set_ylim(len(group) - 0.4, -0.6)
        _bytes_axis(ax, "sent by the busiest rank in one training step")

    keys = []
    for name in used:
        face, hatch = COLLECTIVES.get(name, OTHER)
        keys.append(Patch(facecolor=face, hatch=hatch, edgecolor=style.FOREGROUND, linewidth=0.7, label=name))
    with style.context():
        return _stacked(
            runs, "communication", draw, lambda group: LINE * len(group), keys, ("Bytes sent in one step", words)
        )


def _sent(run: Any) -> dict[str, float]:
    """Return {collective: bytes} of the rank that sends most."""
    ranks: dict[int, dict[str, float]] = {}
    for row in communication(run):
        of_rank = ranks.setdefault(row["rank"], {})
        of_rank[row["collective"]] = of_rank.get(row["collective"], 0) + row["wire_bytes"]
    return max(ranks.values(), key=lambda sent: sum(sent.values()), default={})


MARKERS = "osD^vP*X<>phd8"


def loss_curves(runs: Runs, *, reference: bool = True, tolerance: float = 1e-5) -> picture.Picture:
    """Draw the loss of every run over the single-process loss; below, how far each is from it."""
    words = []
    with style.context():
        drawn, axes = picture.new(
            height=4.9 if reference else 3.2, nrows=2 if reference else 1, sharex=True,
            height_ratios=[3, 2] if reference else [1],
        )  # fmt: skip
        top, low = axes[0, 0], axes[-1, 0]
        single: dict[int, float] = {}
        for index, (label, run) in enumerate(runs.items()):
            rows = run.rows("loss", rank=0)
            steps = [row["step"] for row in rows]
            marker = {
                "marker": MARKERS[index % len(MARKERS)], "markersize": 6, "markerfacecolor": "none",
                "color": style.FOREGROUND if index % 2 == 0 else style.NEUTRAL, "linewidth": 0.9,
            }  # fmt: skip
            top.plot(steps, [row["loss"] for row in rows], label=label, **marker)
            known = {row["step"]: row["reference"] for row in rows if row.get("reference") is not None}
            single = single or known
            gaps = {row["step"]: abs(row["loss"] - known[row["step"]]) for row in rows if row["step"] in known}
            if reference and gaps:
                # A logarithmic axis has no place for an exact zero: it sits on the floor, and the axis says so.
                low.plot(list(gaps), [max(gap, _FLOOR) for gap in gaps.values()], **marker)
            words.append(f"{label} {style.number(max(gaps.values())) if gaps else 'not compared'}")
        if reference and single:
            top.plot(
                list(single), list(single.values()), color=style.PALE, linewidth=7, zorder=0,
                solid_capstyle="round", label="one process",
            )  # fmt: skip
            low.axhline(tolerance, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1)
            low.annotate(
                f"tolerance {style.number(tolerance)}", (1, tolerance), (0, 3), ha="right", fontsize=9.5,
                xycoords=("axes fraction", "data"), textcoords="offset points", color=style.MUTED,
            )  # fmt: skip
            low.set(yscale="log", ylim=(_FLOOR / 2, max(tolerance * 8, low.get_ylim()[1])))
            low.yaxis.set_major_formatter(FuncFormatter(lambda y, _: "0" if y <= _FLOOR else _power(y)))
            low.yaxis.set_minor_locator(NullLocator())
            low.set_ylabel("|difference|")
        top.set_ylabel("training loss")
        low.set_xlabel("training step")
        low.xaxis.set_major_locator(MaxNLocator(integer=True))
        for ax in axes[:, 0]:
            ax.grid(axis="y")
        drawn.legend(loc="outside upper left", ncols=4, handlelength=1.4, columnspacing=1.2)
        curve = list(single.values()) or [row["loss"] for row in next(iter(runs.values())).rows("loss", rank=0)]
        alt = f"Training loss goes from {style.number(curve[0])} to {style.number(curve[-1])} in {len(curve)} steps"
        compared = f"; largest difference from one process: {', '.join(words)}" if reference else ""
        return picture.finish(drawn, f"{alt}{compared}.")


_FLOOR = 1e-9


def _power(value: float) -> str:
    return style.number(value).split(" × ")[-1] if value < 1e-3 else style.number(value)


def _label(ax: Axes, text: str, x: float, y: float) -> None:
    """Write a bar's value just right of its end."""
    ax.annotate(text, (x, y), (6, 0), textcoords="offset points", va="center", fontsize=10)


def _bytes_axis(ax: Axes, what: str) -> None:
    """Label an axis of bytes in the one binary unit that suits its length, from zero, with room for the values."""
    end = ax.dataLim.x1 or 1
    unit = style.quantity(end, "B").split()[-1]
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB", "PiB").index(unit)
    ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 1.05 * end / scale)
    ax.set_xticks([t * scale for t in ticks], [f"{t:g}" for t in ticks])
    ax.set_xlim(0, end * 1.18)
    ax.set_xlabel(f"{what} ({unit})")


def _stacked(
    runs: Runs,
    kind: str,
    draw: Callable[[Axes, Runs], None],
    height: Callable[[Runs], float],
    keys: Sequence[Patch],
    alt: tuple[str, list[str]],
) -> picture.Picture:
    """Draw one panel for each set of conditions, as high as its bars; `draw` adds its words to the second of `alt`."""
    groups = by_conditions({label: run for label, run in runs.items() if run.rows(kind)})
    if not groups:
        raise LookupError(f"none of the runs {', '.join(runs)} recorded {kind}")
    heights = [0.75 + height(group) for _, group in groups]
    opening, words = alt
    with style.context():
        lines = -(-len(keys) // 3)
        drawn, axes = picture.new(height=sum(heights) + 0.22 * lines, nrows=len(groups), height_ratios=heights)
        said = []
        for ax, (title, group) in zip(axes.flat, groups, strict=True):
            before = len(words)
            draw(ax, group)
            ax.tick_params(axis="y", length=0)
            ax.grid(axis="x")
            ax.spines["left"].set_visible(False)
            ax.set_title(title, fontsize=10, color=style.MUTED)
            said.append(f"on {title}: {', '.join(words[before:])}")
        if keys:
            drawn.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1.5, columnspacing=1.2)
        return picture.finish(drawn, f"{opening}, {'; '.join(said)}.")
