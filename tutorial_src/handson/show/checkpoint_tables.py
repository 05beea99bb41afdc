"""Tables of checkpoint schedules: budgets, baselines beside them, solve times, batches under a cap."""

from __future__ import annotations

from typing import Any

from handson.show.checkpoint_map import part, schedules
from handson.show.conditions import RunLike, hardware, last
from handson.show.style import number, quantity
from handson.show.tables import Table, failure


def percent_off(value: float, other: float) -> str:
    """Return by how much a value is above or below another: "+3.1 %"."""
    percent = round(100 * (value / other - 1), 1)
    return f"{percent:+.1f} %".replace("-", "−") if percent else "0.0 %"


def setting_table(runs: dict[str, RunLike]) -> Table:
    """What is trained, and what the solver is told about it, network by network."""
    fields = {
        "batch": lambda row: row["shape"],
        "parameters": lambda row: quantity(row["parameters"]),
        "precision": lambda row: row["precision"],
        "parameters, gradients, buffers": lambda row: quantity(row["fixed_bytes"], "B"),
        "saved for backward, estimated": lambda row: quantity(row["saved_bytes"], "B"),
        "a stage's margin, at most": lambda row: quantity(row["margin_bytes"], "B"),
        "budget kept back": lambda row: f"{number(100 * row['headroom'])} %",
        "memory by": lambda row: row["memory_method"],
        "time by": lambda row: row["time_method"],
        "traced and estimated in": lambda row: quantity(row["trace_seconds"], "s"),
        "stages profiled in": lambda row: quantity(row["profile_seconds"], "s"),
    }
    settings = {label: run.rows("ckpt_setting")[-1] for label, run in runs.items()}
    body = [[name, *[show(row) for row in settings.values()]] for name, show in fields.items()]
    body.insert(0, ["hardware", *[hardware(run) for run in runs.values()]])
    body.insert(3, ["stages", *[len(run.rows("ckpt_stage")) for run in runs.values()]])
    return Table(["property", *runs], body, "What is trained, and what the solver knows of it")


def budget_table(run: RunLike, *, caption: str) -> Table:
    """One row a budget: predicted and measured peak, relative step time predicted and measured, what runs again."""
    body = []
    for row in schedules(run):
        budget = quantity(row["budget_bytes"], "B")
        if not row["feasible"]:
            body.append([budget, failure("infeasible"), *["—"] * 6])
            continue
        within = row["peak_bytes"] <= row["budget_bytes"]
        peak = quantity(row["peak_bytes"], "B")
        body.append(
            [
                budget,
                quantity(row["predicted_bytes"], "B"),
                peak if within else failure(f"{peak}: over"),
                percent_off(row["predicted_bytes"], row["peak_bytes"]),
                f"{row['predicted_relative']:.2f}×",
                f"{row['relative']:.2f}×",
                f"{sum(map(bool, row['again']))} of {len(row['again'])}",
                quantity(row["solve_seconds"], "s"),
            ]
        )
    smallest = min(row["budget_bytes"] for row in schedules(run) if row["feasible"])
    plain = next(row for row in run.rows("ckpt_point") if row["method"] == "none")
    notes = [
        f"The smallest feasible budget is {quantity(smallest, 'B')}. Without checkpoints a step takes "
        f"{quantity(plain['peak_bytes'], 'B')} and {quantity(plain['step_seconds'], 's')}. Peaks are of activations: "
        "parameters, gradients and buffers are left out. Solved in: from the chain to the marked graph, by the wall "
        "clock."
    ]
    columns = ["budget", "predicted peak", "measured peak", "predicted ÷ measured − 1", "time, predicted", "time"]
    return Table([*columns, "stages run again", "solved in"], body, caption, notes)


def baseline_table(runs: dict[str, RunLike], *, caption: str) -> Table:
    """Each baseline, and what Rotor does when it may use as much memory: peak and relative time of both."""
    body = []
    for network, run in runs.items():
        for row, rotor in beside_baselines(run):
            cells = [f"{network}, {row['label']}", quantity(row["peak_bytes"], "B"), f"{row['relative']:.3f}×"]
            if rotor:
                cells += [quantity(rotor["peak_bytes"], "B"), f"{rotor['relative']:.3f}×"]
                cells.append(percent_off(row["relative"], rotor["relative"]))
            else:
                cells += ["—", failure("infeasible"), "—"]
            body.append(cells)
    columns = ["baseline", "its peak", "its time", "Rotor's peak", "Rotor's time", "baseline ÷ Rotor − 1"]
    notes = ["Times are relative to the same network without checkpoints, on the same host."]
    return Table(columns, body, caption, notes)


def beside_baselines(run: RunLike) -> list[tuple[dict[str, Any], dict[str, Any] | None]]:
    """Return each hand-made baseline with the schedule that Rotor found in as much memory, or None."""
    points = run.rows("ckpt_point")
    rotor = {row["beside"]: row for row in points if row["beside"] and row["feasible"]}
    return [(row, rotor.get(row["label"])) for row in points if row["method"] in ("blocks", "chen")]


def compile_table(runs: dict[str, RunLike], *, caption: str) -> Table:
    """torch.compile under its activation memory budgets: peak and relative time, and how far its gradients are."""
    body, notes = [], []
    for network, run in runs.items():
        points = [row for row in run.rows("ckpt_point") if row["method"] in ("none", "compile")]
        points.sort(key=lambda row: (row["method"] != "none", row["label"]))
        for row in points:
            label = f"{network}, {row['label']}"
            if not row["feasible"]:
                body.append([label, failure(row["note"] or "not measured"), "—", "—", "—"])
                continue
            rotor = [
                other["relative"]
                for other in run.rows("ckpt_point")
                if other["method"] == "rotor" and other["feasible"] and other["peak_bytes"] <= row["peak_bytes"]
            ]
            cells = [label, quantity(row["peak_bytes"], "B"), f"{row['relative']:.2f}×"]
            body.append([*cells, f"{min(rotor):.2f}×" if rotor else "—", number(row["difference"])])
        for row in points:
            if row["profiled_plain_bytes"]:
                notes.append(
                    f"The compiled {network}'s peak is the profiler's, which also sees scratch memory inside "
                    f"operators: by it the plain step takes {quantity(row['profiled_plain_bytes'], 'B')}."
                )
    method = last(next(iter(runs.values())), "ckpt_setting", "compile_method")
    notes.insert(0, f"Backend, and how memory is measured: {method}.")
    columns = ["run", "peak", "time ÷ no checkpoint", "Rotor's best within that peak", "gradient difference"]
    return Table(columns, body, caption, notes)


def gradient_table(runs: dict[str, RunLike], *, caption: str = "The same gradients") -> Table:
    """How far every schedule's gradients are from the plain network's; rounding alone, for scale."""
    body = []
    for label, run in runs.items():
        points = [row for row in run.rows("ckpt_point") if row["feasible"] and row["difference"] is not None]
        worst = {m: max((r["difference"] for r in points if r["method"] == m), default=None) for m in _ALL}
        count = sum(row["method"] == "rotor" for row in points)
        rounding = run.rows("ckpt_rounding")[-1]
        cells = [label, count, worst["rotor"], worst["blocks"], worst["none"]]
        cells.append(f"{number(rounding['difference'])} ({rounding['change']})")
        good = worst["rotor"] <= max(TOLERANCE, 2 * worst["none"])
        body.append([*cells, "equal" if good else failure("DIFFERENT")])
    columns = ["network", "schedules", "Rotor", "blocks by hand", "plain again", "plain, rounded otherwise", "verdict"]
    notes = [
        "The largest relative difference of one parameter's gradient, by its norm; 0 means equal bit for bit. Rounded "
        "otherwise: the same mathematics with nothing but rounding changed, for scale."
    ]
    return Table(columns, body, caption, notes)


# Relative, for gradients in TF32 whose sums may be ordered otherwise; on a CPU they are equal bit for bit.
TOLERANCE = 1e-3
_ALL = ("none", "rotor", "blocks", "chen", "compile")


def stage_table(run: RunLike, *, caption: str) -> Table:
    """The parts of the network, stages of a part added up: what each saves, takes on top, and costs to run again."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in run.rows("ckpt_stage"):
        parts.setdefault(part(row["name"]), []).append(row)
    folded: list[tuple[list[str], list[Any]]] = []
    for name, rows in parts.items():
        fields = ("saved_bytes", "forward_seconds", "backward_seconds")
        saved, forward, backward = (sum(row[field] for row in rows) for field in fields)
        nodes, extra = sum(row["nodes"] for row in rows), max(row["extra_bytes"] for row in rows)
        worth = quantity(saved / forward / 1e3, "B")
        cells = [len(rows), nodes, quantity(saved, "B"), worth, quantity(extra, "B"), quantity(forward, "s")]
        skipped = rows[-1]["skipped_seconds"]  # a recomputation ends with one stage, so not added up
        cells += [quantity(skipped, "s") if skipped else "—", quantity(backward, "s")]
        if folded and folded[-1][1] == cells:  # blocks of one kind, measured once
            folded[-1][0].append(name)
        else:
            folded.append(([name], cells))
    body = [[names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, each", *cells] for names, cells in folded]
    columns = ["part", "stages", "nodes", "saves", "saved by 1 ms of forward", "extra in backward", "forward"]
    return Table([*columns, "skipped at an end", "backward"], body, caption)


def batch_gradients(run: RunLike, *, caption: str = "The largest batch, checkpointed and plain") -> Table:
    """How far the gradients of the largest checkpointed batch are from the plain network's."""
    compared = [row for row in run.rows("ckpt_batch") if row["method"] == "rotor" and row["difference"] is not None]
    notes = ["The largest relative difference of one parameter's gradient, by its norm; 0 means equal bit for bit."]
    body = []
    for row in compared[-1:]:
        good = row["difference"] <= TOLERANCE
        again = f"{sum(map(bool, row['again']))} of {len(row['again'])}"
        body.append([row["batch"], again, row["difference"], "equal" if good else failure("DIFFERENT")])
    return Table(["batch", "stages run again", "gradient difference", "verdict"], body, caption, notes)


def batch_table(run: RunLike, *, caption: str, unit: str = "images/s") -> Table:
    """One row a batch size under the cap: peak of everything, throughput, what runs again."""
    body = []
    for row in run.rows("ckpt_batch"):
        again = row["again"]
        body.append(
            [
                row["batch"],
                "Rotor" if row["method"] == "rotor" else "no checkpoint",
                quantity(row["predicted_bytes"], "B") if row["predicted_bytes"] else "—",
                quantity(row["peak_bytes"], "B"),
                quantity(row["step_seconds"], "s"),
                quantity(row["per_second"], unit),
                f"{sum(map(bool, again))} of {len(again)}" if again else "—",
            ]
        )
    setting = run.rows("ckpt_batch_setting")[-1]
    notes = [
        f"Cap {quantity(setting['cap_bytes'], 'B')} for everything, {quantity(setting['fixed_bytes'], 'B')} of it for "
        f"parameters, gradients and buffers. Largest batch without checkpoints: {setting['plain_batch']}, found in "
        f"{setting['runs']} runs; with the solver: {setting['rotor_batch']}, found by asking it {setting['asked']} "
        f"times. Batches are multiples of {setting['grain']}."
    ]
    columns = ["batch", "method", "predicted peak", "measured peak", "step time", "throughput", "stages run again"]
    return Table(columns, body, caption, notes)
