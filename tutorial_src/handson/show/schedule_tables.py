"""What a traced step says in numbers: how long ranks waited, what stages kept, what all-reduces added."""

from __future__ import annotations

from handson.show.conditions import RunLike
from handson.show.run_tables import formula_table
from handson.show.schedule_plots import ORDERS, in_flight
from handson.show.style import number, percent, quantity
from handson.show.tables import Table


def bubble_table(run: RunLike) -> Table:
    """Idle share against (p − 1)/(m + p − 1), loss and gradients, of each order and number of micro-batches."""
    columns = ["order", "micro-batches", "idle, formula", "idle, measured", "forward and backward", "loss"]
    body = [
        [
            ORDERS[row["order"]],
            row["micro_batches"],
            f"{number(100 * row['expected'])} %",
            f"{number(100 * row['bubbles'][row['shown']])} %",
            quantity(row["lengths_ms"][row["shown"]], "ms"),
            f"{row['loss']:.6f}",
            number(row["gradient_difference"]),
        ]
        for row in run.rows("bubble", rank=0)
    ]
    note = "Of several steps, the one of median length. Gradients are compared with those of the first line."
    return Table([*columns, "gradients differ by"], body, "Waiting, and the same gradients in every order", [note])


def in_flight_table(run: RunLike, micro_batches: int) -> Table:
    """How many micro-batches each stage keeps at a time, counted in bytes, against the rule of its order."""
    rows, stages = [], 0
    for row in sorted(run.rows("stage"), key=lambda row: (row["order"], row["stage"], row["rank"])):
        stages = row["stages"]
        if row["micro_batches"] == micro_batches:
            rows.append(
                {
                    "what": f"{ORDERS[row['order']]}, stage {row['stage']}",
                    "formula": "m" if row["order"] == "gpipe" else "min(m, p − s)",
                    "expected": in_flight(row["order"], micro_batches, stages, row["stage"]),
                    "counted": row["saved_bytes"] / row["micro_batch_bytes"],
                }
            )
    return formula_table(rows, caption=f"Micro-batches kept at a time, of m = {micro_batches} on p = {stages} stages")


def overlap_table(run: RunLike) -> Table:
    """What averaging the gradients adds to a step, beside what it takes alone."""
    took = run.rows("overlap", rank=0)[-1]
    times = {
        "forward and backward": took["step_ms"],
        "the same without all-reduces": took["without_ms"],
        "so they add": took["step_ms"] - took["without_ms"],
        f"alone they take, in {took['buckets']} bucket{'s' * (took['buckets'] > 1)}": took["all_reduce_ms"],
    }
    body = [[what, quantity(time, "ms"), percent(time, took["step_ms"])] for what, time in times.items()]
    what = f"Averaging {quantity(took['bytes'], 'B')} of gradients over {run.ranks} ranks"
    return Table(["part of a step", "median time", "of the step"], body, what)
