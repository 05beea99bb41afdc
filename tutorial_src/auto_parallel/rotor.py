"""Rotor: from a memory budget to the schedule of least time that fits in it, and to the code that follows it.

The solver is colossalai's, with its table computed by numpy (repair `rotor`). A schedule is a sequence of operations
on stages: run forward keeping everything, keeping the input alone, or keeping nothing; run backward. From it come what
this module adds: the peak that is to be expected, the time, and how often each stage runs again.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass

import numpy as np
from ckpt_chain import Linearised, Traced
from colossalai.auto_parallel.checkpoint.operation import (
    Backward,
    Chain,
    ForwardCheck,
    ForwardEnable,
    Loss,
    Operation,
)
from torch.fx import Graph

SLOTS = 500  # upstream's default: memory is counted in five-hundredths of the budget
HEADROOM = 0.03  # of the budget, kept back: allocators round up, and the loss may come after the last stage


class Rotor(Linearised):
    """Upstream's solver for a chain that was measured."""

    def __init__(self, traced: Traced, budget: float, slots: int = SLOTS) -> None:
        self._measured = traced.chain
        super().__init__(traced.graph, budget, memory_slots=slots, optim_multiplier=-1)

    def _construct_chain(self, *_: object) -> Chain:
        return copy.deepcopy(self._measured)


@dataclass(frozen=True)
class Schedule:
    """What Rotor found for a budget: bytes, seconds.

    `peak_bytes` and `step_seconds` are what the chain's figures lead one to expect; `again[i]` is how often stage i
    runs forward beyond the first time; `graph` is the model's, marked with its checkpoints.
    """

    budget: int
    operations: list[Operation]
    graph: Graph
    peak_bytes: int
    step_seconds: float
    again: list[int]
    solve_seconds: float


def solve(traced: Traced, budget: float, *, slots: int = SLOTS, headroom: float = HEADROOM) -> Schedule | None:
    """The fastest schedule whose peak stays within `budget` bytes of activations, or None where there is none.

    The solver rounds every size up to whole slots, up to one slot a stage, and so leaves memory unused. It is therefore
    given a table that is larger by as much; less and less of it is used, until a schedule's exact peak fits.
    """
    began = time.perf_counter()
    limit, stages = budget * (1 - headroom), len(traced.stages)
    slots += stages
    solver = Rotor(traced, limit * slots / (slots - stages), slots)
    chain = solver.chain
    cost, back = solver._compute_table_c(chain, slots)
    for available in range(slots - chain.x[0], 0, -1):
        if not np.isfinite(cost[available, 0, stages]):
            return None
        sequence = solver._backtrack(chain, 0, stages, available, cost, back)
        operations = sequence.list_operations()
        peak = peak_bytes(operations, traced.chain)
        if peak <= limit:
            break
    else:
        return None
    solver._annotate_from_sequence(sequence, solver.node_list)
    again = [-1] * stages
    for operation in operations:
        if not isinstance(operation, Backward | Loss):
            again[operation.index] += 1
    return Schedule(
        budget=int(budget),
        operations=operations,
        graph=solver.graph,
        peak_bytes=peak,
        step_seconds=float(cost[available, 0, stages]),
        again=again,
        solve_seconds=time.perf_counter() - began,
    )


def peak_bytes(operations: list[Operation], chain: Chain) -> int:
    """Follow a schedule and note the most that is alive at one time, in the unit of the chain's sizes.

    The network's input is alive throughout and counts as free: `chain.x[0]` is 0. A stage that keeps everything adds
    `xbar`, its output included; a checkpoint is an output that is kept until the stage after it is done; backward adds
    the gradient of the stage's output, as large as the output itself, and its extra memory.
    """
    kept = peak = chain.x[0]
    passing = 0  # an output on its way to the next stage, kept by nobody yet
    checkpoints: dict[int, int] = {}
    for operation in operations:
        if isinstance(operation, Loss):
            continue
        i = operation.index
        if isinstance(operation, Backward):
            peak = max(peak, kept + chain.x[i + 1] + chain.btmp[i])
            kept -= chain.xbar[i + 1] + checkpoints.pop(i, 0)
            continue
        if isinstance(operation, ForwardEnable | ForwardCheck) and passing:
            kept += passing
            checkpoints[i], passing = passing, 0
        if isinstance(operation, ForwardEnable):
            peak = max(peak, kept + chain.xbar[i + 1] + chain.ftmp[i])
            kept += chain.xbar[i + 1]
        else:
            peak = max(peak, kept + passing + chain.x[i + 1] + chain.ftmp[i])
            passing = chain.x[i + 1]
    return peak


def smallest_budget(traced: Traced, *, precision: float = 0.005) -> int:
    """The smallest budget with a schedule, in bytes, to `precision` of what saving everything takes."""
    low, high = 0.0, float(traced.saved_bytes)
    while solve(traced, high) is None:
        low, high = high, 2 * high
    while high - low > precision * traced.saved_bytes:
        middle = (low + high) / 2
        low, high = (low, middle) if solve(traced, middle) else (middle, high)
    return int(np.ceil(high))
