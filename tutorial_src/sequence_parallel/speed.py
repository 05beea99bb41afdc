"""Step time against sequence length, for every way to share one global batch among the ranks, in one job.

    python speed.py
    torchrun --nproc_per_node 2 speed.py
    torchrun --nproc_per_node 4 speed.py WAYS=data,ring_online LENGTHS=64,128

The ways are those of length_step.py: data, tensor and sequence parallelism; on one rank, plain attention and
ring_online. A length that would not fit is left out, by the formulas of what it keeps. At the shortest length all ways
start from the same weights, so that their losses can be compared. Beside the times stand the operations and the bytes
of a step, and how fast the links are: what computing should take, and what sending does.
"""

from __future__ import annotations

import gc
import sys
from dataclasses import asdict

import mesh as meshes
import torch
import torch.distributed as dist
from handson import worker
from handson.measure.communication import CommunicationCounter
from handson.measure.timing import median_step_time
from length_step import RINGS, Sizes, prepare
from length_theory import flops, kept

SIZES = {
    "laptop": Sizes(batch=4, hidden=64, heads=4, layers=2, vocabulary=256),
    "gpu": Sizes(batch=4, hidden=1024, heads=16, layers=8, vocabulary=8192),
}
LENGTHS = {"laptop": (64, 128, 256, 512), "gpu": (512, 1024, 2048, 4096, 8192)}
FITS = {"laptop": 2**30, "gpu": 56 * 2**30}  # bytes that a step may keep, by the formulas
LINK = {"laptop": 2**20, "gpu": 2**26}  # bytes of the message that measures the links
WARMUP, REPEATS = 0, 3  # two steps have been taken by then


def main() -> None:
    """Time each way at each length, then the links."""
    ways, lengths = read(sys.argv[1:])
    sizes, ranks = SIZES[worker.preset()], worker.place().world_size
    mesh = meshes.join(sequence=ranks)
    worker.record("sizes", **asdict(sizes), lengths=lengths)
    worker.log(f"{sizes.batch} sequences a step, {ranks} rank{'s' * (ranks > 1)}, {dist.get_backend()}; ms a step")
    worker.log(f"{'tokens':12}" + "".join(f"{length:>10}" for length in lengths))
    for done, way in enumerate(ways, start=1):
        times = [time_one(way, length, sizes, mesh, same_weights=length == min(lengths)) for length in lengths]
        worker.log(f"{way:12}" + "".join(f"{time:>10.3g}" if time else f"{'too large':>10}" for time in times))
        worker.progress(done, len(ways))
    if ranks > 1:
        record_links(mesh)
    dist.barrier()
    dist.destroy_process_group()


def read(argv: list[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Which ways and lengths are asked for; a wrong setting, or what does not divide, is refused in one sentence."""
    ranks, sizes = worker.place().world_size, SIZES[worker.preset()]
    known = ("data", "tensor", *RINGS) if ranks > 1 else ("plain", *RINGS)
    usual = ("data", "tensor", "ring", "ring_online") if ranks > 1 else ("plain", "ring_online")
    given = dict(WAYS=",".join(usual), LENGTHS=",".join(map(str, LENGTHS[worker.preset()])))
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in given:
            worker.refuse(f"{word!r} is no setting of speed.py: use KEY=value with {', '.join(given)}")
        given[key] = value
    ways, lengths = given["WAYS"].split(","), given["LENGTHS"].split(",")
    for way in ways:
        if way not in known:
            worker.refuse(
                f"WAYS names {way!r}, which is not known on {ranks} rank{'s' * (ranks > 1)}; use {', '.join(known)}"
            )
    for length in lengths:
        if not length.isdecimal() or int(length) < 1:
            worker.refuse(f"LENGTHS names {length!r}, which is no number of tokens")
        if any(way in RINGS for way in ways) and int(length) % ranks:
            worker.refuse(f"a sequence of {length} tokens cannot be cut into {ranks} equal pieces")
    if "data" in ways and sizes.batch % ranks:
        worker.refuse(f"{sizes.batch} sequences cannot be shared by {ranks} data-parallel ranks; leave out data")
    if "tensor" in ways and sizes.heads % ranks:
        worker.refuse(f"{sizes.heads} heads cannot be shared by {ranks} tensor-parallel ranks; leave out tensor")
    return tuple(ways), tuple(map(int, lengths))


def time_one(way: str, length: int, sizes: Sizes, mesh: meshes.Mesh, *, same_weights: bool) -> float | None:
    """Time one way at one length and record it; None where it would not fit."""
    ranks, device = mesh.ring.size, worker.device()
    needed = kept(way, length, sizes, ranks)
    row = dict(way=way, length=length, kept_bytes=needed, flops=flops(way, length, sizes, ranks))
    if needed > FITS[worker.preset()]:
        if mesh.is_first():
            worker.record("speed", **row, median_ms=None)
        return None
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    work = prepare(way, length, sizes, mesh, seed=1 if same_weights else None)
    loss = work.step().float()
    if way != "tensor":
        dist.all_reduce(loss)
    with CommunicationCounter() as counter:
        work.step()
    time = median_step_time(work.step, warmup=WARMUP, repeats=REPEATS, device=device)
    if mesh.is_first():
        rate = time.per_second(sizes.batch * length)
        row |= dict(median_ms=time.median_ms, all_ms=time.all_ms, tokens_per_second=rate, rows=counter.rows())
        worker.record("speed", **row, wire_bytes=counter.total_wire_bytes(), loss=loss.item() if same_weights else None)
    return time.median_ms


def record_links(mesh: meshes.Mesh) -> None:
    """How many bytes a second a rank sends to its neighbour in the ring, and in an all-reduce over all ranks."""
    size, device = LINK[worker.preset()], worker.device()
    message = torch.ones(size // 4, device=device)
    passing = median_step_time(lambda: mesh.ring.pass_on(message).wait(), warmup=2, repeats=5, device=device)
    reducing = median_step_time(lambda: dist.all_reduce(message), warmup=2, repeats=5, device=device)
    if mesh.is_first():
        reduced = 2 * (mesh.ring.size - 1) / mesh.ring.size * size
        worker.record(
            "link", message_bytes=size, ring=passing.per_second(size), all_reduce=reducing.per_second(reduced)
        )


if __name__ == "__main__":
    main()
