"""How fast this job's devices compute and its links are: what the solver's costs in seconds stand on.

Links: Colossal-AI's AlphaBetaProfiler times all-reduces between each two ranks, tiny ones for the latency (alpha) and
one large one for the time of a byte (1 / beta); an axis of the mesh is as slow as its slowest pair of neighbours.
Computing: a training step of the model on one device's share of the batch, on all devices at once, as a data-parallel
step would; its multiply-accumulates (matrix products and convolutions) over its time.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from handson import worker
from handson.measure.timing import median_step_time
from solver import Machine
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

if TYPE_CHECKING:
    from collections.abc import Callable


def measure(mesh: tuple[int, int], model: nn.Module, step: Callable[[], object], share: torch.Tensor) -> Machine:
    """The machine under this job; every rank calls it and gets the same one.

    Args:
        mesh: ranks along the two axes; rank r is at (r // mesh[1], r % mesh[1]).
        model: the model, whole.
        step: one training step of it on this rank's share of the batch, without communication.
        share: that share's images, [batch / ranks, 3, h, w].
    """
    latency, seconds_a_byte = axes(mesh)
    time = median_step_time(step, warmup=2, repeats=3, device=worker.device())
    # The slowest device sets the pace of all.
    slowest = torch.tensor([time.median_ms / 1e3], dtype=torch.float64, device=worker.device())
    dist.all_reduce(slowest, op=dist.ReduceOp.MAX)
    macs = multiply_accumulates(model, share)
    machine = Machine(
        macs_per_second=macs / slowest.item(),
        bytes_per_second=tuple(1 / one for one in seconds_a_byte),
        latency_s=tuple(latency),
    )
    worker.record(
        "links",
        mesh=list(mesh),
        latency_s=list(machine.latency_s),
        bytes_per_second=list(machine.bytes_per_second),
        macs_per_second=machine.macs_per_second,
        macs=macs,
        step_ms=slowest.item() * 1e3,
        images=share.shape[0],
    )
    worker.log(f"one device: {macs:.3g} MAC in {slowest.item() * 1e3:.3g} ms, {machine.macs_per_second:.3g} MAC/s")
    for axis, devices in enumerate(mesh):
        if devices > 1:
            speed = machine.bytes_per_second[axis] / 1e9
            worker.log(f"mesh axis {axis} ({devices} ranks): {speed:.3g} GB/s, {machine.latency_s[axis] * 1e6:.3g} us")
    return machine


def axes(mesh: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Seconds of latency and seconds a byte along each axis; 0 latency along an axis of one rank."""
    from colossalai.device.alpha_beta_profiler import AlphaBetaProfiler

    with contextlib.redirect_stdout(io.StringIO()):  # it logs every one of its measurements
        pairs = AlphaBetaProfiler(list(range(dist.get_world_size())), warmup=2, repeat=10).alpha_beta_dict
    ranks = torch.arange(mesh[0] * mesh[1]).view(mesh)
    latency, seconds_a_byte = [], []
    fastest = min(beta for _, beta in pairs.values())
    for lines in (ranks.t().tolist(), ranks.tolist()):
        links = [pairs[pair] for line in lines for pair in itertools.pairwise(line)]
        latency.append(max((alpha for alpha, _ in links), default=0.0))
        seconds_a_byte.append(max((beta for _, beta in links), default=fastest))
    return latency, seconds_a_byte


def multiply_accumulates(model: nn.Module, images: torch.Tensor) -> float:
    """Those of one forward and backward pass: half the floating-point operations that torch counts."""
    with FlopCounterMode(display=False) as counter:
        model(images).sum().backward()
    for parameter in model.parameters():
        parameter.grad = None
    return counter.get_total_flops() / 2
