"""The tables of a plan that ran: is it the same model, what did it cost against the prediction, what did it hold.

Rows are those of auto_parallel/auto_parallel_with_resnet.py: "plan" with the prediction of each plan, and "parity",
"step_time", "memory" and "communication" with what was measured, each naming its plan where there are several.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from handson.show.conditions import RunLike, Runs, crowded, hardware
from handson.show.style import number, quantity, relative
from handson.show.tables import Table, failure, lines, soft

Row = Mapping[str, Any]


def parity(runs: Runs, *, caption: str = "") -> Table:
    """Output, gradients and losses of each run's plan beside the same model on one device, on the same batch."""
    body = []
    for label, run in runs.items():
        rows = run.rows("parity")
        exact, single = (next(row for row in rows if row.get("dtype") == name) for name in ("float64", "float32"))
        steps = next(row for row in rows if "steps" in row)
        good = max(exact["output"], exact["gradient"]) <= exact["tolerance"]
        good = good and max(single["output"], single["gradient"]) <= single["tolerance"]
        good = good and steps["max_loss_difference"] <= steps["tolerance"]
        body.append(
            [
                label,
                hardware(run),
                number(exact["output"]),
                lines(number(exact["gradient"]), soft(exact["worst"])),
                number(single["gradient"]),
                number(steps["max_loss_difference"]),
                "equal" if good else failure("DIFFERENT"),
            ]
        )
    columns = ["run", "hardware", "output, fp64", "gradient, fp64", "gradient, fp32"]
    notes = [
        "Errors are relative, the largest over the ranks and, for gradients, over the parameters; losses are compared "
        f"over {steps['steps']} steps of SGD in fp32. Equal: within {number(exact['tolerance'])} in fp64, "
        f"{number(single['tolerance'])} in fp32, and {number(steps['tolerance'])} in the loss."
    ]
    return Table([*columns, "loss, fp32", "verdict"], body, caption or "The sharded model is the same model", notes)


def measured_plans(run: RunLike) -> list[dict[str, Any]]:
    """One dict for each plan or way that the run timed: prediction, measurement, and the parts of both.

    `compute_ms`, `communication_ms` and `resharding_ms` are predicted; `measured_ms` the step, `computing_ms` the step
    with its collectives left out, `communicating_ms` the difference. None where there is no prediction, or no such
    measurement.
    """
    predicted = {row["plan"]: row for row in run.rows("plan", rank=0)}
    counted = {row["plan"]: row["rows"] for row in run.rows("communication", rank=0)}
    found = []
    for row in run.rows("step_time", rank=0):
        plan, computing = predicted.get(row["plan"], {}), row.get("compute_ms")
        found.append(
            {
                "plan": row["plan"],
                "predicted_ms": plan.get("objective_ms"),
                **{f"{part}_ms": plan.get(f"{part}_ms") for part in ("compute", "communication", "resharding")},
                "measured_ms": row["median_ms"],
                "computing_ms": computing,
                "communicating_ms": None if computing is None else row["median_ms"] - computing,
                "calls": sum(part["calls"] for part in counted[row["plan"]]),
                "wire_bytes": sum(part["wire_bytes"] for part in counted[row["plan"]]),
            }
        )
    return found


def against_truth(run: RunLike, *, caption: str = "") -> Table:
    """What each plan was predicted to cost and what it cost, in its two parts, so that the wrong cost shows."""
    body = []
    for row in measured_plans(run):
        charged = None if row["predicted_ms"] is None else row["communication_ms"] + row["resharding_ms"]
        body.append(
            [
                row["plan"],
                _pair(row["predicted_ms"], row["measured_ms"]),
                _pair(row["compute_ms"], row["computing_ms"]),
                _pair(charged, row["communicating_ms"]),
                row["calls"],
                quantity(row["wire_bytes"], "B"),
            ]
        )
    notes = [
        "In each cell the prediction, then the measurement and their ratio. Computing is measured as the step with its "
        "collectives left out, communication as the rest of the step. Collectives and bytes are those that rank 0 "
        "called and sent in one step."
    ]
    if crowded(run):
        notes.append("More ranks than CPU cores, so the ranks took turns; these times say little about speed.")
    columns = ["plan", "step", "computing", "communication", "collectives", "sent"]
    return Table(columns, body, caption or f"Prediction and truth on {hardware(run)}", notes)


def verdict(run: RunLike) -> str:
    """The solver's plan against PyTorch's data parallelism, where its prediction is wrong most, and what is fastest."""
    rows = {row["plan"]: row for row in measured_plans(run)}
    mine, plain = rows["solver"], rows["DDP"]["measured_ms"]
    ratio = mine["measured_ms"] / plain
    won = "is faster than" if ratio < 0.97 else "loses to" if ratio > 1.03 else "is as fast as"
    charged = mine["communication_ms"] + mine["resharding_ms"]
    errors = {
        "computing": (mine["compute_ms"], mine["computing_ms"]),
        "communication": (charged, mine["communicating_ms"]),
    }
    fastest = min(rows.values(), key=lambda row: row["measured_ms"])
    part, (predicted, measured) = max(errors.items(), key=lambda error: abs(error[1][1] - error[1][0]))
    return (
        f"The solver's plan {won} plain data parallelism (DDP): {quantity(mine['measured_ms'], 'ms')} a step against "
        f"{quantity(plain, 'ms')}. Its prediction is wrong most about {part}: {quantity(predicted, 'ms')} predicted, "
        f"{quantity(measured, 'ms')} measured. Fastest of all was {fastest['plan']}, "
        f"{quantity(fastest['measured_ms'], 'ms')}."
    )


def memory(runs: Runs, *, caption: str = "") -> Table:
    """What each plan was predicted to hold on a device, and what the fullest rank held."""
    body, methods = [], {}
    for label, run in runs.items():
        predicted = {row["plan"]: row for row in run.rows("plan", rank=0)}
        fullest: dict[str, Row] = {}
        for row in run.rows("memory"):
            if row["plan"] not in fullest or row["peak_bytes"] > fullest[row["plan"]]["peak_bytes"]:
                fullest[row["plan"]] = row
        for plan, held in fullest.items():
            methods[label] = held["method"]
            guess = predicted.get(plan)
            body.append(
                [
                    lines(plan, soft(f"{label}, {hardware(run)}")),
                    quantity(guess["budget_bytes"], "B") if guess and guess["budget_bytes"] else "—",
                    quantity(guess["memory_bytes"], "B") if guess else "—",
                    quantity(held["peak_bytes"], "B"),
                    relative(held["peak_bytes"], guess["memory_bytes"]) if guess else "—",
                    quantity(held["parameter_bytes"], "B"),
                    quantity(held["activation_bytes"], "B"),
                ]
            )
    columns = ["plan", "budget", "predicted", "peak", "ratio", "parameters", "saved activations"]
    ways = "; ".join(f"{label}: {method}" for label, method in methods.items())
    notes = [
        "Of one device: the fullest rank. The peak is measured in one training step, ratio is the peak by the "
        f"prediction; gradients take as much as parameters ({ways})."
    ]
    return Table(columns, body, caption or "Memory, predicted and measured", notes)


def links(run: RunLike, *, caption: str = "") -> Table:
    """What the costs in seconds stand on: a row "links" of the run."""
    (row,) = run.rows("links", rank=0)
    macs, step = quantity(row["macs"], "MAC"), quantity(row["step_ms"], "ms")
    body = [["computing", f"{row['macs_per_second'] / 1e9:.3g} GMAC/s", f"{macs} in a step of {step} on one device"]]
    for axis, devices in enumerate(row["mesh"]):
        if devices > 1:
            speed, latency = f"{row['bytes_per_second'][axis] / 1e9:.3g} GB/s", quantity(row["latency_s"][axis], "s")
            body.append([f"mesh axis {axis}, {devices} ranks", speed, f"latency {latency}"])
    return Table(["what", "speed", "measured as"], body, caption or f"Measured speeds on {hardware(run)}")


def _pair(predicted: float | None, measured: float | None) -> Any:
    if predicted is None or measured is None:
        return quantity(predicted if measured is None else measured, "ms")
    ratio = f"{relative(measured, predicted)}" if predicted else ""
    return lines(quantity(predicted, "ms"), quantity(measured, "ms"), soft(ratio))
