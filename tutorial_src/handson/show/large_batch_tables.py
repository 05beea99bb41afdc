"""Tables of the large-batch lesson: accuracies with their spread, who wins, and what each definition does to a step."""

from __future__ import annotations

from collections.abc import Sequence

from handson.show.conditions import RunLike
from handson.show.large_batch_methods import NAMES, NETWORKS, Row, accuracies, cells, mean, rate, spread
from handson.show.large_batch_plots import bound_of, gap
from handson.show.style import number, relative
from handson.show.tables import Cell, Table, lines, soft

GOYAL = ("Goyal et al. 2017", "https://arxiv.org/abs/1706.02677")
LARS = ("You et al. 2017", "https://arxiv.org/abs/1708.03888")
LAMB = ("You et al. 2019", "https://arxiv.org/abs/1904.00962")


def accuracy_table(run: RunLike) -> Table:
    """Test accuracy of every method at every batch on both networks, and the learning rate that it was given."""
    body, batches, seeds = [], [], 0
    for network, words in NETWORKS.items():
        for method, rows in cells(run, network).items():
            batches, seeds = list(rows), len(next(iter(rows.values()))["test"][0])
            body.append([lines(NAMES[method], soft(words)), *[_accuracy(row) for row in rows.values()]])
    notes = [
        f"Mean ± standard deviation of {seeds} seeds, in per cent; under it the learning rate that the validation "
        "images chose. (edge): the lowest or highest that was tried, so a better one may lie outside."
    ]
    return Table(
        ["method", *[f"batch {b}" for b in batches]], body, "Test accuracy, each at its best learning rate", notes
    )


def _accuracy(row: Row) -> object:
    found = accuracies(row)
    edge = " (edge)" if row["at_edge"] else ""
    return lines(f"{mean(found):.1f} ± {spread(found):.1f}", soft(f"{number(rate(row))}{edge}"))


def verdict_table(run: RunLike, pairs: Sequence[tuple[str, str]]) -> Table:
    """Which of two methods is ahead at the smallest and at the full batch, and whether the seeds can tell."""
    body = []
    for network, words in NETWORKS.items():
        found = cells(run, network)
        for method, other in pairs:
            first, *_, last = found[method]
            told = [_told(found, method, other, batch) for batch in (first, last)]
            body.append([lines(f"{NAMES[method]} against {NAMES[other]}", soft(words)), *told])
    batches = list(cells(run, "plain")["sgd"])
    notes = ["Difference of the means in points, ± its standard deviation. Ahead: by more than twice that."]
    columns = ["pair", f"batch {batches[0]}", f"batch {batches[-1]}"]
    return Table(columns, body, "Who is ahead, and by how much", notes)


def _told(found: dict[str, dict[int, Row]], method: str, other: str, batch: int) -> Cell:
    points, deviation = gap(found[method][batch], found[other][batch])
    sure = abs(points) > 2 * deviation
    word = f"{NAMES[method if points > 0 else other]} ahead" if sure else "the seeds cannot tell"
    return lines(f"{points:+.1f} ± {deviation:.1f}".replace("-", "−"), soft(word))


def bound_rows(run: RunLike) -> list[dict]:
    """Rows for `show.formula_table`: the largest movement of a layer under LARS against lr·η/(1 − μ)."""
    rows = []
    for network, words in NETWORKS.items():
        for method in ("lars-upstream", "lars"):
            row = list(cells(run, network)[method].values())[-1]
            most = max(max(step) for step in row["movements"])
            rows.append(
                {
                    "what": f"{NAMES[method]}, {words}",
                    "formula": "≤ lr·η ÷ (1 − μ)",
                    "expected": bound_of(run, row),
                    "counted": most,
                }
            )
    return rows


def definition_table(run: RunLike) -> Table:
    """Each difference between Colossal-AI's optimizers and their papers, with what it does to a step."""
    body = []
    for row in run.rows("definition"):
        found = number(row["found"]) if isinstance(row["found"], float | int) else row["found"].partition(":")[0]
        body.append(
            [
                wrapped(row["optimizer"], soft(row["what"])),
                wrapped(row["upstream"], soft(f"the paper: {row['paper']}")),
                wrapped(found, soft(f"here: {row['here']}")),
            ]
        )
    columns = ["what is measured", "upstream", "measured with upstream's"]
    return Table(columns, body, "Where upstream's definitions differ from the papers'")


def wrapped(*parts: object) -> Cell:
    """A cell of several lines that may also break within a line."""
    made = lines(*parts)
    return Cell(made.text, f'<div class="wrapped">{made.html}</div>')


def kept_up_to(run: RunLike, network: str, method: str, within: float = 1.0) -> str:
    """The largest batch at which a method is within some points of SGD at the smallest batch."""
    found = cells(run, network)
    start = mean(accuracies(next(iter(found["sgd"].values()))))
    good = [batch for batch, row in found[method].items() if mean(accuracies(row)) >= start - within]
    return f"{max(good)} of {max(found[method])}" if good else "none"


def ratio_table(run: RunLike) -> Table:
    """How far apart the layers' trust ratios are at most in one step of the full batch."""
    body = []
    for network, words in NETWORKS.items():
        for method in ("lars", "lamb"):
            row = list(cells(run, network)[method].values())[-1]
            most = max(max(step) / min(step) for step in row["trust_ratios"])
            body.append([f"{NAMES[method]}, {words}", relative(most, 1)])
    return Table(["method", "largest trust ratio ÷ smallest, in one step"], body, "How unlike the layers are")


def claims(run: RunLike) -> list[dict]:
    """Rows for `show.paper_table`: what the papers keep at their largest batch, and what was kept here."""
    kept, ruled = {}, []
    for network, words in NETWORKS.items():
        last = list(cells(run, network)["sgd"].values())[-1]
        ruled.append(f"{number(mean(accuracies(last, 'ruled')))} % {words}")
        for method in ("lars", "lamb"):
            kept.setdefault(method, []).append(f"{kept_up_to(run, network, method)} {words}")
    rows = (
        ("SGD with linear scaling: no loss of accuracy", "to batch 8192", f"full batch: {'; '.join(ruled)}", GOYAL),
        ("LARS: ResNet-50 without loss in accuracy", "to batch 32K", f"kept to {'; '.join(kept['lars'])}", LARS),
        ("LAMB: BERT without degradation", "to batch 32868", f"kept to {'; '.join(kept['lamb'])}", LAMB),
    )
    return [dict(zip(("claim", "paper", "measured", "source"), row, strict=True)) for row in rows]
