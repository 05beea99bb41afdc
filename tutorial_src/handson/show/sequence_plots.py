"""Pictures of sequence parallelism: how K and V travel round the ring, and what is kept for the backward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from handson.show import picture, style
from handson.show.conditions import RunLike, Runs, by_conditions


def ring_travel(run: RunLike) -> picture.Picture:
    """Draw whose K and V each rank held after each hop, and which block of scores that let it compute.

    Reads the rows "travel" {rank, hops, holds}: what really arrived, not what should have.
    """
    held = {(row["hops"], row["rank"]): row["holds"] for row in run.rows("travel")}
    ranks = run.ranks
    said = "; ".join(
        f"after {hops} hop{'s' * (hops != 1)} ranks 0 to {ranks - 1} hold K, V of "
        + ", ".join(str(held[hops, rank]) for rank in range(ranks))
        for hops in range(ranks)
    )
    with style.context():
        drawn, axes = picture.new(height=3.5, ncols=2)
        drawn.get_layout_engine().set(wspace=0.12)
        left, right = axes[0]
        for (hops, rank), owner in held.items():
            _block(left, rank, hops, owner, f"K$_{owner}$ V$_{owner}$")
            _block(right, owner, rank, owner, str(hops))
            if hops + 1 < ranks:
                _hop(left, rank, hops, ranks)
        _axes(left, ranks, "on rank", "after hops")
        left.set_title("which K and V a rank holds")
        _axes(right, ranks, "keys of rank", "queries of rank")
        right.set_title("scores: at which hop")
        return picture.finish(drawn, f"K and V travel round a ring of {ranks} ranks: {said}.")


def _block(ax: Axes, x: float, y: float, owner: int, text: str) -> None:
    colour = style.rank_colour(owner)
    ax.add_patch(Rectangle((x + 0.06, y + 0.14), 0.88, 0.72, facecolor=colour, edgecolor="none"))
    ax.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=style.text_on(colour), fontsize=10)


def _hop(ax: Axes, rank: int, hops: int, ranks: int) -> None:
    """Draw an arrow to the next rank; the last rank's leaves on the right and comes in on the left."""
    arrow = {"arrowstyle": "-|>", "mutation_scale": 8, "color": style.MUTED, "linewidth": 1, "shrinkA": 0, "shrinkB": 0}
    top, bottom = hops + 0.86, hops + 1.14
    if rank + 1 < ranks:
        ax.add_patch(FancyArrowPatch((rank + 0.7, top), (rank + 1.3, bottom), **arrow))
        return
    ax.plot([rank + 0.7, rank + 1.0], [top, (top + bottom) / 2], color=style.MUTED, linewidth=1, clip_on=False)
    ax.add_patch(FancyArrowPatch((0.0, (top + bottom) / 2), (0.3, bottom), **arrow))


def _axes(ax: Axes, ranks: int, across: str, down: str) -> None:
    middles = [index + 0.5 for index in range(ranks)]
    ax.set(xlim=(0, ranks), ylim=(ranks, 0), aspect="equal", xlabel=across, ylabel=down)
    ax.set_xticks(middles, range(ranks))
    ax.set_yticks(middles, range(ranks))
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


# Parts of what is kept, told apart by tone and hatching: hues are the ranks'.
PARTS: Mapping[str, tuple[str, str]] = {
    "scores": (style.FOREGROUND, ""),
    "rest of attention": (style.NEUTRAL, ""),
    "MLP": (style.PALE, ""),
    "heads, embedding": (style.PALE, "////"),
}


def kept_bars(runs: Runs) -> picture.Picture:
    """Draw what rank 0 keeps for the backward pass: the formula's parts as a bar, what was counted as a mark.

    Reads the rows "formula" {about: "kept", what, expected, counted, terms: [[name, formula, bytes]]}.
    """
    words = []
    groups = by_conditions(runs)
    with style.context():
        height = sum(0.75 + 0.36 * len(group) for _, group in groups)
        drawn, axes = picture.new(height=height + 0.3, nrows=len(groups), height_ratios=[len(g) + 2 for _, g in groups])
        for ax, (title, group) in zip(axes.flat, groups, strict=True):
            most = 0.0
            for y, (label, run) in enumerate(group.items()):
                parts, counted = kept_parts(run)
                left = 0.0
                for name, size in parts.items():
                    face, hatch = PARTS[name]
                    ax.barh(y, size, left=left, height=0.62, facecolor=face, hatch=hatch, edgecolor=style.FOREGROUND,
                            linewidth=0.6 if size else 0)  # fmt: skip
                    left += size
                ax.plot([counted] * 2, [y - 0.42, y + 0.42], color=style.FOREGROUND, linewidth=2.2)
                text = style.quantity(counted, "B")
                ax.annotate(text, (max(left, counted), y), (7, 0), textcoords="offset points", va="center", fontsize=10)
                most = max(most, left, counted)
                shares = ", ".join(f"{name} {style.quantity(size, 'B')}" for name, size in parts.items() if size)
                words.append(f"{label} on {title}: {text} counted, by formula {shares}")
            ax.set_yticks(range(len(group)), list(group))
            ax.set_ylim(len(group) - 0.4, -0.6)
            unit = style.quantity(most, "B").split()[-1]
            scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
            ticks = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, 1.1 * most / scale)
            ax.set_xticks([tick * scale for tick in ticks], [f"{tick:g}" for tick in ticks])
            ax.set_xlabel(f"kept for backward on rank 0 ({unit})")
            ax.set_xlim(0, 1.2 * most)
            ax.set_title(title, fontsize=10, color=style.MUTED)
            ax.tick_params(axis="y", length=0)
            ax.spines["left"].set_visible(False)
            ax.grid(axis="x")
        keys = [
            Patch(facecolor=face, hatch=hatch, edgecolor=style.FOREGROUND, linewidth=0.6, label=name)
            for name, (face, hatch) in PARTS.items()
        ]
        drawn.legend(handles=keys, loc="outside upper left", ncols=2, handlelength=1.5, columnspacing=1.2)
        return picture.finish(drawn, f"Kept for the backward pass, by formula and counted. {'; '.join(words)}.")


def kept_parts(run: RunLike) -> tuple[dict[str, float], float]:
    """Return the formula's bytes by part of the model, and the bytes that were counted over the whole step."""
    rows = [row for row in run.rows("formula", rank=0) if row["about"] == "kept"]
    layers = run.value("mesh", "layers") if hasattr(run, "value") else run.rows("mesh", rank=0)[-1]["layers"]
    parts: dict[str, float] = dict.fromkeys(PARTS, 0.0)
    whole: dict[str, Any] = {}
    for row in rows:
        if not row["terms"]:
            whole = row
        for name, _, size in row["terms"]:
            if row["what"].startswith("attention"):
                parts["scores" if name == "scores" else "rest of attention"] += size * len(layers)
            elif row["what"].startswith("MLP"):
                parts["MLP"] += size * len(layers)
            else:
                parts["heads, embedding"] += size
    return parts, whole["counted"]


WINDOW = 20  # steps that the running mean is taken over


def learning(run: RunLike, floor: float, what: str) -> picture.Picture:
    """Draw a long training run: each step's loss, its running mean, and the least loss that guessing could reach."""
    losses = [row["loss"] for row in run.rows("loss", rank=0)]
    steps = range(1, len(losses) + 1)
    means = [sum(losses[max(0, i - WINDOW) : i]) / min(i, WINDOW) for i in steps]
    with style.context():
        drawn, axes = picture.new(height=2.9)
        ax = axes[0, 0]
        ax.plot(steps, losses, color=style.PALE, linewidth=1.2, label="each step")
        ax.plot(steps, means, color=style.FOREGROUND, linewidth=2, label=f"mean of {WINDOW} steps")
        ax.axhline(floor, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.annotate(what, (1, floor), (0, 4), ha="right", fontsize=10, color=style.MUTED, textcoords="offset points",
                    xycoords=("axes fraction", "data"))  # fmt: skip
        ax.set(ylim=(0, None), xlabel="training step", ylabel="training loss")
        ax.grid(axis="y")
        ax.legend(loc="lower left")
        return picture.finish(
            drawn,
            f"Training loss over {len(losses)} steps: {style.number(means[0])} at the first, "
            f"{style.number(means[-1])} over the last {WINDOW}; {what}: {style.number(floor)}.",
        )
