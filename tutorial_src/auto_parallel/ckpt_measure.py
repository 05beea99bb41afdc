"""What a step takes: its peak of activations, its time, and whether its gradients are the plain model's.

The peak is what is alive beyond the fixed part (parameters, gradients, buffers); the batch counts, since a schedule
has to keep it. On a GPU it is the allocator's peak. On the CPU live storages are counted by a dispatch mode
(`handson.measure.memory`). A compiled model cannot run under a dispatch mode, so on the CPU its peak is read from
the profiler's record of every allocation, which also sees scratch memory inside operators.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import torch
from ckpt_tasks import Task
from handson.measure.memory import PeakMemory
from handson.measure.timing import median_step_time

Step = Callable[[], None]

# On the CPU: at least so many turns, and at most so many within so many seconds of computing for each step.
ROUNDS, STEP_SECONDS = (2, 6), 0.4


def peak_bytes(task: Task, step: Step) -> int:
    """The most bytes alive at one time during one step, the fixed part left out."""
    held = sum(value.nbytes for value in task.inputs.values())
    with PeakMemory(alive=[*task.fixed, *task.inputs.values()], device=task.device) as memory:
        step()
    return memory.peak_bytes - memory.start_bytes + held


def profiled_peak_bytes(task: Task, step: Step) -> int:
    """The same on the CPU by torch's profiler: the highest running sum of what was allocated and freed."""
    held = sum(value.nbytes for value in task.inputs.values())
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as record:
        step()
    alive = highest = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            highest = max(highest, alive)
    return highest + held


def step_seconds(task: Task, steps: Mapping[str, Step]) -> dict[str, float]:
    """The time of each step, all of them warm already.

    On a GPU the median of five. On the CPU the steps take turns, so that all of them meet the same neighbours on the
    machine, and the least CPU time counts: other programs can only lengthen it.
    """
    if task.device.type == "cuda":
        timed = {name: median_step_time(step, warmup=1, repeats=5, device=task.device) for name, step in steps.items()}
        return {name: taken.median_ms / 1e3 for name, taken in timed.items()}
    seconds = {name: [] for name in steps}
    began = time.process_time()
    while len(next(iter(seconds.values()))) < ROUNDS[0] or (
        time.process_time() - began < STEP_SECONDS * len(steps) and len(next(iter(seconds.values()))) < ROUNDS[1]
    ):
        for name, step in steps.items():
            started = time.process_time()
            step()
            seconds[name].append(time.process_time() - started)
    return {name: min(taken) for name, taken in seconds.items()}


def gradients(task: Task) -> list[torch.Tensor]:
    """A copy of every parameter's gradient as it is now."""
    return [parameter.grad.clone() for parameter in task.model.parameters()]


def peak_and_difference(task: Task, step: Step, reference: list[torch.Tensor]) -> tuple[int, float]:
    """The peak of one step, and how far its gradients are from `reference`."""
    for parameter in task.model.parameters():
        parameter.grad.zero_()
    return peak_bytes(task, step), difference(task, reference)


def difference(task: Task, reference: list[torch.Tensor]) -> float:
    """The largest relative difference of one parameter's gradient, by its norm; 0 when all are equal bit for bit."""
    pairs = [(p.grad, wanted) for p, wanted in zip(task.model.parameters(), reference, strict=True)]
    if all(torch.equal(found, wanted) for found, wanted in pairs):
        return 0.0
    return max(float((found - wanted).norm() / wanted.norm()) for found, wanted in pairs)
