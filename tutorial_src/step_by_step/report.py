"""What every step says of itself, from plain PyTorch to the hybrid: its loss, its share, time, memory and traffic."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

import torch
import torch.distributed as dist
from handson import worker
from handson.measure.communication import CommunicationCounter
from handson.measure.memory import step_memory
from handson.measure.timing import median_step_time
from vit import BATCH_SIZE, SIZES, STEPS


def report(step: int, loss: torch.Tensor | None) -> None:
    """Print and record the loss of the global batch: the mean over the ranks that have a loss.

    A rank's loss is the mean over its own images, and those that share a batch have equally many. In a pipeline only
    the last stage computes a loss; the others give None.
    """
    worker.progress(step + 1, STEPS)
    own = [0.0, 0.0] if loss is None else [loss.item(), 1.0]
    total = torch.tensor(own, dtype=torch.float64, device=worker.device())
    if dist.is_initialized():
        dist.all_reduce(total)
    mean = (total[0] / total[1]).item()
    worker.log(f"step {step}: loss {mean:.6f}")
    if worker.place().rank == 0:
        worker.record("loss", step=step, loss=mean)


def measure(
    train_step: Callable[[dict[str, torch.Tensor]], object],
    model: torch.nn.Module,
    optimizer: object,
    loader: torch.utils.data.DataLoader,
    **axes: dist.ProcessGroup,
) -> None:
    """Record which part of the work is this rank's, and what further training steps cost it.

    Args:
        train_step: takes one step on a batch of this rank.
        model: what this rank trains.
        optimizer: its optimizer, plain or wrapped by a Booster.
        loader: gives this rank's share of each batch.
        axes: the process groups, by the axis of the mesh that they lie along: data, pipeline, tensor.
    """
    index = dict.fromkeys(("data", "pipeline", "tensor"), 0) | {axis: dist.get_rank(g) for axis, g in axes.items()}
    size = dict.fromkeys(index, 1) | {axis: dist.get_world_size(group) for axis, group in axes.items()}
    worker.record("mesh", **index, sizes=size)
    worker.record("sizes", tokens=(SIZES.image // SIZES.patch) ** 2 + 1, **asdict(SIZES))
    record_share(model, loader, index["tensor"])

    device = worker.device()
    batch = {name: tensor.to(device) for name, tensor in next(iter(loader)).items()}

    def step() -> None:
        train_step(batch)

    time = median_step_time(step, device=device)
    if worker.place().rank == 0:
        worker.record(
            "step_time",
            median_ms=time.median_ms,
            all_ms=time.all_ms,
            warmup=time.warmup,
            images_per_second=time.per_second(BATCH_SIZE),
        )
    memory = step_memory(step, model=model, optimizer=optimizer, alive=batch.values(), device=device)
    worker.record("memory", **memory.fields())
    with CommunicationCounter({group: axis for axis, group in axes.items()}) as counter:
        step()
    worker.record("communication", rows=counter.rows())


def record_share(model: torch.nn.Module, loader: torch.utils.data.DataLoader, tensor_index: int) -> None:
    """Which images, which layers and which part of each layer are this rank's, as its loader and its model say."""
    parameters = dict(model.named_parameters())
    queries = {
        int(name.partition("encoder.layer.")[2].partition(".")[0]): parameter
        for name, parameter in parameters.items()
        if name.endswith("query.weight")
    }
    part = next(iter(queries.values())).numel() / SIZES.hidden**2
    worker.record(
        "share",
        images=list(loader.sampler)[: loader.batch_size],
        batch=BATCH_SIZE,
        layers=sorted(queries),
        depth=SIZES.layers,
        features=[tensor_index * part, (tensor_index + 1) * part],
    )
    worker.record(
        "parameters_total",
        count=sum(p.numel() for p in parameters.values()),
        bytes=sum(p.numel() * p.element_size() for p in parameters.values()),
    )
