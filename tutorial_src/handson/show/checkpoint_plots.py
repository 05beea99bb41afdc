"""Curves of what memory budgets cost: peak against budget, time against peak, throughput against batch size."""

from __future__ import annotations

from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from handson.show import picture, style
from handson.show.checkpoint_map import schedules
from handson.show.conditions import RunLike, hardware

# method -> (name, marker, line, colour). Hues are the ranks'; methods are told apart by tone and marker.
METHODS = {
    "rotor": ("Rotor", "o", "-", style.FOREGROUND),
    "none": ("no checkpoint", "*", "", style.FOREGROUND),
    "blocks": ("blocks by hand", "s", "--", style.NEUTRAL),
    "chen": ("Chen's solver", "D", "", style.NEUTRAL),
    "compile": ("torch.compile", "^", ":", style.NEUTRAL),
}


def peak_against_budget(run: RunLike) -> picture.Picture:
    """Draw the predicted and the measured peak of every budget; infeasible budgets are shaded."""
    rows = schedules(run)
    fitting = [row for row in rows if row["feasible"]]
    budgets = [row["budget_bytes"] for row in fitting]
    with style.context():
        drawn, axes = picture.new(height=3.2)
        ax = axes[0, 0]
        end = 1.04 * max(budgets)
        ax.plot([0, end], [0, end], color=style.PALE, linewidth=1.2, label="the budget itself")
        for field, marker, colour in (("predicted", "x", style.NEUTRAL), ("measured", "o", style.FOREGROUND)):
            peaks = [row["predicted_bytes" if field == "predicted" else "peak_bytes"] for row in fitting]
            ax.plot(budgets, peaks, marker, color=colour, markersize=6.5, markerfacecolor="none", label=field)
        smallest = min(budgets)
        ax.axvspan(0, smallest, color=style.FAILURE, alpha=0.10, linewidth=0)
        ax.annotate(
            "infeasible", (smallest / 2, 0.96), xycoords=("data", "axes fraction"), ha="center", va="top",
            rotation=90, color=style.FAILURE, fontsize=10,
        )  # fmt: skip
        plain = _points(run, "none")[0]["peak_bytes"]
        ax.axhline(plain, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1)
        ax.annotate(
            "no checkpoint", (0.99, plain), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
            ha="right", color=style.MUTED, fontsize=9.5,
        )  # fmt: skip
        _bytes(ax.xaxis, end, ax.set_xlabel, "memory budget")
        _bytes(ax.yaxis, end, ax.set_ylabel, "peak of activations")
        ax.set(xlim=(0, end), ylim=(0, end))
        ax.legend(loc="lower right")
        ax.grid()
        said = [
            f"{style.quantity(row['budget_bytes'], 'B')} gives {style.quantity(row['peak_bytes'], 'B')}"
            for row in fitting
        ]
        least = style.quantity(smallest, "B")
        alt = f"Peak of activations against the memory budget, on {hardware(run)}: {', '.join(said)}; "
        return picture.finish(drawn, f"{alt}budgets below {least} are infeasible.")


def time_against_peak(run: RunLike) -> picture.Picture:
    """Draw the relative step time over the measured peak, of Rotor's schedules and of every baseline."""
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.5)
        ax = axes[0, 0]
        end = 1.06 * max(row["peak_bytes"] for row in run.rows("ckpt_point") if row["feasible"])
        for method, (name, marker, line, colour) in METHODS.items():
            points = sorted(_points(run, method, beside=True), key=lambda row: row["peak_bytes"])
            if not points:
                continue
            face = colour if method in ("rotor", "none") else style.BACKGROUND
            size = 11 if marker == "*" else 6
            look = {"color": colour, "markerfacecolor": face, "markersize": size, "linewidth": 1.2, "label": name}
            peaks, times = [row["peak_bytes"] for row in points], [row["relative"] for row in points]
            ax.plot(peaks, times, marker=marker, linestyle=line, zorder=3 if method == "rotor" else 2, **look)
            said = [f"{style.quantity(row['peak_bytes'], 'B')} at {row['relative']:.2f}×" for row in points]
            words.append(f"{name} {', '.join(said)}")
        _bytes(ax.xaxis, end, ax.set_xlabel, "measured peak of activations")
        ax.set_xlim(0, end)
        ax.set_ylabel("step time ÷ no checkpoint")
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:.2f}×"))
        ax.grid()
        drawn.legend(loc="outside upper left", ncols=3, columnspacing=1.2)
        alt = f"Relative step time against the measured peak, on {hardware(run)}: {'; '.join(words)}."
        return picture.finish(drawn, alt)


def throughput_against_batch(run: RunLike, unit: str = "images/s") -> picture.Picture:
    """Draw throughput over batch size under one memory cap, without checkpoints and with the solver."""
    rows, setting = run.rows("ckpt_batch"), run.rows("ckpt_batch_setting")[-1]
    plain = [row for row in rows if row["method"] == "none"]
    solved = plain[-1:] + [row for row in rows if row["method"] == "rotor"]
    with style.context():
        drawn, axes = picture.new(height=3.3)
        ax = axes[0, 0]
        curves = (("with Rotor", solved, "o-", style.FOREGROUND), ("no checkpoint", plain, "s--", style.NEUTRAL))
        for label, points, line, colour in curves:
            batches, throughput = [row["batch"] for row in points], [row["per_second"] for row in points]
            ax.plot(batches, throughput, line, color=colour, markersize=6, linewidth=1.2, label=label)
        top = 1.1 * max(row["per_second"] for row in rows)
        for batch, words in (
            (setting["plain_batch"], "largest without"),
            (setting["rotor_batch"], "largest with Rotor"),
        ):
            ax.axvline(batch, color=style.MUTED, linestyle=(0, (4, 3)), linewidth=1)
            ax.annotate(
                f"{words}: {batch}", (batch, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
                ha="left" if batch < 0.5 * setting["rotor_batch"] else "right", color=style.MUTED, fontsize=9.5,
            )  # fmt: skip
        ax.set(xlabel="batch size", ylabel=f"throughput ({unit})", ylim=(0, top), xlim=(0, None))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid()
        ax.legend(loc="lower center")
        said = [f"{row['batch']}: {style.quantity(row['per_second'], unit)}" for row in plain]
        more = [f"{row['batch']}: {style.quantity(row['per_second'], unit)}" for row in solved[1:]]
        cap = style.quantity(setting["cap_bytes"], "B")
        alt = f"Throughput against batch size under {cap}, on {hardware(run)}. Without checkpoints {', '.join(said)}; "
        return picture.finish(drawn, f"{alt}with Rotor {', '.join(more)}.")


def _points(run: RunLike, method: str, *, beside: bool = False) -> list[dict[str, Any]]:
    """Return a method's feasible points; those that Rotor found beside a baseline only where they are asked for."""
    rows = [row for row in run.rows("ckpt_point") if row["method"] == method and row["feasible"]]
    return [row for row in rows if beside or not row["beside"]]


def _bytes(axis: Any, end: float, label: Any, what: str) -> None:
    """Label an axis of bytes in the one binary unit that suits its length."""
    unit = style.quantity(end, "B").split()[-1]
    scale = 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    ticks = [
        tick for tick in MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(0, end / scale) if tick * scale <= end
    ]
    axis.set_ticks([tick * scale for tick in ticks], [f"{tick:g}" for tick in ticks])
    label(f"{what} ({unit})")
