"""What a rank tells of itself: where it stands, which blocks it holds, and what a step costs it."""

from __future__ import annotations

import re
from typing import Any

import torch
import torch.distributed as dist
from colossalai.legacy.engine import Engine
from engine import take_step
from handson import worker
from handson.measure.communication import CommunicationCounter
from handson.measure.memory import step_memory
from handson.measure.timing import median_step_time
from images import synthetic
from settings import Settings
from sharding import Part, held_parameters, shard_of


def describe(part: Part, settings: Settings) -> None:
    """Log the division; record this rank's place and, on rank 0, which block of each parameter every rank holds."""
    s, mesh = settings, part.mesh
    held = list(held_parameters(part))
    count = sum(mine.tensor.numel() for mine in held)
    worker.record("mesh", **mesh.index, sizes=mesh.size, title=s.title(dist.get_world_size()))
    worker.record(
        "parameters_total", count=count, bytes=sum(mine.tensor.numel() * mine.tensor.element_size() for mine in held)
    )
    worker.log(
        f"ViT: {s.depth} blocks, hidden size {s.hidden_size}, {s.num_heads} heads; "
        f"{s.batch_size} images of {s.img_size}x{s.img_size} a step"
    )
    whole = sum(torch.Size(shape).numel() for shape in part.shapes.values())
    world = dist.get_world_size()
    worker.log(
        f"{world} rank{'s' * (world > 1)} over {dist.get_backend()}: {s.title(world)}\n"
        f"rank 0 holds {count:,} of {whole:,} parameters"
    )
    rows = []
    for mine in held:
        shard = shard_of(mine.layer, mine.key, part.shapes[mine.name], mesh)
        rows.append(
            dict(
                name=mine.name,
                layer=type(mine.layer).__name__,
                global_shape=list(part.shapes[mine.name]),
                notes="; ".join(filter(None, ["stored transposed" if shard.transposed else "", shard.note])),
                shard=dict(rank=dist.get_rank(), local_shape=list(mine.tensor.shape), block=shard.block),
            )
        )
    everyone: list[Any] = [None] * world
    dist.all_gather_object(everyone, rows)
    if mesh.is_first():
        for row in sharding_table(everyone, list(part.shapes)):
            worker.record("parameter", **row)


def sharding_table(everyone: list[list[dict[str, Any]]], order: list[str]) -> list[dict[str, Any]]:
    """One row for each parameter from what each rank holds; transformer blocks that are held alike share a row."""
    rows: dict[str, dict[str, Any]] = {}
    for held in everyone:
        for one in held:
            row = rows.setdefault(one["name"], one | dict(count=1, shards=[]))
            row["shards"].append(one["shard"])
    alike: dict[str, list[tuple[int, dict[str, Any]]]] = {}
    for name in order:
        row = rows[name]
        del row["shard"]
        block = re.match(r"blocks\.(\d+)\.(.*)", name)
        key = f"{block[2]} {row['shards']}" if block else name
        alike.setdefault(key, []).append((int(block[1]) if block else -1, row))
    blocks = 1 + max(number for group in alike.values() for number, _ in group)
    table = []
    for group in alike.values():
        first, last, row = group[0][0], group[-1][0], group[0][1]
        if first >= 0:
            which = "*" if len(group) == blocks else f"{first}-{last}" if last > first else f"{first}"
            row |= dict(name=re.sub(r"\.\d+\.", f".{which}.", row["name"], count=1), count=len(group))
        table.append(row)
    return table


def measure(part: Part, settings: Settings, engine: Engine) -> None:
    """Time steps on one batch of random images, then measure the memory and the communication of one more step."""
    s, mesh, device = settings, part.mesh, worker.device()
    batch = next(synthetic(settings, mesh))

    def step() -> None:
        take_step(engine, batch)

    time = median_step_time(step, warmup=s.warmup_steps, repeats=s.timed_steps, device=device)
    counter = CommunicationCounter(groups=group_names())

    def counted_step() -> None:
        with counter:
            step()

    memory = step_memory(counted_step, model=part.model, optimizer=engine.optimizer, alive=batch, device=device)
    # A transfer between two stages goes over the default group, but concerns these two alone.
    communication = [
        row | {"group_size": 2} if row["collective"] in ("send", "recv") else row for row in counter.rows()
    ]

    worker.record("memory", **memory.fields())
    worker.record("communication", rows=communication)
    if mesh.is_first():
        worker.record(
            "step_time",
            median_ms=time.median_ms,
            all_ms=time.all_ms,
            warmup=time.warmup,
            method=time.method,
            images_per_second=time.per_second(s.batch_size),
        )
    worker.log(
        f"step: {time.median_ms:.3g} ms (median of {len(time.all_ms)}), {time.per_second(s.batch_size):.3g} images/s"
    )
    for name, value in memory.fields().items():
        if name.endswith("_bytes"):
            worker.log(f"memory of rank 0: {value / 2**20:8.3g} MiB {MEMORY[name]}")
    for row in communication:
        call = f"{row['calls']} x {row['collective']}"
        worker.log(f"communication of rank 0: {call:20} over {row['group']:9} {row['bytes'] / 1e6:.3g} MB")


MEMORY = {
    "peak_bytes": "at the peak, of it",
    "parameter_bytes": "parameters",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activation_bytes": "saved for the backward pass",
}


def group_names() -> dict[dist.ProcessGroup, str]:
    """Colossal-AI's process groups under the names of the mesh's axes."""
    from colossalai.legacy.context import ParallelMode as Axis
    from colossalai.legacy.core import global_context as gpc

    names = {
        Axis.GLOBAL: "pipeline" if gpc.is_initialized(Axis.PIPELINE) else "world",  # stages pass activations on here
        Axis.DATA: "data",
        Axis.MODEL: "model",
        Axis.PIPELINE: "pipeline",
        Axis.TENSOR: "tensor",
        Axis.PARALLEL_1D: "tensor",
        Axis.PARALLEL_2D_ROW: "row",
        Axis.PARALLEL_2D_COL: "col",
        Axis.PARALLEL_2P5D_ROW: "row",
        Axis.PARALLEL_2P5D_COL: "col",
        Axis.PARALLEL_2P5D_DEP: "dep",
        Axis.PARALLEL_3D_INPUT: "input",
        Axis.PARALLEL_3D_WEIGHT: "weight",
        Axis.PARALLEL_3D_OUTPUT: "output",
        Axis.PARALLEL_3D_INPUT_X_WEIGHT: "input x weight",
        Axis.PARALLEL_3D_OUTPUT_X_WEIGHT: "output x weight",
    }
    return {gpc.get_group(axis): name for axis, name in names.items() if gpc.is_initialized(axis)}
