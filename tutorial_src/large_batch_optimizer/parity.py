"""Do the ranks together train as one process would? A few steps beside it: the same weights, the same batches.

In double precision: Adam and LAMB divide by the gradient's size, so single precision's rounding in an element that is
almost nothing comes out as large as any other step.
"""

from __future__ import annotations

import sys

import digits
import methods
import networks
import torch
import torch.distributed as dist
from handson import worker
from schedule import factor
from settings import TRAINING_IMAGES, Settings
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from train import boost, mean_over_ranks, take_step

TOLERANCE = 1e-6


def check(settings: Settings) -> None:
    """Take CHECK_STEPS steps and compare every loss, then every weight of every rank.

    Raises:
        SystemExit: on every rank, when a loss or a weight differs by more than the tolerance.
    """
    place, device = worker.place(), worker.device()
    images, labels = digits.load(device).training
    training = digits.Split(images.double(), labels)
    model = networks.mlp(settings, settings.seed).double()
    optimizer = methods.make(settings.optimizer, list(model.parameters()), settings.rate(), settings)
    booster, model, optimizer = boost(model, optimizer, settings)
    losses = []
    for step, chosen in enumerate(batches(settings)):
        for group in optimizer.param_groups:
            group["lr"] = peak_share(settings, step) * settings.rate()
        mine = chosen.chunk(place.world_size)[place.rank].to(device)
        losses.append(
            mean_over_ranks(take_step(booster, model, optimizer, training.images[mine], training.labels[mine]))
        )
    expected, reference, moved = alone(settings, training)
    gap = max(abs(a - b) for a, b in zip(losses, expected, strict=True))
    weights = [(a - b).abs().max() for a, b in zip(model.unwrap().parameters(), reference, strict=True)]
    worst = torch.stack(weights).max()
    dist.all_reduce(worst, op=dist.ReduceOp.MAX)
    good = gap <= TOLERANCE and worst.item() <= TOLERANCE
    for step, (loss, one) in enumerate(zip(losses, expected, strict=True), 1):
        worker.log(f"step {step}   loss {loss:.6f}   one process {one:.6f}   difference {abs(loss - one):.1e}")
        if place.rank == 0:
            worker.record("loss", step=step, loss=loss, reference=one)
    summary = (
        f"parity: {'the same' if good else 'NOT the same'}: in {len(losses)} steps of {settings.optimizer} the loss "
        f"differs by at most {gap:.1e},\na weight by at most {worst.item():.1e} (allowed {TOLERANCE:.0e})"
    )
    worker.log(f"{summary}; the weights moved by up to {moved:.2g}")
    if place.rank == 0:
        worker.record(
            "parity",
            steps=len(losses),
            tolerance=TOLERANCE,
            max_loss_difference=gap,
            max_weight_difference=worst.item(),
            weights_moved=moved,
        )
    if not good:
        sys.exit(summary if place.rank == 0 else 1)


def batches(settings: Settings) -> list[Tensor]:
    """Which images the checked steps take."""
    epochs = -(-settings.check_steps * settings.batch_size // TRAINING_IMAGES)
    order = torch.cat([digits.order(settings.seed, epoch) for epoch in range(epochs)])
    return list(order.split(settings.batch_size)[: settings.check_steps])


def peak_share(settings: Settings, step: int) -> float:
    """The learning rate of a checked step, as a share of the peak: the schedule of the whole training."""
    return factor(step, settings.epochs * (TRAINING_IMAGES // settings.batch_size), settings.warmup)


def alone(settings: Settings, training: digits.Split) -> tuple[list[float], list[nn.Parameter], float]:
    """The same steps in this process, on whole batches: its losses, its weights, how far a weight moved."""
    model = networks.mlp(settings, settings.seed).double().to(training.images.device)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = methods.make(settings.optimizer, list(model.parameters()), settings.rate(), settings)
    losses = []
    for step, chosen in enumerate(batches(settings)):
        for group in optimizer.param_groups:
            group["lr"] = peak_share(settings, step) * settings.rate()
        chosen = chosen.to(training.images.device)
        optimizer.zero_grad()
        loss = cross_entropy(model(training.images[chosen]), training.labels[chosen])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = max((p.detach() - old).abs().max().item() for p, old in zip(model.parameters(), before, strict=True))
    return losses, list(model.parameters()), moved
