"""Runs of scripts that do not check themselves, compared with one of them, for `loss_curves` and the tables."""

from __future__ import annotations

import dataclasses
from typing import Any

from handson.show.conditions import Runs


def against(runs: Runs, *, baseline: str) -> dict[str, Any]:
    """Return the runs with the baseline's loss beside their own in each step, and the largest difference as parity.

    A run at another preset trains a model of another size; it stays as it is, and shows as not compared.
    """
    single = {row["step"]: row["loss"] for row in runs[baseline].rows("loss", rank=0)}
    compared = {}
    for label, run in runs.items():
        if run.preset != runs[baseline].preset:
            compared[label] = run
            continue
        gaps = [abs(row["loss"] - single[row["step"]]) for row in run.rows("loss", rank=0)]
        data = [
            row | {"reference": single[row["step"]]} if row["kind"] == "loss" and row["rank"] == 0 else row
            for row in run.data
        ]
        if label != baseline:
            data.append({"rank": 0, "kind": "parity", "steps": len(gaps), "max_loss_difference": max(gaps)})
        compared[label] = dataclasses.replace(run, data=data)
    return compared
