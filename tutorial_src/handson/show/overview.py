"""The picture of the landing page: one training step, divided every way that the lessons measured."""

from __future__ import annotations

import io
from collections.abc import Iterable

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from handson.show import picture, style
from handson.show.conditions import RunLike, by_conditions, crowded, largest, last, per_rank

MEASURED = ("mesh", "memory", "step_time", "parity")


def ways(runs: Iterable[RunLike]) -> dict[str, RunLike]:
    """Return the runs that divided the same step, by what they divided, the one that needs most memory first.

    Taken are the runs that measured memory, time and parity, of the largest group made under the same conditions
    (hardware and preset), on one rank or on as many as most of the group have. A way that occurs twice is shown once.

    Raises:
        LookupError: when no run measured all of these.
    """
    measured = {str(index): run for index, run in enumerate(runs) if all(run.rows(kind) for kind in MEASURED)}
    if not measured:
        raise LookupError(f"none of the runs recorded {style.listed(MEASURED)}")
    _, group = max(by_conditions(measured), key=lambda named: len(named[1]))
    counts = [run.ranks for run in group.values()]
    full = max(set(counts), key=lambda count: (counts.count(count), count))
    kept = {division(run): run for run in group.values() if run.ranks in (1, full)}
    return dict(sorted(kept.items(), key=lambda item: -_peak(item[1])))


def division(run: RunLike) -> str:
    """Return what a run divided over its ranks: `data 2 × 1D 2`; `one GPU` or `one process` where nothing was."""
    mesh = run.rows("mesh")[0]
    mode = mesh["title"].rpartition("(")[2].rstrip(")").upper()
    sizes = mesh["sizes"]
    parts = [f"{name} {sizes[name]}" for name in ("data", "pipeline") if sizes.get(name, 1) > 1]
    parts += [f"{mode} {sizes['tensor']}"] if sizes.get("tensor", 1) > 1 else []
    return " × ".join(parts) or f"one {_unit(run)}"


def sentence(runs: dict[str, RunLike]) -> str:
    """Return what the picture shows, with its numbers, in two sentences."""
    first = next(iter(runs.values()))
    unit, full = _unit(first), max(run.ranks for run in runs.values())
    peaks = [style.quantity(_peak(run), "B") for run in (first, list(runs.values())[-1])]
    worst = max(last(run, "parity", "max_loss_difference") for run in runs.values())
    one = sum(run.ranks == 1 for run in runs.values())
    whole = f"on one {unit} and " if one else ""
    several = f"{full} {unit}{'es' if unit == 'process' else 's'}"
    return (
        f"One training step of one model, {whole}divided over {several} in {len(runs) - one} ways. The fullest {unit} "
        f"needs {peaks[0]} in the first and {peaks[1]} in the last. All of them train the same model: over "
        f"{last(first, 'parity', 'steps')} steps no loss is further than {style.number(worst)} from one process's."
    )


def overview(runs: dict[str, RunLike]) -> picture.Picture:
    """Draw each rank's peak memory, one bar in the rank's colour, with the step time beside it."""
    with style.context():
        drawn, axes = picture.new(height=0.55 + 0.3 * len(runs))
        said = _draw(axes[0, 0], runs)
        return picture.finish(drawn, f"Peak memory of each rank and time of one training step: {'; '.join(said)}.")


def social_card(runs: dict[str, RunLike], title: str, lead: str) -> bytes:
    """Return the PNG of 1200 × 630 pixels that a link to the site is shown with elsewhere."""
    with style.context():
        card = plt.figure(figsize=(12, 6.3), dpi=100)
        try:
            for index, colour in enumerate(style.RANK_COLOURS[:4]):
                place = (0.05 + 0.022 * (index % 2), 0.88 - 0.042 * (index // 2), 0.02, 0.038)
                card.add_axes(place).set(facecolor=colour, xticks=[], yticks=[])
            for ax in card.axes:
                ax.spines[:].set_visible(False)
            card.text(0.11, 0.88, title, fontsize=34, weight="bold", va="center")
            card.text(0.05, 0.775, lead, fontsize=17, color=style.MUTED, va="center")
            # The picture's texts are made for 96 pixels an inch; here they are read in a thumbnail.
            with plt.rc_context({"xtick.labelsize": 15, "ytick.labelsize": 15, "axes.labelsize": 15}):
                _draw(card.add_axes((0.2, 0.12, 0.75, 0.58)), runs, size=15)
            written = io.BytesIO()
            card.savefig(written, format="png", metadata={"Software": None})
            return written.getvalue()
        finally:
            plt.close(card)


def _draw(ax: Axes, runs: dict[str, RunLike], size: float = 10.5) -> list[str]:
    """Draw one group of bars a run; return the same in words."""
    said, middles, gib = [], [], 1024**3
    for row, (label, run) in enumerate(runs.items()):
        peaks = per_rank(run, "memory", "peak_bytes")
        thick = 0.74 / max(len(peaks), 2)
        begin = row - thick * (len(peaks) - 1) / 2
        for index, (rank, peak) in enumerate(peaks.items()):
            ax.barh(begin + index * thick, peak / gib, height=thick, color=style.rank_colour(rank), linewidth=0)
        middles.append(row)
        time = style.quantity(last(run, "step_time", "median_ms"), "ms")
        text = f"{style.quantity(_peak(run), 'B')} · {time}"
        ax.annotate(
            text, (_peak(run) / gib, row), (6, 0), textcoords="offset points", va="center", fontsize=size,
        )  # fmt: skip
        each = style.listed(list(dict.fromkeys(style.quantity(peak, "B") for peak in peaks.values())))
        said.append(f"{label} {each}, {time}")
    ax.set_yticks(middles, list(runs))
    ax.set_ylim(len(runs) - 0.45, -0.55)
    top = max(_peak(run) for run in runs.values()) / gib
    ax.set_xticks([tick for tick in ax.get_xticks() if tick <= 1.02 * top])
    ax.set_xlim(0, 1.3 * top)
    turns = "; ranks take turns on the cores" if any(crowded(run) for run in runs.values()) else ""
    ax.set_xlabel(f"peak memory of each {_unit(next(iter(runs.values())))} (GiB) · time of a step{turns}")
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x")
    ax.spines["left"].set_visible(False)
    return said


def _peak(run: RunLike) -> float:
    return largest(run, "memory", "peak_bytes")


def _unit(run: RunLike) -> str:
    return "GPU" if run.provenance.get("device") == "cuda" else "process"
