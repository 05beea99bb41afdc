"""The optimizers under comparison, Colossal-AI's own where it has one, and what they do to each layer."""

from __future__ import annotations

from types import MethodType

import torch
from colossalai.nn.optimizer import Lamb, Lars
from handson.repairs import optimizers
from settings import Settings
from torch import Tensor, nn

# "lars" is Colossal-AI's LARS with its repairs, "lars-upstream" the same class without them.
METHODS = ("sgd", "lars-upstream", "lars", "lamb", "adamw")


def base(method: str) -> str:
    """The optimizer that a method is a form of: whose learning rates it is given."""
    return method.partition("-")[0]


def make(
    method: str, parameters: list[nn.Parameter], learning_rate: float, settings: Settings
) -> torch.optim.Optimizer:
    """The optimizer of a method; all parameters in one group, as upstream's lesson has it.

    Lamb stays without its bias correction (its default), which the paper's third version has dropped.
    """
    s, lr = settings, float(learning_rate)  # Lars refuses a whole number
    if method == "sgd":
        return torch.optim.SGD(parameters, lr=lr, momentum=s.momentum, weight_decay=s.weight_decay)
    if method == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=s.decoupled_weight_decay)
    if method == "lamb":
        return Lamb(parameters, lr=lr, weight_decay=s.decoupled_weight_decay)
    lars = Lars(parameters, lr=lr, momentum=s.momentum, weight_decay=s.weight_decay, eeta=s.trust_coefficient)
    if method == "lars-upstream":
        lars.step = MethodType(optimizers.upstream_lars_step(), lars)
    return lars


class Layers:
    """Watches the weight matrix of every linear layer through a step: its trust ratio, and how far it moves.

    The trust ratio is what multiplies the learning rate for this layer, so only LARS and LAMB have one; how far a layer
    moves is the norm of the step as a share of the norm of the weight.
    """

    def __init__(self, model: nn.Module, method: str, settings: Settings) -> None:
        self.weights = [part.weight for part in model.modules() if isinstance(part, nn.Linear)]
        self.names = [f"layer {number}" for number in range(1, len(self.weights) + 1)]
        self._base, self._settings = base(method), settings

    @torch.no_grad()
    def before(self) -> None:
        """Look at the weights and gradients just before a step."""
        self._old = [weight.clone() for weight in self.weights]
        self._gradients = [weight.grad.clone() for weight in self.weights]

    @torch.no_grad()
    def after(self, optimizer: torch.optim.Optimizer) -> tuple[list[float | None], list[float]]:
        """The trust ratios and the relative movements of the step just taken, layer by layer."""
        ratios: list[float | None] = []
        for weight, old, gradient in zip(self.weights, self._old, self._gradients, strict=True):
            ratios.append(self._ratio(old, gradient, optimizer.state[weight]))
        moved = [((w - old).norm() / old.norm()).item() for w, old in zip(self.weights, self._old, strict=True)]
        return ratios, moved

    def _ratio(self, old: Tensor, gradient: Tensor, state: dict[str, Tensor]) -> float | None:
        s = self._settings
        if self._base == "lars":
            return (
                (s.trust_coefficient * old.norm() / (gradient.norm() + s.weight_decay * old.norm())).clamp(0, 50).item()
            )
        if self._base == "lamb":
            update = state["exp_avg"] / (state["exp_avg_sq"].sqrt() + 1e-6) + s.decoupled_weight_decay * old
            return (old.norm() / update.norm()).item()
        return None
