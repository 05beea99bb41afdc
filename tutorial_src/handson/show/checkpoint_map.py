"""The picture of checkpoint schedules: a row a budget, a column a stage, darker the more often a stage runs again."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle

from handson.show import picture, style
from handson.show.conditions import RunLike, hardware

TONES = (style.BACKGROUND, style.PALE, style.NEUTRAL, style.FOREGROUND)
ROW = 0.27  # inches


def schedules(run: RunLike) -> list[dict[str, Any]]:
    """Return Rotor's points of the sweep over budgets, the largest budget first."""
    rows = [row for row in run.rows("ckpt_point") if row["method"] == "rotor" and not row["beside"]]
    if not rows:
        raise LookupError(f"{run.command} recorded no schedules")
    return sorted(rows, key=lambda row: -row["budget_bytes"])


def recompute_map(run: RunLike) -> picture.Picture:
    """Draw which stages each schedule runs again; above, what each stage would save for backward."""
    rows, stages = schedules(run), run.rows("ckpt_stage")
    most = max(max(row["again"]) for row in rows if row["feasible"])
    with style.context():
        heights = [0.8, ROW * len(rows)]
        drawn, axes = picture.new(height=0.95 + sum(heights), nrows=2, sharex=True, height_ratios=heights)
        top, grid = axes[0, 0], axes[1, 0]
        saved = [stage["saved_bytes"] for stage in stages]
        unit = style.quantity(max(saved), "B").split()[-1]
        scale = 1024 ** ("B", "KiB", "MiB", "GiB").index(unit)
        top.bar(range(len(saved)), [size / scale for size in saved], width=0.8, color=style.NEUTRAL)
        top.set_ylabel(f"saved\n({unit})")
        top.tick_params(axis="x", length=0)
        words = [_row(grid, y, row, len(stages)) for y, row in enumerate(rows)]
        grid.set(xlim=(-0.6, len(stages) - 0.4), ylim=(len(rows) - 0.4, -0.6))
        grid.set_yticks(range(len(rows)), [style.quantity(row["budget_bytes"], "B") for row in rows])
        grid.set_ylabel("memory budget")
        _groups(grid, [stage["name"] for stage in stages])
        grid.spines[["left", "bottom"]].set_visible(False)
        grid.tick_params(length=0)
        grid.annotate(
            "time", (1, 1), (6, 3), xycoords="axes fraction", textcoords="offset points", color=style.MUTED, fontsize=10
        )
        names = ["kept", "runs again", "runs again twice", f"{most} times" if most > 3 else "three times"]
        keys = [
            Patch(facecolor=tone, edgecolor=style.MUTED, linewidth=0.6, label=name)
            for tone, name in list(zip(TONES, names, strict=True))[: most + 1]
        ]
        drawn.legend(handles=keys, loc="outside upper left", ncols=4, handlelength=1.2, columnspacing=1.2)
        alt = (
            f"Which of {len(stages)} stages run again under each memory budget, on {hardware(run)}: {'; '.join(words)}."
        )
        return picture.finish(drawn, alt)


def _row(ax: Axes, y: int, row: dict[str, Any], stages: int) -> str:
    """Draw one budget's row and return it in words."""
    budget = style.quantity(row["budget_bytes"], "B")
    if not row["feasible"]:
        ax.text(-0.4, y, "infeasible: no schedule needs so little", va="center", fontsize=10, color=style.FAILURE)
        return f"{budget} infeasible"
    for x, count in enumerate(row["again"]):
        face = TONES[min(count, len(TONES) - 1)]
        ax.add_patch(Rectangle((x - 0.4, y - 0.38), 0.8, 0.76, facecolor=face, edgecolor=style.MUTED, linewidth=0.5))
    time = f"{row['relative']:.2f}×"
    ax.annotate(
        time, (1, y), (6, 0), xycoords=("axes fraction", "data"), textcoords="offset points", va="center", fontsize=10
    )
    again = sum(map(bool, row["again"]))
    return f"{budget}: {again} stage{'s' * (again != 1)}, {time} the time"


def _groups(ax: Axes, names: list[str]) -> None:
    """Name the parts of the network under the columns: each layer of a ResNet, every few blocks of a GPT."""
    parts = [(key, [x for x, _ in group]) for key, group in groupby(enumerate(names), key=lambda pair: part(pair[1]))]
    named = [(key, columns) for key, columns in parts if re.search(r"\d", key) and key != "conv1" and key != "bn1"]
    step = max(1, -(-len(named) // 8))
    shown = named[::step]
    ax.set_xticks([sum(columns) / len(columns) for _, columns in shown], [key for key, _ in shown], fontsize=10)


def part(name: str) -> str:
    """Return the part of a network that a node belongs to: layer2 for layer2_0_conv1, h.3 for transformer_h_3_ln_1."""
    if found := re.match(r"(layer\d+)_", name):
        return found.group(1)
    if found := re.match(r"transformer_h_(\d+)_", name):
        return f"h.{found.group(1)}"
    return name
