"""Pictures of a solver's plans: cost against memory budget, predictions side by side, prediction and measurement."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from handson.show import picture, style
from handson.show.plan_network import network

__all__ = ["budget_curve", "network", "predicted_measured", "step_bars"]

Row = Mapping[str, Any]

# Costs are told apart by tone and hatching: hues are the cuts' and the ranks'.
PARTS = {
    "compute": (style.NEUTRAL, ""),
    "communication": (style.PALE, "////"),
    "resharding": (style.BACKGROUND, "xxxx"),
}


def budget_curve(plans: Iterable[Row]) -> picture.Picture:
    """Draw the predicted cost of a step against the memory budget; each plan from the memory it uses to its budget.

    Args:
        plans: rows "plan" of one model on one mesh; `status` "infeasible" and no `objective_ms` where there is none.

    Raises:
        ValueError: when no plan is feasible.
    """
    plans = list(plans)
    solved = sorted((plan for plan in plans if plan.get("objective_ms") is not None), key=lambda p: p["memory_bytes"])
    if not solved:
        raise ValueError("none of these plans fits its budget, there is nothing to draw")
    refused = [plan["budget_bytes"] for plan in plans if plan.get("objective_ms") is None]
    given = [plan.get("budget_bytes") or plan["memory_bytes"] for plan in solved]
    unit = style.quantity(max(given), "B").split()[-1]
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.1)
        ax = axes[0, 0]
        for plan in solved:
            used, cost = plan["memory_bytes"] / scale, plan["objective_ms"]
            end = (plan.get("budget_bytes") or plan["memory_bytes"]) / scale
            ax.plot([used, end], [cost] * 2, color=style.PALE, linewidth=5, solid_capstyle="round", zorder=1)
            ax.plot(used, cost, "o", color=style.FOREGROUND, markersize=7, zorder=3)
            if plan.get("budget_bytes"):
                ax.plot(end, cost, "|", color=style.FOREGROUND, markersize=13, mew=2, zorder=3)
            budget = style.quantity(plan["budget_bytes"], "B") if plan.get("budget_bytes") else "no budget"
            words.append(f"{budget}: {style.quantity(cost, 'ms')}, {style.quantity(plan['memory_bytes'], 'B')} used")
        costs = [plan["objective_ms"] for plan in solved]
        room = 0.2 * (max(costs) - min(costs)) or 0.1 * max(costs)
        floor = min(costs) - room
        for budget in refused:
            ax.plot(budget / scale, floor, "x", color=style.FAILURE, markersize=9, mew=2, clip_on=False, zorder=4)
            words.append(f"{style.quantity(budget, 'B')}: infeasible")
        ax.set(
            ylim=(floor, max(costs) + room),
            xlabel=f"memory of a rank ({unit})",
            ylabel="predicted step (ms)",
        )
        ax.xaxis.set_major_locator(MaxNLocator(6))
        ax.grid()
        keys = [
            Line2D([], [], marker="o", linestyle="", color=style.FOREGROUND, label="used by the plan"),
            Line2D([], [], marker="|", linestyle="", color=style.FOREGROUND, markersize=12, mew=2, label="its budget"),
        ]
        if refused:
            keys.append(Line2D([], [], marker="x", linestyle="", color=style.FAILURE, mew=2, label="no plan fits"))
        drawn.legend(handles=keys, loc="outside upper left", ncols=3, handlelength=1.2, columnspacing=1.2)
        return picture.finish(drawn, f"Predicted step by memory budget: {'; '.join(words)}.")


def step_bars(plans: Iterable[Row], *, kept: str = "") -> picture.Picture:
    """Draw the predicted step of several plans in its parts.

    Args:
        plans: rows "plan"; those without `objective_ms` are left out.
        kept: what to call a stroke at each plan's `kept_ms`, the step if another plan were kept; no stroke where empty.

    Raises:
        ValueError: when no plan is feasible.
    """
    plans = [plan for plan in plans if plan.get("objective_ms") is not None]
    if not plans:
        raise ValueError("none of these plans fits its budget, there is nothing to draw")
    words = []
    longest = max(max(plan["objective_ms"], plan["kept_ms"] if kept else 0) for plan in plans)
    with style.context():
        drawn, axes = picture.new(height=1.1 + 0.4 * len(plans))
        ax = axes[0, 0]
        for y, plan in enumerate(plans):
            text = style.quantity(plan["objective_ms"], "ms")
            _parts(ax, plan, y, 0.6)
            at = plan["objective_ms"]
            if kept:
                ax.plot([plan["kept_ms"]] * 2, [y - 0.36, y + 0.36], color=style.FOREGROUND, linewidth=2.2)
                other = style.quantity(plan["kept_ms"], "ms")
                if plan["kept_ms"] - at >= 0.16 * longest:
                    _value(ax, plan["kept_ms"], y, other, style.MUTED)
                else:
                    at = max(at, plan["kept_ms"])  # no room between the bar and the stroke
            _value(ax, at, y, text if not kept or at == plan["objective_ms"] else f"{text}, stroke {other}")
            text += f", {kept} {style.quantity(plan['kept_ms'], 'ms')}" if kept else ""
            words.append(f"{plan['plan']}: {text}")
        ax.set_yticks(range(len(plans)), [plan["plan"] for plan in plans])
        ax.set(ylim=(len(plans) - 0.4, -0.6), xlim=(0, 1.17 * longest), xlabel="predicted training step (ms)")
        keys = _parts_legend(plans, "")
        if kept:
            keys.append(Line2D([], [], marker="|", linestyle="", color=style.FOREGROUND, ms=13, mew=2.2, label=kept))
        _finish_bars(drawn, ax, keys)
        return picture.finish(drawn, f"Predicted training step. {'; '.join(words)}.")


def predicted_measured(rows: Iterable[Row], *, title: str = "") -> picture.Picture:
    """Draw for each plan the step that was predicted, in its parts, above the one that was measured.

    Args:
        rows: {"plan", "measured_ms" or None, "predicted_ms" or None, and for the parts of the prediction
            "compute_ms", "communication_ms", "resharding_ms"}, all of one device and preset.
        title: what ran where.

    Raises:
        ValueError: when there is no row.
    """
    rows = list(rows)
    if not rows:
        raise ValueError("there is no plan to draw")
    words = []
    with style.context():
        drawn, axes = picture.new(height=1.1 + 0.72 * len(rows))
        ax = axes[0, 0]
        for y, row in enumerate(rows):
            said = []
            if row.get("predicted_ms") is not None:
                _parts(ax, row, y - 0.2, 0.34)
                said.append(f"predicted {style.quantity(row['predicted_ms'], 'ms')}")
                _value(ax, row["predicted_ms"], y - 0.2, said[-1])
            if row.get("measured_ms") is not None:
                ax.barh(y + 0.2, row["measured_ms"], height=0.34, color=style.FOREGROUND, linewidth=0)
                said.append(f"measured {style.quantity(row['measured_ms'], 'ms')}")
                _value(ax, row["measured_ms"], y + 0.2, said[-1])
            words.append(f"{row['plan']} {', '.join(said)}")
        longest = max(row.get(f"{what}_ms") or 0 for row in rows for what in ("predicted", "measured"))
        ax.set_yticks(range(len(rows)), [row["plan"] for row in rows])
        ax.set(ylim=(len(rows) - 0.45, -0.55), xlim=(0, 1.34 * longest), xlabel="time of one training step (ms)")
        if title:
            ax.set_title(title, fontsize=10, color=style.MUTED)
        keys = _parts_legend([row for row in rows if row.get("predicted_ms") is not None], "predicted ")
        if any(row.get("measured_ms") is not None for row in rows):
            keys.append(Patch(facecolor=style.FOREGROUND, label="measured"))
        _finish_bars(drawn, ax, keys)
        return picture.finish(drawn, f"One training step{f', {title}' if title else ''}: {'; '.join(words)}.")


def _parts(ax: Axes, row: Row, y: float, height: float) -> None:
    """One bar: compute, communication and resharding, end to end."""
    left = 0.0
    for part, (face, hatch) in PARTS.items():
        size = row.get(f"{part}_ms") or 0
        line = {"edgecolor": style.FOREGROUND, "linewidth": 0.7 if size else 0}
        ax.barh(y, size, left=left, height=height, facecolor=face, hatch=hatch, **line)
        left += size


def _parts_legend(rows: Sequence[Row], before: str) -> list[Any]:
    line = {"edgecolor": style.FOREGROUND, "linewidth": 0.7}
    return [
        Patch(facecolor=face, hatch=hatch, label=f"{before}{part}", **line)
        for part, (face, hatch) in PARTS.items()
        if any(row.get(f"{part}_ms") for row in rows)
    ]


def _finish_bars(drawn: picture.Picture, ax: Axes, keys: list[Any]) -> None:
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.grid(axis="x")
    drawn.legend(handles=keys, loc="outside upper left", ncols=2, handlelength=1.5, columnspacing=1.2)


def _value(ax: Axes, value: float, y: float, text: str, colour: str = style.FOREGROUND) -> None:
    ax.annotate(text, (value, y), (5, 0), textcoords="offset points", va="center", fontsize=9.5, color=colour)
