"""Booster's HybridParallelPlugin with any number of ranks along data, pipeline and tensor: the modes of today's API.

    torchrun --nproc_per_node 2 booster.py TP=2
    torchrun --nproc_per_node 4 booster.py TP=2 PP=2
    torchrun --nproc_per_node 8 booster.py TP=2 PP=2                    # what is left over is data parallel: 2
    torchrun --nproc_per_node 4 booster.py PP=2 MICRO_BATCHES=8

The model and its images are those of the five steps, so the loss is that of step1_plain.py. Beside what they record,
rank 0 records a row `parameter` for each parameter: which rank holds which block of it.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
import torch.distributed as dist
from blocks import record_blocks
from handson import repairs, worker
from handson.repairs import booster_cpu, noise
from report import measure, report
from vit import BATCH_SIZE, LABELS, LEARNING_RATE, SIZES, Images, build_model


class Division(NamedTuple):
    """How many ranks lie along each axis, and into how many pieces a pipeline cuts its batch."""

    data: int
    pipeline: int
    tensor: int
    micro_batches: int


def read_division(argv: list[str], ranks: int) -> Division:
    """What the command line asks for; refuses what cannot run, before anything is started."""
    given = {"TP": "1", "PP": "1", "MICRO_BATCHES": "4", "MODE": "1d"}
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in given:
            worker.refuse(f"{word!r} is no setting of booster.py: use KEY=value with {', '.join(given)}")
        given[key] = value
    if given["MODE"].lower() != "1d":
        worker.refuse(
            f"MODE={given['MODE']}: HybridParallelPlugin has no 2D, 2.5D or 3D tensor parallelism, only 1D; the legacy "
            "layers have: use hybrid_parallel/train.py TENSOR_PARALLEL_MODE=2d"
        )
    for key in ("TP", "PP", "MICRO_BATCHES"):
        if not given[key].isdecimal() or int(given[key]) < 1:
            worker.refuse(f"{key}={given[key]} must be a whole number from 1 on")
    tensor, pipeline, pieces = (int(given[key]) for key in ("TP", "PP", "MICRO_BATCHES"))
    data, rest = divmod(ranks, tensor * pipeline)
    if rest:
        worker.refuse(
            f"{ranks} rank{'s' * (ranks > 1)} cannot be divided into PP={pipeline} stages of TP={tensor} ranks; "
            f"start {tensor * pipeline} or a multiple of it"
        )
    if pipeline == 1:
        pieces = 1
    for size, what, divisor, why in (
        (SIZES.heads, "attention heads", tensor, f"TP={tensor} gives each rank whole heads"),
        (LABELS, "labels", tensor, f"TP={tensor} cuts the classifier by labels"),
        (BATCH_SIZE, "images", data * pieces, f"{data} data-parallel ranks take MICRO_BATCHES={pieces} pieces each"),
    ):
        if size % divisor:
            worker.refuse(f"{size} {what} cannot be divided by {divisor}: {why}")
    if pipeline > SIZES.layers:
        worker.refuse(f"PP={pipeline} is more than the {SIZES.layers} layers of this model")
    if pieces < pipeline:
        worker.refuse(f"MICRO_BATCHES={pieces} is fewer than the PP={pipeline} stages, which the 1F1B schedule refuses")
    return Division(data, pipeline, tensor, pieces)


def main() -> None:
    """Divide the model, train it, and record what each rank holds and does."""
    division = read_division(sys.argv[1:], worker.place().world_size)
    repairs.apply(noise, booster_cpu)
    import colossalai
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    colossalai.launch_from_torch(verbose=False)
    device = worker.device()
    plugin = HybridParallelPlugin(
        tp_size=division.tensor,
        pp_size=division.pipeline,
        num_microbatches=division.micro_batches if division.pipeline > 1 else None,
        precision="fp32",
    )
    booster = Booster(plugin=plugin)
    model = build_model()
    whole = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
    loader = plugin.prepare_dataloader(Images(), batch_size=BATCH_SIZE // plugin.dp_size)
    model, optimizer, *_ = booster.boost(model, optimizer)
    d = division
    worker.log(f"data {d.data} x pipeline {d.pipeline} x tensor {d.tensor}, over {dist.get_backend()}")
    record_blocks(model.unwrap(), whole, dist.get_rank(plugin.tp_group))

    def train_step(batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
        if division.pipeline > 1:
            loss = booster.execute_pipeline(iter([batch]), model, lambda outputs, _: outputs.loss, optimizer)["loss"]
        else:
            loss = model(**batch).loss
            booster.backward(loss, optimizer)
            loss = loss.detach()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    for step, batch in enumerate(loader):
        report(step, train_step({name: tensor.to(device) for name, tensor in batch.items()}))
    axes = {"data": plugin.dp_group, "pipeline": plugin.pp_group, "tensor": plugin.tp_group}
    measure(train_step, model, optimizer, loader, **axes)


if __name__ == "__main__":
    main()
