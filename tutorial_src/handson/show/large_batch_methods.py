"""How the large-batch lessons name the methods under comparison, and read what `compare.py` recorded of them."""

from __future__ import annotations

import statistics
from typing import Any

from handson.show.conditions import RunLike

NAMES = {"sgd": "SGD", "lars-upstream": "LARS, upstream", "lars": "LARS", "lamb": "LAMB", "adamw": "AdamW"}
NETWORKS = {"plain": "without normalisation", "batchnorm": "with batch norm"}

Row = dict[str, Any]


def cells(run: RunLike, network: str) -> dict[str, dict[int, Row]]:
    """The recorded cells of a network: {method: {batch: row}}, methods in the order of NAMES, batches ascending.

    Raises:
        LookupError: when the run compared nothing on that network.
    """
    rows = [row for row in run.rows("cell") if row["network"] == network]
    if not rows:
        raise LookupError(f"the run recorded no cell of the network {network!r}; use one of {', '.join(NETWORKS)}")
    ordered = sorted(rows, key=lambda row: row["batch"])
    return {m: {row["batch"]: row for row in ordered if row["method"] == m} for m in NAMES}


def accuracies(row: Row, rates: str = "test") -> list[float]:
    """The test accuracy of each seed, in per cent: at the kept learning rate, or (`ruled`) by the linear scaling."""
    return [100 * x for x in (row["test"][row["best"]] if rates == "test" else row["ruled"][0])]


def rate(row: Row) -> float:
    """The learning rate that the validation images chose."""
    return row["learning_rates"][row["best"]]


def mean(values: list[float]) -> float:
    """The mean over the seeds."""
    return statistics.fmean(values)


def spread(values: list[float]) -> float:
    """The standard deviation over the seeds; 0 for a single one."""
    return statistics.stdev(values) if len(values) > 1 else 0.0
