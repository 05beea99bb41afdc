"""Pictures and tables of what a larger batch saves: images a second, the full device, time to a fixed accuracy."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from handson.show import picture, style
from handson.show.conditions import RunLike, Runs, by_conditions, conditions, crowded, hardware
from handson.show.large_batch_methods import NAMES, NETWORKS, Row, cells
from handson.show.large_batch_plots import logarithmic, ordered
from handson.show.large_batch_tables import GOYAL, LAMB
from handson.show.style import number, quantity, relative
from handson.show.tables import Table, lines, soft

MARKERS = "osD^"


def throughput(runs: Runs) -> picture.Picture:
    """Draw images a second against images of a rank, a line for each number of ranks, a ring where a rank is full."""
    groups = by_conditions(runs)
    words = []
    with style.context():
        drawn, axes = picture.new(height=3.3 * len(groups) + 0.2, nrows=len(groups))
        for ax, (title, group) in zip(axes.flat, groups, strict=True):
            ends: list[tuple[float, int, str]] = []
            for index, (look, (label, run)) in enumerate(zip(ordered(len(group)), group.items(), strict=True)):
                rows, full = run.rows("throughput", 0), run.rows("full", 0)[0]
                sizes = [row["images_per_rank"] for row in rows]
                speeds = [row["images_per_second"] for row in rows]
                ax.plot(sizes, speeds, marker=MARKERS[index % 4], markersize=4.5, **look)
                ring = {"markersize": 12, "mfc": "none", "mec": style.FOREGROUND, "mew": 1.4}
                ax.plot(full["images_per_rank"], full["images_per_second"], "o", **ring)
                turns = " (taking turns)" if crowded(run) else ""
                ends.append((speeds[-1], sizes[-1], f"{label}{turns}"))
                words.append(
                    f"{label} on {title} from {quantity(speeds[0], 'images/s')} at {sizes[0]} to "
                    f"{quantity(max(speeds), 'images/s')}, full from: {_full_from(run)}"
                )
            _label_ends(ax, ends)
            _axes(ax, sorted({row["images_per_rank"] for run in group.values() for row in run.rows("throughput", 0)}))
            precision = next(iter(group.values())).rows("throughput", 0)[0]["precision"]
            ax.set_title(f"{title}, {precision}", fontsize=10, color=style.MUTED)
        axes[-1, 0].set_xlabel("images of one rank in a step (ring: full from here, or the cap)")
        return picture.finish(drawn, f"Images a second: {'; '.join(words)}.")


def _label_ends(ax: Axes, ends: list[tuple[float, int, str]]) -> None:
    """Write each line's name at its end; of two that are close, the higher one a line of text further up."""
    low, high = ax.dataLim.intervaly
    points = 170 / max(math.log(high / low), 0.1)  # an axis is about so high
    top = -math.inf
    for y, x, text in sorted(ends):
        height = points * math.log(y / low)
        top = max(height, top + 13)
        ax.annotate(text, (x, y), (12, top - height), textcoords="offset points", va="center")


def _axes(ax: Axes, sizes: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(sizes))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: quantity(y)))
    ax.yaxis.set_minor_formatter(FuncFormatter(lambda y, _: ""))
    ax.set_xlim(sizes[0] * 0.85, sizes[-1] * 3.2)
    ax.set_ylabel("images/s")
    ax.grid(axis="y")


def full_table(runs: Runs) -> Table:
    """Where each number of ranks is full: images, speed, memory; and what the smallest batch leaves unused."""
    body, turns = [], []
    for label, run in runs.items():
        rows, full = run.rows("throughput", 0), run.rows("full", 0)[0]
        there = next(row for row in rows if row["images_per_rank"] == full["images_per_rank"])
        if crowded(run):
            turns.append(label)
        alone = [r for r in runs.values() if r.ranks == 1 and conditions(r) == conditions(run)]
        single = alone[0].rows("full", 0)[0]["best"] if alone and not crowded(run) else None
        body.append(
            [
                lines(label, soft(hardware(run))),
                lines(_full_from(run), soft(f"{quantity(there['median_ms'], 'ms')} a step")),
                lines(quantity(there["images_per_second"], "images/s"), soft(quantity(there["peak_bytes"], "B"))),
                lines(
                    quantity(full["best"], "images/s"),
                    soft(f"{relative(full['best'], single)} 1 rank" if single else ""),
                ),
                relative(full["best"], rows[0]["images_per_second"]),
            ]
        )
    share = next(iter(runs.values())).rows("full", 0)[0]["share"]
    notes = [
        f"Full: the smallest batch that reaches {number(100 * share)} % of the best throughput of its sweep. The best "
        "is compared with the smallest batch of that sweep, and with the best of one rank on the same hardware. Not "
        "full: the largest batch that was tried was still faster by more than that."
    ]
    if turns:
        notes.append(f"{', '.join(turns)}: more ranks than cores, so the ranks took turns; no speed-up is stated.")
    columns = ["run", "full from", "speed and memory there", "best", "best ÷ smallest batch"]
    return Table(columns, body, "Where a device is full", notes)


def _full_from(run: RunLike) -> str:
    """From how many images on the ranks are full, or that the cap of the sweep came first."""
    full, last = run.rows("full", 0)[0], run.rows("throughput", 0)[-1]
    each = f"{full['images_per_rank']} × {run.ranks}"
    return f"not full at {each}" if full["images_per_rank"] == last["images_per_rank"] else each


def sent_rows(runs: Runs) -> list[dict[str, Any]]:
    """Rows for `show.formula_table`: what a rank sends in a step at the smallest and the largest batch."""
    rows = []
    for label, run in runs.items():
        if run.ranks == 1:
            continue
        parameters = run.rows("full", 0)[0]["parameters"]
        sizes = [row["images_per_rank"] for row in run.rows("throughput", 0)]
        steps = [row for row in run.rows("communication", 0)]
        for index in (0, -1):
            counted = sum(part["wire_bytes"] for part in steps[index]["rows"] if part["collective"] == "all_reduce")
            rows.append(
                {
                    "what": label,
                    "images of a rank": sizes[index],
                    "formula": "2(n−1)/n × 4 B × parameters",
                    "expected": 2 * (run.ranks - 1) / run.ranks * 4 * parameters,
                    "counted": counted,
                    "unit": "B",
                }
            )
    return rows


def update_table(runs: Runs) -> Table:
    """What each optimizer's update of the residual network costs on one rank, beside a whole step where it is full."""
    body = []
    for label, run in runs.items():
        full = run.rows("full", 0)[0]
        rows = run.rows("throughput", 0)
        step = next(row["median_ms"] for row in rows if row["images_per_rank"] == full["images_per_rank"])
        for row in run.rows("update", 0):
            body.append(
                [
                    NAMES[row["method"]],
                    label,
                    quantity(row["median_ms"], "ms"),
                    f"{number(100 * row['median_ms'] / step)} %",
                    quantity(row["state_bytes"], "B"),
                ]
            )
    tensors = next(iter(runs.values())).rows("full", 0)[0]["tensors"]
    notes = [f"{tensors} tensors. A step: forward, backward and update at the batch from which the device is full."]
    return Table(["optimizer", "run", "its update", "of a step", "its states"], body, "What an update costs", notes)


def time_to_target(run: RunLike) -> picture.Picture:
    """Draw how long each method trains until the target accuracy, against the batch: a panel for each network."""
    target, words = run.rows("rule")[0]["target"], []
    with style.context():
        drawn, axes = picture.new(height=3.6, ncols=2, sharey=True)
        for ax, (network, name) in zip(axes.flat, NETWORKS.items(), strict=True):
            found = cells(run, network)
            for (method, rows), look in zip(found.items(), _LOOKS, strict=True):
                known = {b: row["seconds_to_target"] for b, row in rows.items() if row["seconds_to_target"]}
                ax.plot(list(known), list(known.values()), label=NAMES[method], markersize=5.5, **look)
                told = quantity(known[max(known)], "s") + f" at {max(known)}" if known else "never"
                words.append(f"{NAMES[method]} {name} {told}")
            batches = list(found["sgd"])
            _axes(ax, batches)
            logarithmic(ax)
            ax.set_xlim(batches[0] * 0.8, batches[-1] * 1.25)
            ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: quantity(y, "s")))
            ax.set_ylabel("")
            ax.set_title(name, fontsize=10.5)
            ax.set_xlabel("images in a batch")
        axes[0, 0].set_ylabel(f"time to {number(100 * target)} % validation accuracy")
        drawn.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper left", ncols=5, columnspacing=1)
        return picture.finish(
            drawn, f"Time until the target accuracy at the largest batch that reaches it: {'; '.join(words)}."
        )


_LOOKS = (
    {"color": style.FOREGROUND, "marker": "o"},
    {"color": style.PALE, "marker": "s"},
    {"color": style.NEUTRAL, "marker": "s"},
    {"color": style.NEUTRAL, "marker": "^", "linestyle": (0, (4, 2))},
    {"color": style.FOREGROUND, "marker": "D", "linestyle": (0, (4, 2))},
)


def target_table(run: RunLike, network: str) -> Table:
    """Time to the target accuracy at every batch, and what it is made of: epochs, steps, time of a step."""
    body, images = [], run.rows("data")[0]["training"]
    for method, rows in cells(run, network).items():
        body.append([NAMES[method], *[_reached(row, images) for row in rows.values()]])
    target = number(100 * run.rows("rule")[0]["target"])
    notes = [
        "One seed, each method at its best learning rate. The time, and below it what it is made of: the number of "
        "steps × the median step. Evaluation is not counted. Not reached: in no epoch."
    ]
    caption = f"Time to {target} % validation accuracy, {NETWORKS[network]}"
    return Table(["method", *[f"batch {batch}" for batch in cells(run, network)["sgd"]]], body, caption, notes)


def _reached(row: Row, images: int) -> object:
    step = quantity(row["step_ms"], "ms")
    if not row["epochs_to_target"]:
        return lines("not reached", soft(f"{row['steps']} × {step}"))
    steps = row["epochs_to_target"] * images // row["batch"]
    return lines(quantity(row["seconds_to_target"], "s"), soft(f"{steps} × {step}"))


def claims(runs: Runs, comparison: RunLike) -> list[dict[str, Any]]:
    """Rows for `show.paper_table`: how throughput grows with devices, and what LAMB's largest batch saves."""
    alone = next(run for run in runs.values() if run.ranks == 1)
    alike = [run for run in runs.values() if conditions(run) == conditions(alone) and not crowded(run)]
    most = max(alike, key=lambda run: run.ranks)
    gain = most.rows("full", 0)[0]["best"] / alone.rows("full", 0)[0]["best"]
    scaled = (
        f"{number(100 * gain / most.ranks)} % from 1 to {most.ranks} ranks" if most is not alone else "not measured"
    )
    rows = [
        ("data parallelism scales ResNet-50", "~90 % from 8 to 256 GPUs", f"{scaled} ({hardware(most)})", GOYAL),
    ]
    for network, words in NETWORKS.items():
        first, *_, last = cells(comparison, network)["lamb"].values()
        saved = f"{_time(first)} to {_time(last)}, {words}"
        rows.append(("LAMB: less time to the same accuracy", "3 days to 76 minutes", saved, LAMB))
    return [dict(zip(("claim", "paper", "measured", "source"), row, strict=True)) for row in rows]


def _time(row: Row) -> str:
    return quantity(row["seconds_to_target"], "s") if row["seconds_to_target"] else "not reached"
