"""Many trainings at once: replicas that differ in seed and learning rate, stacked along a first dimension.

A tuned comparison is hundreds of small trainings. Here a layer of all replicas is one batched matrix product, and one
step of an optimizer moves them all. The steps are those of `methods.make`, replica by replica, which `compare.py`
checks on the trainings that it keeps, and the tests check to the last digits.

Shapes: R replicas, B images of a batch, `in` and `out` the features of a layer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from digits import Split
from settings import Settings
from torch import Tensor, nn
from torch.nn import functional as F

EPSILON = 1e-5  # nn.BatchNorm1d's


@dataclass
class Replicas:
    """Stacked copies of a network: `parameters` in `nn.Sequential`'s order, each [R, ...], and the optimizer's states.

    `learning_rates` [R] are the peaks.
    """

    parameters: list[Tensor]
    normalised: bool
    learning_rates: Tensor
    states: list[dict[str, Tensor]]
    steps: int = 0


def stack(models: list[nn.Sequential], learning_rates: list[float], normalised: bool) -> Replicas:
    """Replicas that begin as these models, one learning rate for each."""
    every = [list(model.parameters()) for model in models]
    parameters = [torch.stack([p.detach() for p in same]).requires_grad_() for same in zip(*every, strict=True)]
    rates = torch.tensor(learning_rates, dtype=parameters[0].dtype, device=parameters[0].device)
    return Replicas(parameters, normalised, rates, [{} for _ in parameters])


def forward(replicas: Replicas, images: Tensor, training: Tensor | None = None) -> Tensor:
    """Logits [R, classes, B] of images [R, B, features]; features come first inside, for batch norm's sake.

    Batch norm uses the statistics of the batch, or those of the images `training` (same shape, other B) if given.
    """
    parameters, x = iter(replicas.parameters), images.transpose(1, 2)
    reference = None if training is None else training.transpose(1, 2)
    layers = (len(replicas.parameters) + 1) // (3 if replicas.normalised else 2)
    for layer in range(layers):
        weight, last = next(parameters), layer == layers - 1
        bias = next(parameters).unsqueeze(2) if last or not replicas.normalised else None
        x = _linear(weight, bias, x)
        if last:
            return x
        if reference is not None:
            reference = _linear(weight, bias, reference)
        if replicas.normalised:
            gain, offset = next(parameters).flatten(), next(parameters).flatten()
            statistics = [None, None]
            if reference is not None:
                variance, mean = torch.var_mean(reference.flatten(0, 1), 1)
                statistics = [mean, variance]
                reference = F.relu(_normalise(reference, *statistics, gain, offset))
            x = _normalise(x, *statistics, gain, offset)
        elif reference is not None:
            reference = F.relu(reference)
        x = F.relu(x)
    raise ValueError("a network has at least one layer")


def _linear(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    """[R, out, in] x [R, in, B] -> [R, out, B]"""
    return torch.bmm(weight, x) if bias is None else torch.baddbmm(bias, weight, x)


def _normalise(x: Tensor, mean: Tensor | None, variance: Tensor | None, gain: Tensor, offset: Tensor) -> Tensor:
    """Batch norm of [R, features, B]: each feature of each replica is a channel of its own."""
    channels = x.reshape(1, -1, x.shape[2])
    return F.batch_norm(channels, mean, variance, gain, offset, training=mean is None, eps=EPSILON).view_as(x)


def gradients(replicas: Replicas, images: Tensor, labels: Tensor) -> Tensor:
    """Fill every parameter's gradient from images [R, B, features] and labels [R, B]; the losses [R]."""
    logits = forward(replicas, images)
    losses = F.cross_entropy(logits, labels, reduction="none").mean(1)
    found = torch.autograd.grad(losses.sum(), replicas.parameters)
    for parameter, gradient in zip(replicas.parameters, found, strict=True):
        parameter.grad = gradient
    return losses.detach()


@torch.no_grad()
def step(replicas: Replicas, method: str, factor: float, settings: Settings) -> None:
    """Move every replica by one step of the method, at `factor` times its peak learning rate."""
    replicas.steps += 1
    rates = replicas.learning_rates * factor
    for parameter, state in zip(replicas.parameters, replicas.states, strict=True):
        rate = rates.view(-1, *[1] * (parameter.dim() - 1))
        if method in ("sgd", "lars", "lars-upstream"):
            parameter.sub_(_momentum(parameter, state, rate, method, settings))
        else:
            parameter.sub_(_moments(parameter, state, rate, method, settings, replicas.steps))


def _norm(x: Tensor) -> Tensor:
    """Each replica's norm, shaped to multiply it."""
    return torch.linalg.vector_norm(x, dim=tuple(range(1, x.dim())), keepdim=True)


def _ratio(top: Tensor, bottom: Tensor, whole: Tensor) -> Tensor:
    """top / bottom where both norms are positive, else 1."""
    return torch.where((top > 0) & (whole > 0), top / bottom, torch.ones_like(top))


def _momentum(p: Tensor, state: dict[str, Tensor], rate: Tensor, method: str, s: Settings) -> Tensor:
    update, gradient = p.grad.add(p, alpha=s.weight_decay), p.grad
    if method != "sgd":
        weight, size = _norm(p), _norm(gradient)
        local = _ratio(s.trust_coefficient * weight, size + s.weight_decay * weight, size).clamp_(0, 50)
        if method == "lars":
            update = update * local
        else:
            update, rate = update.clamp_(-10, 10), rate * local
    if "momentum" in state:
        update = state["momentum"].mul_(s.momentum).add_(update)
    else:
        state["momentum"] = update
    return update * rate


def _moments(p: Tensor, state: dict[str, Tensor], rate: Tensor, method: str, s: Settings, steps: int) -> Tensor:
    first, second = (0.9, 0.999)
    if not state:
        state["first"], state["second"] = torch.zeros_like(p), torch.zeros_like(p)
    state["first"].lerp_(p.grad, 1 - first)
    state["second"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
    if method == "adamw":
        root = (state["second"] / (1 - second**steps)).sqrt_().add_(1e-8)
        p.mul_(1 - rate * s.decoupled_weight_decay)
        return state["first"] / root * (rate / (1 - first**steps))
    update = (state["first"] / (state["second"].sqrt().add_(1e-6))).add_(p, alpha=s.decoupled_weight_decay)
    weight, size = _norm(p), _norm(update)
    return update * (rate * _ratio(weight, size, size))


@torch.no_grad()
def evaluate(replicas: Replicas, training: Split, split: Split) -> tuple[Tensor, Tensor]:
    """Accuracy [R] and loss [R] on a split, batch norm with the statistics of all training images."""
    count = len(replicas.learning_rates)
    reference = training.images.expand(count, -1, -1) if replicas.normalised else None
    logits = forward(replicas, split.images.expand(count, -1, -1), reference)
    labels = split.labels.expand(count, -1)
    right = (logits.argmax(1) == labels).to(logits.dtype).mean(1)
    return right, F.cross_entropy(logits, labels, reduction="none").mean(1)
