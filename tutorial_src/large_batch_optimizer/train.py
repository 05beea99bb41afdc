"""Train by SGD, LARS, LAMB or AdamW with a large batch that data-parallel ranks share.

    colossalai run --nproc_per_node 4 train.py --config config.py -s
    torchrun --nproc_per_node 4 train.py --config config.py --optimizer lamb
    python train.py --config config.py --optimizer sgd BATCH_SIZE=64 LEARNING_RATE=0.04

It trains a small network on handwritten digits (scikit-learn's, which ship in its wheel) and says the test accuracy.
`-s` does what the tutorial's original does, steps on synthetic images with random labels: there is nothing to learn in
them, so that only times them. `config.py` says the sizes; KEY=value replaces a line of it. Instead of training,

    --check       takes a few steps beside one process on the same batches, and fails if they differ by over 1e-6
    -s --sweep    times steps at growing batches until the device is full

The data parallelism is Colossal-AI's Booster with TorchDDPPlugin; PLUGIN=zero divides the optimizer's states by ZeRO.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

import settings as config
from handson import repairs, worker
from handson.repairs import booster_cpu, noise, optimizers

if TYPE_CHECKING:
    import torch
    from settings import Settings
    from torch import Tensor, nn


def main() -> None:
    """Read the settings, join the job, then train, check or time."""
    parser = config.parser(__doc__.partition("\n")[0])
    parser.add_argument("--optimizer", choices=config.OPTIMIZERS, help="replaces OPTIMIZER of the configuration")
    parser.add_argument("-s", "--synthetic", action="store_true", help="time steps on synthetic images, learn nothing")
    parser.add_argument("--sweep", action="store_true", help="with -s: grow the batch until the device is full")
    parser.add_argument("--check", action="store_true", help="compare with one process")
    args = parser.parse_intermixed_args()
    if args.sweep and not args.synthetic:
        worker.refuse("--sweep times steps on synthetic images; add -s")
    if args.check and args.synthetic:
        worker.refuse("--check compares training on the digits, and -s only times steps; leave one out")
    settings = config.read(args.config, args.overrides, args.optimizer)
    if args.check and (settings.plugin, settings.network) == ("zero", "batchnorm"):
        worker.refuse("ZeRO's plugin leaves batch norm to each rank's part of the batch; check it with NETWORK=plain")
    place = worker.place()
    config.check_batch(settings.batch_size, world_size=place.world_size)
    refuse_parts(settings, place.world_size)

    repairs.apply(noise, booster_cpu, optimizers)
    import colossalai
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    colossalai.launch_from_torch(seed=settings.seed, verbose=False)

    import parity
    import throughput

    if args.check:
        parity.check(settings)
    elif args.sweep:
        throughput.sweep(settings)
    elif args.synthetic:
        throughput.once(settings)
    else:
        train(settings)
    torch.distributed.destroy_process_group()


def refuse_parts(settings: Settings, world_size: int) -> None:
    """Answer LARS under ZeRO before anything heavy is loaded; the repair `larsparts` answers for any other script."""
    forced = "larsparts" in os.environ.get("HANDSON_WITHOUT", "").split(",")
    if settings.plugin == "zero" and settings.optimizer == "lars" and world_size > 1 and not forced:
        why = "PLUGIN=zero gives each rank a part of every tensor: LARS would take its norms from that part"
        worker.refuse(optimizers.DIVIDED.format(why=why).replace("TorchDDPPlugin", "PLUGIN=ddp"))


def boost(model: nn.Module, optimizer: torch.optim.Optimizer, settings: Settings) -> tuple[Any, Any, Any]:
    """The booster, and the model and optimizer that it makes of these: data parallel, or ZeRO-1."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import LowLevelZeroPlugin, TorchDDPPlugin
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("WARNING")  # not that Lamb becomes DistributedLamb
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    if settings.plugin == "ddp":
        plugin = TorchDDPPlugin()
    else:
        plugin = LowLevelZeroPlugin(stage=1, precision="fp32", overlap_communication=worker.backend() == "nccl")
    booster = Booster(plugin=plugin)
    model, optimizer, *_ = booster.boost(model, optimizer)
    return booster, model, optimizer


def take_step(booster: Any, model: Any, optimizer: Any, images: Tensor, labels: Tensor) -> Tensor:
    """One step on this rank's part of the batch: forward, backward, averaged gradients, update; the part's loss."""
    from torch.nn.functional import cross_entropy

    loss = cross_entropy(model(images), labels)
    booster.backward(loss, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


def mean_over_ranks(loss: Tensor) -> float:
    """The loss of the whole batch, on every rank."""
    import torch.distributed as dist

    dist.all_reduce(loss)
    return loss.item() / dist.get_world_size()


def train(settings: Settings) -> None:
    """Train for EPOCHS epochs, log a line for each, and say the test accuracy."""
    import digits
    import methods
    import networks
    from schedule import factor

    place, device = worker.place(), worker.device()
    data = digits.load(device)
    model = networks.mlp(settings, settings.seed)
    optimizer = methods.make(settings.optimizer, list(model.parameters()), settings.rate(), settings)
    booster, model, optimizer = boost(model, optimizer, settings)
    steps = settings.epochs * (config.TRAINING_IMAGES // settings.batch_size)
    taken = 0
    worker.log(
        f"{settings.optimizer} on the {settings.network} network: {place.world_size} x "
        f"{settings.batch_size // place.world_size} images a step, learning rate {settings.rate():g}"
    )
    for epoch in range(settings.epochs):
        losses = []
        for chosen in digits.order(settings.seed, epoch).split(settings.batch_size):
            for group in optimizer.param_groups:
                group["lr"] = settings.rate() * factor(taken, steps, settings.warmup)
            mine = chosen.chunk(place.world_size)[place.rank].to(device)
            loss = take_step(booster, model, optimizer, data.training.images[mine], data.training.labels[mine])
            losses.append(mean_over_ranks(loss))
            taken += 1
            if place.rank == 0:
                worker.record("loss", step=taken, loss=losses[-1])
        (seen,) = networks.accuracy(model.unwrap(), data.training, data.validation)
        worker.log(
            f"epoch {epoch + 1:>3}/{settings.epochs}   loss {sum(losses) / len(losses):.4f}   "
            f"validation accuracy {100 * seen:.1f} %"
        )
        worker.progress(epoch + 1, settings.epochs)
    (test,) = networks.accuracy(model.unwrap(), data.training, data.test)
    worker.log(f"test accuracy {100 * test:.1f} % after {taken} steps")
    if place.rank == 0:
        worker.record("accuracy", test=test, validation=seen, steps=taken, batch=settings.batch_size)


if __name__ == "__main__":
    main()
