"""Measure the same step under every budget, and by every other way to save memory, on the same axes.

Rotor's schedules, from the smallest feasible budget to one that needs no recomputation; two budgets below the
smallest, which are infeasible; the plain network; the first k blocks checkpointed by hand, for several k, and
Colossal-AI's other solver, Chen's, which knows no budget; beside each of these the schedule that Rotor finds when it
may use just as much memory; torch.compile's activation memory budget.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch._dynamo.exc
from ckpt_baselines import checkpointed_blocks, compiled_blocks
from ckpt_chain import Traced
from ckpt_measure import difference, gradients, peak_and_difference, profiled_peak_bytes, step_seconds
from ckpt_tasks import Task
from colossalai.auto_parallel.checkpoint import CheckpointSolverChen
from handson import worker
from rotor import HEADROOM, Schedule, smallest_budget, solve
from torch._inductor.async_compile import shutdown_compile_workers

COMPILE_BUDGETS = (0.5, 0.0, 1.0, 0.2, 0.8)
COMPILE_SECONDS = {"gpu": 45.0, "laptop": 6.0}  # no further budget is begun after so long
BLOCK_SHARES = {"gpu": (0.5, 0.75, 1.0), "laptop": (0.5, 1.0)}
TRIES = 4
EXACT = {"slots": 1000, "headroom": 0.0}  # beside a baseline, which keeps nothing back either


@dataclass
class Point:
    """One way to run the step. Bytes of activations, seconds; None where it does not apply or was not measured.

    `method` is none, rotor, blocks, chen or compile; `beside` names the baseline whose peak was this schedule's budget;
    `again[i]` is how often stage i runs beyond the first time; `solves` how many schedules were measured to fit.
    """

    method: str
    label: str
    budget_bytes: int | None = None
    predicted_bytes: int | None = None
    peak_bytes: int | None = None
    step_seconds: float | None = None
    relative: float | None = None
    predicted_relative: float | None = None
    again: list[int] | None = None
    solve_seconds: float | None = None
    solves: int = 0
    difference: float | None = None
    beside: str = ""
    note: str = ""
    profiled_plain_bytes: int | None = None

    @property
    def feasible(self) -> bool:
        """Whether there is a schedule (or no budget to keep)."""
        return self.peak_bytes is not None


def sweep(task: Task, traced: Traced, *, budgets: int) -> list[Point]:
    """Measure everything; each point is recorded as a row `ckpt_point`."""
    preset = worker.preset()
    plain = partial(task.step, task.model)
    plain()  # warms up: libraries allocate their workspaces once and keep them
    for parameter in task.model.parameters():
        parameter.grad.zero_()
    plain()
    bench = _Bench(task, traced, gradients(task))
    bench.add(Point("none", "no checkpoint"), plain)
    worker.record("ckpt_rounding", **_rounding(task, bench.reference))

    smallest = smallest_budget(traced)
    while (fitting := bench.fit(smallest)) is None:
        smallest = int(1.01 * smallest)  # a step took more than its stages alone had led to expect
    largest = 1 + solve(traced, 2 * traced.saved_bytes + smallest).peak_bytes / (1 - HEADROOM)
    feasible = [int(smallest + (largest - smallest) * k / (budgets - 1)) for k in range(budgets)]
    counts = [round(share * len(task.blocks)) for share in BLOCK_SHARES[preset]]
    total = budgets + 2 * len(counts) + 5
    for budget in (int(0.5 * smallest), int(0.9 * smallest), *feasible):
        bench.schedule(budget, fitting if budget == smallest else bench.fit(budget))
        worker.progress(len(bench.points), total)
    chen = traced.module(CheckpointSolverChen(traced.graph).solve())
    baselines = [("blocks", f"{n} of {len(task.blocks)} blocks", partial(_step_with_blocks, task, n)) for n in counts]
    for method, label, step in (*baselines, ("chen", "Chen's solver", partial(task.step, chen))):
        bench.add(baseline := Point(method, label), step)
        bench.schedule(baseline.peak_bytes, bench.fit(baseline.peak_bytes, **EXACT), beside=label)
        worker.progress(len(bench.points), total)
    # By peak: a step after one that used much less would pay for getting the memory from the system again.
    in_order = sorted(bench.steps, key=lambda index: bench.points[index].peak_bytes)
    taken = step_seconds(task, {str(index): bench.steps[index] for index in in_order})
    for index, seconds in taken.items():
        bench.points[int(index)].step_seconds = seconds
    plain_seconds = bench.points[0].step_seconds
    bench.points += _compiled(bench, plain, plain_seconds)
    for point in bench.points:
        point.relative = point.step_seconds and point.step_seconds / plain_seconds
        worker.record("ckpt_point", feasible=point.feasible, **vars(point))
    return bench.points


class _Bench:
    """The points so far, the step of each that can be timed, and the gradients that all of them must have."""

    def __init__(self, task: Task, traced: Traced, reference: list[torch.Tensor]) -> None:
        self.task, self.traced, self.reference = task, traced, reference
        self.points: list[Point] = []
        self.steps: dict[int, Callable[[], None]] = {}

    def add(self, point: Point, step: Callable[[], None]) -> None:
        """Measure the peak and the gradients of this step, once; its time comes later."""
        point.peak_bytes, point.difference = peak_and_difference(self.task, step, self.reference)
        self.steps[len(self.points)] = step
        self.points.append(point)

    def fit(self, budget: int, **precision: float) -> tuple[Schedule, Point, Callable[[], None]] | None:
        """The schedule for this budget, measured. One that takes more is solved again with as much less."""
        allowed = budget
        for solves in range(1, TRIES + 1):
            schedule = solve(self.traced, allowed, **precision)
            if schedule is None:
                return None
            step = partial(self.task.step, self.traced.module(schedule.graph))
            measured, difference = peak_and_difference(self.task, step, self.reference)
            if measured <= budget:
                return schedule, Point("rotor", "", peak_bytes=measured, difference=difference, solves=solves), step
            allowed -= measured - budget
        return None

    def schedule(
        self, budget: int, fitting: tuple[Schedule, Point, Callable[[], None]] | None, beside: str = ""
    ) -> None:
        """Add what `fit` found for this budget, or that it is infeasible."""
        label = f"Rotor, {budget / 2**20:.0f} MiB"
        if fitting is None:
            self.points.append(Point("rotor", label, budget_bytes=budget, beside=beside))
            return
        schedule, point, step = fitting
        point.label, point.budget_bytes, point.beside = label, budget, beside
        point.predicted_bytes, point.again = schedule.peak_bytes, schedule.again
        point.predicted_relative = schedule.step_seconds / self.traced.plain_seconds
        point.solve_seconds = schedule.solve_seconds
        self.steps[len(self.points)] = step
        self.points.append(point)


def _rounding(task: Task, reference: list[torch.Tensor]) -> dict[str, float | str]:
    """How far the plain network's gradients move when nothing but rounding is changed.

    On a GPU the products are computed in full fp32 instead of TF32; on the CPU the batch is put in reverse order, so
    that sums are added up in another order.
    """
    for parameter in task.model.parameters():
        parameter.grad.zero_()
    if task.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        task.step(task.model)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        return {"change": "fp32 for TF32", "difference": difference(task, reference)}
    flipped = {name: value.flip(0) for name, value in task.inputs.items()}
    labels = None if task.labels is None else task.labels.flip(0)
    other = dataclasses.replace(task, inputs=flipped, labels=labels)
    other.step(task.model)
    return {"change": "batch in reverse order", "difference": difference(task, reference)}


def _step_with_blocks(task: Task, count: int) -> None:
    with checkpointed_blocks(task, count):
        task.step(task.model)


def _compiled(bench: _Bench, plain: Callable[[], None], plain_seconds: float) -> list[Point]:
    """torch.compile under one activation memory budget after another, as many as the time allows."""
    task, preset = bench.task, worker.preset()
    points: list[Point] = []
    now = time.process_time if task.device.type == "cpu" else time.monotonic
    began = now()
    for budget in COMPILE_BUDGETS:
        if now() - began > COMPILE_SECONDS[preset]:
            break
        step = partial(task.step, task.model)
        point = Point("compile", f"torch.compile, budget {budget:g}")
        with compiled_blocks(task, budget):
            try:
                step()  # compiles forward and backward
            except torch._dynamo.exc.BackendCompilerFailed as error:
                point.note = f"not compiled here: {str(error).splitlines()[0]}"
                return [*points, point]
            if task.device.type == "cuda":
                point.peak_bytes, point.difference = peak_and_difference(task, step, bench.reference)
            else:
                for parameter in task.model.parameters():
                    parameter.grad.zero_()
                point.peak_bytes, point.difference = profiled_peak_bytes(task, step), difference(task, bench.reference)
            seconds = step_seconds(task, {"compiled": step})["compiled"]
        plain_now = step_seconds(task, {"plain": plain})["plain"]
        point.step_seconds = (
            seconds * plain_seconds / plain_now
        )  # the machine may have become slower or faster meanwhile
        points.append(point)
        worker.progress(len(bench.points) + len(points), len(bench.points) + len(COMPILE_BUDGETS))
    if task.device.type == "cuda":
        shutdown_compile_workers()
    else:
        points[0].profiled_plain_bytes = profiled_peak_bytes(task, plain)
    return points
