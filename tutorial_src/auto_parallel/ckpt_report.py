"""What the auto-checkpoint scripts say: the setting, the stages, the table of budgets, and the plots."""

from __future__ import annotations

import torch
from ckpt_chain import Traced
from ckpt_sweep import Point
from ckpt_tasks import Task
from handson import worker
from rotor import HEADROOM, SLOTS

MIB = 2**20


def describe(task: Task, traced: Traced, seconds: dict[str, float]) -> None:
    """Log and record what is trained, where, and the chain that the solver is given."""
    chain, device = traced.chain, task.device
    on_gpu = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if on_gpu else "the CPU, one thread"
    precision = "TF32" if on_gpu else "fp32"
    fixed = sum({tensor.data_ptr(): tensor.nbytes for tensor in task.fixed}.values())
    name, largest = task.largest_gradient()
    worker.log(f"{task.name}, {task.shape}, {precision}, on {where}")
    estimate = f"{traced.saved_bytes / MIB:.1f} MiB (estimated in {seconds['trace']:.1f} s)"
    worker.log(f"{len(chain)} stages; saved for backward without checkpoints: {estimate}")
    worst = max(range(len(chain)), key=traced.margins.__getitem__)
    margin = traced.margins[worst]
    worker.log(f"margin for gradients and workspace: at most {margin / MIB:.1f} MiB, in {traced.label(worst)}")
    worker.log(f"every stage alone: {traced.plain_seconds * 1e3:.1f} ms (profiled in {seconds['profile']:.1f} s)")
    worker.record(
        "ckpt_setting",
        model=task.name,
        shape=task.shape,
        batch=task.batch,
        precision=precision,
        parameters=sum(p.numel() for p in task.model.parameters()),
        fixed_bytes=fixed,
        input_bytes=traced.input_bytes,
        saved_bytes=traced.saved_bytes,
        largest_gradient={"name": name, "bytes": largest},
        margin_bytes=margin,
        headroom=HEADROOM,
        slots=SLOTS,
        memory_method="cuda allocator" if on_gpu else "live tensors, counted",
        time_method="cuda events, median" if on_gpu else "CPU time, least",
        compile_method="inductor, cuda allocator" if on_gpu else "aot_eager_decomp_partition, profiler",
        trace_seconds=seconds["trace"],
        profile_seconds=seconds["profile"],
    )
    for index, names in enumerate(traced.stages):
        worker.record(
            "ckpt_stage",
            index=index,
            name=traced.label(index),
            nodes=len(names),
            output_bytes=chain.x[index + 1],
            saved_bytes=chain.xbar[index + 1],
            extra_bytes=chain.btmp[index],
            margin_bytes=traced.margins[index],
            forward_seconds=chain.ftime[index],
            backward_seconds=chain.btime[index],
            skipped_seconds=chain.skipped[index],
        )


def table(points: list[Point]) -> None:
    """Log every point: schedules by budget, then the baselines, each beside what Rotor does with as much memory."""
    worker.log("")
    for words in (
        ("", "budget", "predicted", "measured", "step", "relative", "solved in"),
        ("", "MiB", "MiB", "MiB", "ms", "", "s"),
    ):
        worker.log(_row(*words))
    for point in points:
        worker.log(_line(point))
    worker.log("")
    worker.log("stages in order, and how often each runs forward again (. is never)")
    for point in points:
        if point.again and not point.beside:
            worker.log(f"{point.budget_bytes / MIB:8.1f} MiB  " + "".join(str(count or ".") for count in point.again))
    rows = [point for point in points if point.budget_bytes is not None and point.feasible]
    off = max(abs(point.predicted_bytes / point.peak_bytes - 1) for point in rows)
    worst = {
        m: max((p.difference for p in points if p.method == m and p.feasible), default=0.0)
        for m in ("rotor", "compile")
    }
    kept = all(point.peak_bytes <= point.budget_bytes for point in rows)
    worker.log("")
    worker.log(
        f"measured peak within budget: {'yes' if kept else 'NO'}; predicted within {100 * off:.1f} % of measured"
    )
    worker.log(f"gradients differ from the plain network's by {worst['rotor']:.1e} (compiled {worst['compile']:.1e})")


def _line(point: Point) -> str:
    if point.note and not point.feasible:
        return f"{point.label}: {point.note}"[:84]
    label = point.label if point.method != "rotor" else "Rotor with as much" if point.beside else "Rotor"
    if not point.feasible:
        return _row(label, f"{point.budget_bytes / MIB:.1f}", "infeasible")
    sizes = [
        f"{size / MIB:.1f}" if size else "" for size in (point.budget_bytes, point.predicted_bytes, point.peak_bytes)
    ]
    solved = f"{point.solve_seconds:.3f}" if point.solve_seconds is not None else ""
    return _row(label, *sizes, f"{point.step_seconds * 1e3:.1f}", f"{point.relative:.3f}x", solved)


def _row(label: str, *cells: str) -> str:
    widths = (9, 11, 10, 9, 9, 10)
    return (f"{label:<25}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=False))).rstrip()


def plot(points: list[Point], path: str) -> None:
    """Write peak against budget, and relative step time against peak, as one picture."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    rows = [point for point in points if point.method == "rotor" and point.feasible and not point.beside]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    budgets = [point.budget_bytes / MIB for point in rows]
    left.plot(budgets, budgets, color="0.7", label="budget")
    left.plot(budgets, [point.predicted_bytes / MIB for point in rows], "x--", color="0.4", label="predicted")
    left.plot(budgets, [point.peak_bytes / MIB for point in rows], "o-", color="#0072b2", label="measured")
    for point in points:
        if not point.feasible and not point.beside:
            left.axvline(point.budget_bytes / MIB, color="#b3261e", linestyle=":")
    left.set(xlabel="memory budget (MiB; dotted: infeasible)", ylabel="peak of activations (MiB)")
    styles = {"none": "k*", "rotor": "o-", "blocks": "s--", "chen": "kd", "compile": "^:"}
    names = {
        "none": "no checkpoint",
        "rotor": "Rotor",
        "blocks": "blocks by hand",
        "chen": "Chen's solver",
        "compile": "torch.compile",
    }
    for method, style in styles.items():
        group = [point for point in points if point.method == method and point.feasible]
        group.sort(key=lambda point: point.peak_bytes)
        right.plot([p.peak_bytes / MIB for p in group], [p.relative for p in group], style, label=names[method])
    right.set(xlabel="measured peak of activations (MiB)", ylabel="step time, relative to no checkpoint")
    left.legend(frameon=False)
    right.legend(frameon=False)
    figure.savefig(path, dpi=150)
    worker.log(f"written: {path}")
