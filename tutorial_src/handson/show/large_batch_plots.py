"""Pictures of the large-batch lesson: trust ratios, movements, accuracy and learning rates, a panel for each method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from handson.show import picture, style
from handson.show.conditions import RunLike
from handson.show.large_batch_methods import NAMES, NETWORKS, Row, accuracies, cells, mean, rate, spread

# Hues are the ranks'. Layers and batches have an order, so they go from pale to dark.
ORDERED = (
    {"color": style.PALE, "linewidth": 2.2},
    {"color": style.NEUTRAL, "linestyle": (0, (4, 2))},
    {"color": style.NEUTRAL},
    {"color": style.FOREGROUND, "linestyle": (0, (4, 2))},
    {"color": style.FOREGROUND},
)


def ordered(count: int) -> list[dict]:
    """Line styles for so many things in an order, spread from the palest to the darkest."""
    steps = len(ORDERED) - 1
    return [ORDERED[round(i * steps / max(1, count - 1))] for i in range(count)]


def trust_ratios(run: RunLike) -> picture.Picture:
    """Draw what LARS and LAMB multiply the learning rate by, for each layer in each step of the full batch."""
    with style.context():
        drawn, axes = picture.new(height=4.6, nrows=2, ncols=2, sharex=True)
        words, layers = [], 0
        for line, network in zip(axes, NETWORKS, strict=True):
            for ax, method in zip(line, ("lars", "lamb"), strict=True):
                row = list(cells(run, network)[method].values())[-1]
                ratios = list(zip(*row["trust_ratios"], strict=True))
                layers = len(ratios)
                _ordered_lines(ax, ratios)
                ax.set_title(f"{NAMES[method]}, {NETWORKS[network]}", fontsize=10.5)
                last = [series[-1] for series in ratios]
                words.append(
                    f"{NAMES[method]} {NETWORKS[network]} from {style.number(min(last))} to {style.number(max(last))}"
                )
        for ax in axes[:, 0]:
            ax.set_ylabel("trust ratio")
        for ax in axes[-1]:
            ax.set_xlabel("training step")
        _legend(drawn, [f"layer {i + 1}" for i in range(layers)])
        alt = f"Trust ratio of each of {layers} layers over training, full batch; in the last step, over the layers: "
        return picture.finish(drawn, f"{alt}{'; '.join(words)}.")


def movements(run: RunLike, network: str) -> picture.Picture:
    """Draw how far each layer moves in a step of the full batch, as a share of its size; for LARS also the bound."""
    found, words = cells(run, network), []

    def draw(ax: Axes, method: str) -> None:
        row = list(found[method].values())[-1]
        series = list(zip(*row["movements"], strict=True))
        _ordered_lines(ax, series)
        if method.startswith("lars"):
            bound = bound_of(run, row)
            ax.axhline(bound, color=style.MUTED, linestyle=(0, (1, 2)), linewidth=1.4)
        words.append(f"{NAMES[method]} at most {style.percent(max(max(s) for s in series), 1)}")

    with style.context():
        drawn, axes = _panels(draw, "‖step‖ ÷ ‖weight‖", "training step")
        row = list(found["lars"].values())[-1]
        keys = [Line2D([], [], **s, label=f"layer {i + 1}") for i, s in enumerate(ordered(len(row["movements"][0])))]
        dotted = {"color": style.MUTED, "linestyle": (0, (1, 2)), "linewidth": 1.4}
        keys.append(Line2D([], [], **dotted, label="LARS' bound"))
        axes[-1].legend(handles=keys, loc="center", handlelength=2.4)
        alt = f"How far each layer moves in a step at the full batch, {NETWORKS[network]}, as a share of its size: "
        return picture.finish(drawn, f"{alt}{', '.join(words)}.")


def bound_of(run: RunLike, row: Row) -> float:
    """How far LARS may move a layer in one step, as a share of its size: lr·η/(1 − μ) at the peak learning rate."""
    rule = run.rows("rule")[0]
    return rate(row) * rule["trust"] / (1 - rule["momentum"])


def accuracy_by_batch(run: RunLike, network: str) -> picture.Picture:
    """Draw test accuracy against batch for each method: the mean, each seed as a dot, the other methods in pale."""
    found, words = cells(run, network), []
    means = {m: {b: mean(accuracies(row)) for b, row in rows.items()} for m, rows in found.items()}

    def draw(ax: Axes, method: str) -> None:
        for other, points in means.items():
            if other != method:
                ax.plot(list(points), [_error(y) for y in points.values()], color=style.PALE, linewidth=1.1, zorder=1)
        points = means[method]
        ax.plot(list(points), [_error(y) for y in points.values()], color=style.FOREGROUND, linewidth=2, zorder=3)
        for batch, row in found[method].items():
            seeds = accuracies(row)
            dots = {"color": style.NEUTRAL, "markersize": 4, "alpha": 0.75, "mew": 0, "zorder": 2, "clip_on": False}
            ax.plot([batch] * len(seeds), [_error(y) for y in seeds], "o", **dots)
        ruled = {b: mean(accuracies(row, "ruled")) for b, row in found[method].items() if row["ruled"]}
        if ruled:
            style_ = {"color": style.FOREGROUND, "linestyle": (0, (3, 2)), "marker": "s", "markersize": 4}
            ax.plot(list(ruled), [_error(y) for y in ruled.values()], **style_, zorder=3)
            words.append(f"SGD by the linear scaling rule {style.number(ruled[max(ruled)])} %")
        words.append(f"{NAMES[method]} {style.number(points[min(points)])} % to {style.number(points[max(points)])} %")
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_locator(FixedLocator([*points][:: max(1, (len(points) - 1) // 2)]))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        ax.xaxis.set_minor_locator(NullLocator())

    with style.context():
        drawn, axes = _panels(draw, "test accuracy (%)", "images in a batch")
        axes[0].invert_yaxis()
        axes[0].yaxis.set_major_locator(FixedLocator([_error(y) for y in _TICKS[int(max(axes[0].get_ylim()) > 10)]]))
        axes[0].yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 - y:g}"))
        keys = [
            Line2D([], [], color=style.FOREGROUND, linewidth=2, label="mean of the seeds"),
            Line2D([], [], color=style.NEUTRAL, marker="o", linestyle="", markersize=4, label="one seed"),
            Line2D([], [], color=style.PALE, label="the other methods"),
        ]
        dashed = {"color": style.FOREGROUND, "linestyle": (0, (3, 2)), "marker": "s", "markersize": 4}
        keys.append(Line2D([], [], **dashed, label="linear scaling rule,\nnot tuned"))
        axes[-1].legend(handles=keys, loc="center", handlelength=2)
        alt = f"Test accuracy from the smallest batch to the full one, {NETWORKS[network]}"
        return picture.finish(drawn, f"{alt}: {', '.join(words)}.")


_TICKS = ((99, 98.5, 98, 97, 96, 95, 94, 92), (98, 95, 90, 80, 60, 20))  # of a short axis, and of a long one


def _error(accuracy: float) -> float:
    """Accuracies are drawn by what is missing to 100, on a logarithmic axis; half an image of 500 stands for none."""
    return max(100 - accuracy, 0.1)


def rate_windows(run: RunLike, network: str) -> picture.Picture:
    """Draw the mean test accuracy at every learning rate that was tried, a line for each batch."""
    found, words = cells(run, network), []

    def draw(ax: Axes, method: str) -> None:
        for look, (batch, row) in zip(ordered(len(found[method])), found[method].items(), strict=True):
            rates = row["learning_rates"][: len(row["test"])]
            means = [100 * mean(seeds) for seeds in row["test"]]
            ax.plot(rates, means, **look)
            ax.plot(rate(row), means[row["best"]], "o", color=look["color"], markersize=5)
            words.append(f"{NAMES[method]} at {batch} best at {style.number(rate(row))}")
        ax.set_xscale("log")
        ax.xaxis.set_minor_locator(NullLocator())
        ax.set_ylim(0, 103)

    with style.context():
        drawn, axes = _panels(draw, "test accuracy (%)", "learning rate", log=False, share_x=False)
        batches = list(found["sgd"])
        keys = [Line2D([], [], **s, label=f"batch {b}") for s, b in zip(ordered(len(batches)), batches, strict=True)]
        keys.append(Line2D([], [], color=style.FOREGROUND, marker="o", linestyle="", label="chosen"))
        axes[-1].legend(handles=keys, loc="center", handlelength=2.4)
        alt = f"Mean test accuracy at every learning rate tried, {NETWORKS[network]}: {', '.join(words)}."
        return picture.finish(drawn, alt)


def losses(run: RunLike, network: str) -> picture.Picture:
    """Draw the training loss over the epochs at the smallest and at the full batch, each at its own learning rate."""
    found, words = cells(run, network), []

    def draw(ax: Axes, method: str) -> None:
        rows = list(found[method].values())
        for look, row in zip((ORDERED[0], ORDERED[-1]), (rows[0], rows[-1]), strict=True):
            known = [(epoch, loss) for epoch, loss in enumerate(row["losses"], 1) if loss is not None]
            ax.plot(*zip(*known, strict=True), **look)
        last = rows[-1]["losses"][-1]
        words.append(f"{NAMES[method]} {style.number(last)}")

    with style.context():
        drawn, axes = _panels(draw, "training loss", "epoch")
        batches = list(found["sgd"])
        looks = zip((ORDERED[0], ORDERED[-1]), (batches[0], batches[-1]), strict=True)
        axes[-1].legend(handles=[Line2D([], [], **s, label=f"batch {b}") for s, b in looks], loc="center")
        alt = f"Training loss by epoch, {NETWORKS[network]}; at the full batch it ends at: {', '.join(words)}."
        return picture.finish(drawn, alt)


def gap(row: Row, other: Row) -> tuple[float, float]:
    """By how many points one method's mean test accuracy is above another's, and the deviation of that difference."""
    a, b = accuracies(row), accuracies(other)
    return mean(a) - mean(b), (spread(a) ** 2 / len(a) + spread(b) ** 2 / len(b)) ** 0.5


def _panels(
    draw: Callable[[Axes, str], None], y: str, x: str, *, log: bool = True, share_x: bool = True
) -> tuple[picture.Picture, list[Axes]]:
    """One panel for each method on shared axes, and an empty sixth for the legend."""
    drawn, axes = picture.new(height=4.4, nrows=2, ncols=3, sharex="all" if share_x else False, sharey=True)
    every = list(axes.flat)
    for ax, method in zip(every, NAMES, strict=False):
        draw(ax, method)
        ax.set_title(NAMES[method], fontsize=10.5)
        ax.grid(axis="y")
        if log:
            ax.set_yscale("log")
            ax.yaxis.set_minor_locator(NullLocator())
        if share_x and ax.get_xscale() == "linear":
            ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    every[-1].axis("off")
    for ax in axes[:, 0]:
        ax.set_ylabel(y)
    for ax in (*axes[1, :2], axes[0, 2]):
        ax.set_xlabel(x)
        ax.tick_params(labelbottom=True)
    return drawn, every


def _ordered_lines(ax: Axes, series: Sequence[Sequence[float]]) -> None:
    for look, values in zip(ordered(len(series)), series, strict=True):
        ax.plot(range(1, len(values) + 1), values, **look)
    logarithmic(ax)
    ax.grid(axis="y")
    ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def logarithmic(ax: Axes) -> None:
    """A logarithmic axis with few ticks when it is long, and more in a decade when it is short."""
    ax.set_yscale("log")
    low, high = ax.dataLim.intervaly
    subs = (1,) if high > 50 * low else (1, 3) if high > 8 * low else (1, 2, 5)
    ax.yaxis.set_major_locator(LogLocator(subs=subs, numticks=8))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    ax.yaxis.set_minor_locator(NullLocator())


def _legend(drawn: picture.Picture, labels: Sequence[str]) -> None:
    keys = [Line2D([], [], **look, label=text) for look, text in zip(ordered(len(labels)), labels, strict=True)]
    drawn.legend(handles=keys, loc="outside upper left", ncols=5, handlelength=1.9, columnspacing=1.2)
