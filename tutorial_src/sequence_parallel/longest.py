"""The longest sequence that trains under one memory cap, found by search: the lengths are doubled, then halved between.

    torchrun --nproc_per_node 2 longest.py
    torchrun --nproc_per_node 4 longest.py WAYS=ring_online CAP_MIB=64

All ranks share one sequence. A trial is a whole training step, forward, backward, sum over the ranks and AdamW, with
the optimizer's states in place, and its figure is the peak of the fullest rank: of the CUDA allocator, or of the live
tensors, counted. The same at one short length tells which parts shrink with the number of ranks.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable
from typing import Any

import mesh as meshes
import torch
import torch.distributed as dist
from handson import worker
from handson.measure.memory import StepMemory, step_memory
from length_step import RINGS, Sizes, prepare
from length_theory import kept

SIZES = {
    "laptop": Sizes(batch=1, hidden=32, heads=4, layers=6, vocabulary=64),
    "gpu": Sizes(batch=1, hidden=1024, heads=16, layers=8, vocabulary=8192),
}
# the cap in MiB, the first length that is tried (times the ranks), and the grain: lengths are multiples of it
SEARCH = {"laptop": (8, 128, 4), "gpu": (16 * 1024, 2048, 64)}
CLOSE = 0.03  # the search ends when the next length that does not fit is at most this much longer


def main() -> None:
    """Search for each way in turn."""
    ways, cap, sizes = read(sys.argv[1:])
    mesh = meshes.join(sequence=worker.place().world_size)
    gc.freeze()  # what the imports made stays; looking through it before each trial would be most of the time
    _, start, grain = SEARCH[worker.preset()]
    worker.record("sizes", cap_bytes=cap, grain=grain, close=CLOSE, **dataclasses.asdict(sizes))
    shared = f"{mesh.ring.size} rank{'s' * (mesh.ring.size > 1)}, {dist.get_backend()}"
    worker.log(f"longest sequence under {cap / 2**20:,.0f} MiB a rank; {shared}")
    for done, way in enumerate(ways, start=1):
        trials: dict[int, tuple[int, StepMemory]] = {}

        def fits(length: int, way: str = way, trials: dict[int, Any] = trials) -> bool:
            own = measure(way, length, sizes, mesh)
            trials[length] = fullest(own.peak_bytes), own
            return trials[length][0] <= cap

        length = search(fits, start * mesh.ring.size, grain)
        if start not in trials:
            fits(start)
        record(way, length, trials, sizes, mesh)
        worker.progress(done, len(ways))
    dist.barrier()
    dist.destroy_process_group()


def read(argv: list[str]) -> tuple[tuple[str, ...], int, Sizes]:
    """Which ways are asked for, under how many bytes; a wrong setting is refused in one sentence."""
    ranks = worker.place().world_size
    known = ("plain", *RINGS) if ranks == 1 else ("tensor", *RINGS)
    given = dict(WAYS=",".join(known), CAP_MIB=str(SEARCH[worker.preset()][0]))
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in given:
            worker.refuse(f"{word!r} is no setting of longest.py: use KEY=value with {', '.join(given)}")
        given[key] = value
    ways = tuple(given["WAYS"].split(","))
    for way in ways:
        if way not in known:
            worker.refuse(f"WAYS={way} is not known on {ranks} rank{'s' * (ranks > 1)}; use {', '.join(known)}")
    if "tensor" in ways and SIZES[worker.preset()].heads % ranks:
        heads = SIZES[worker.preset()].heads
        worker.refuse(f"{heads} heads cannot be shared by {ranks} tensor-parallel ranks; use WAYS={','.join(RINGS)}")
    if not given["CAP_MIB"].isdecimal() or int(given["CAP_MIB"]) < 1:
        worker.refuse(f"CAP_MIB={given['CAP_MIB']} must be a whole number of MiB")
    return ways, int(given["CAP_MIB"]) * 2**20, SIZES[worker.preset()]


def search(fits: Callable[[int], bool], start: int, grain: int) -> int:
    """The longest length, a multiple of `grain`, for which `fits(length)`: doubled until it fails, then bisected.

    `start` is a multiple of `grain`. Ends when the shortest length known to fail is within CLOSE of the longest known
    to fit. Raises SystemExit, with one sentence, when not even `grain` fits.
    """
    low, high = 0, start
    while fits(high):
        low, high = high, 2 * high
    while high - low > max(grain, CLOSE * low):
        middle = (low + high) // 2 // grain * grain
        low, high = (middle, high) if fits(middle) else (low, middle)
    if low == 0:
        worker.refuse(f"not even a sequence of {grain} tokens fits under the cap; give CAP_MIB a larger one")
    return low


def measure(way: str, length: int, sizes: Sizes, mesh: meshes.Mesh) -> StepMemory:
    """The memory of one training step at this length, on this rank."""
    gc.collect()  # what the last trial left
    work = prepare(way, length, sizes, mesh)
    for parameter in work.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    work.optimizer.step()  # its states exist from here on, as from a second step on
    if worker.device().type == "cuda":
        torch.cuda.empty_cache()
    return step_memory(work.step, model=work.model, optimizer=work.optimizer, alive=work.batch, device=worker.device())


def fullest(peak: int) -> int:
    """The largest peak of any rank: the rank that decides what fits."""
    largest = torch.tensor(peak, dtype=torch.int64, device=worker.device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def record(way: str, length: int, trials: dict[int, tuple[int, StepMemory]], sizes: Sizes, mesh: Any) -> None:
    """What was found, every trial, and of what the memory is made at the longest and at one short length."""
    for at, where in ((length, "longest"), (SEARCH[worker.preset()][1], "short")):
        memory = trials[at][1].fields()
        expected = kept(way, at, sizes, mesh.ring.size)
        worker.record("parts", way=way, where=where, length=at, expected_activations=expected, **memory)
    peaks = sorted((tried, peak) for tried, (peak, _) in trials.items())
    if mesh.is_first():
        worker.record("longest", way=way, length=length, peak_bytes=trials[length][0], trials=peaks)
    found = f"{length:>7} tokens, peak {trials[length][0] / 2**20:,.2f} MiB"
    worker.log(f"{way:15}{found}, after {len(trials)} trials")


if __name__ == "__main__":
    main()
