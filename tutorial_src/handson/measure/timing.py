"""The time of one training step, in milliseconds: the median of repeats, after a warm-up.

Marks are set at the boundaries between steps and read after the last one. On CUDA the marks are events on
the current stream, so the device is never drained between two steps and the figure is what a training loop
sustains, gaps included; on the CPU, where calls return when they are done, the marks are readings of
`time.perf_counter`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch


@dataclass(frozen=True)
class StepTime:
    """Times of single steps. `method` is "cuda events" or "wall clock"."""

    median_ms: float
    all_ms: list[float] = field(repr=False)
    warmup: int
    method: str

    def per_second(self, items: float) -> float:
        """How many items a second go through, where one step handles `items` of them."""
        return items * 1000 / self.median_ms


def median_step_time(
    step: Callable[[], object],
    *,
    warmup: int = 3,
    repeats: int = 10,
    device: torch.device | str | None = None,
) -> StepTime:
    """Call `step` `warmup + repeats` times and time the last `repeats` of them.

    Args:
        step: one whole step: forward, backward, update. In a job of several ranks every rank calls this
            with the same numbers, since a step waits for its peers.
        warmup: steps before the clock starts; they pay for allocation, autotuning and first connections.
        repeats: steps that are timed, at least one.
        device: where the step computes; by default CUDA when this process has started using it.
    """
    if repeats < 1:
        raise ValueError(f"repeats={repeats}: at least one step must be timed")
    on_cuda = uses_cuda(device)
    for _ in range(warmup):
        step()
    all_ms = _by_events(step, repeats, torch.device(device or "cuda")) if on_cuda else _by_clock(step, repeats)
    method = "cuda events" if on_cuda else "wall clock"
    return StepTime(median_ms=statistics.median(all_ms), all_ms=all_ms, warmup=warmup, method=method)


def uses_cuda(device: torch.device | str | None) -> bool:
    """Whether `device` is a GPU; None asks whether this process has started using one."""
    return torch.cuda.is_initialized() if device is None else torch.device(device).type == "cuda"


def _by_events(step: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    with torch.cuda.device(device):
        torch.cuda.synchronize()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            step()
            mark.record()
        torch.cuda.synchronize()
    return [before.elapsed_time(after) for before, after in pairwise(marks)]


def _by_clock(step: Callable[[], object], repeats: int) -> list[float]:
    marks = [time.perf_counter()]
    for _ in range(repeats):
        step()
        marks.append(time.perf_counter())
    return [(after - before) * 1000 for before, after in pairwise(marks)]
