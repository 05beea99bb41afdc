"""Where Colossal-AI's LARS and LAMB differ from their papers, each difference measured on a tensor or two.

    python definitions.py

Rank 0 records a row `definition` for each: what the paper says, what upstream does, what that makes of a step, and
whether a repair changes it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import MethodType

import torch
from handson import repairs, worker
from handson.repairs import noise, optimizers
from torch import Tensor, nn

RATE, MOMENTUM = 0.1, 0.9
Maker = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def drawn(seed: int = 0) -> Tensor:
    """A matrix of ordinary numbers. [16, 16]"""
    return torch.randn(16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moves(make: Maker, weight: Tensor, *gradients: Tensor) -> list[Tensor]:
    """By how much each of these gradients, one step each, changes a parameter that begins as `weight`."""
    parameter = nn.Parameter(weight.clone())
    optimizer, found = make([parameter]), []
    for gradient in gradients:
        before = parameter.detach().clone()
        parameter.grad = gradient.clone()
        optimizer.step()
        found.append(parameter.detach() - before)
    return found


def lars(upstream: bool, **settings: float) -> Maker:
    """A maker of LARS with trust coefficient 1: repaired, or as upstream has it."""
    from colossalai.nn.optimizer import Lars

    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        optimizer = Lars(parameters, **(dict(lr=RATE, eeta=1.0) | settings))
        if upstream:
            optimizer.step = MethodType(optimizers.upstream_lars_step(), optimizer)
        return optimizer

    return make


def lamb(**settings: float) -> Maker:
    """A maker of LAMB."""
    from colossalai.nn.optimizer import Lamb

    return lambda parameters: Lamb(parameters, lr=RATE, **settings)


def error_of(call: Callable[[], object]) -> str:
    """What a call raises, in one line."""
    try:
        call()
    except (AttributeError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0]}"
    return "nothing"


def main() -> None:
    """Measure and record every difference."""
    if sys.argv[1:]:
        worker.refuse(f"definitions.py takes no arguments; leave out {' '.join(sys.argv[1:])}")
    repairs.apply(noise, optimizers)
    from colossalai.logging import get_dist_logger
    from colossalai.nn.optimizer import DistributedLamb, Lamb, Lars, cast_to_distributed

    get_dist_logger().set_level("WARNING")
    weight, gradient = drawn(0), drawn(1)
    size = weight.norm()

    def say(name: str, what: str, paper: str, upstream: str, found: object, here: str) -> None:
        shown = f"{found:.3g}" if isinstance(found, float) else found
        worker.log(f"{name}: {what}: {shown}")
        worker.record("definition", optimizer=name, what=what, paper=paper, upstream=upstream, found=found, here=here)

    falling = (gradient, gradient / 100)
    bound = RATE * (1 + MOMENTUM)
    second = [(moves(lars(u, momentum=MOMENTUM), weight, *falling)[1].norm() / size).item() for u in (True, False)]
    say(
        "LARS", "second step ÷ its bound lr·η·(1+μ), after the gradient fell to 1 %", "momentum of scaled gradients",
        "scales the whole momentum", second[0] / bound, f"larsmomentum: {second[1] / bound:.3g}",
    )  # fmt: skip
    large = [
        (moves(lars(u), weight, 1000 * gradient)[0].norm() / moves(lars(u), weight, gradient)[0].norm()).item()
        for u in (True, False)
    ]
    say(
        "LARS", "step of 1000 × the loss ÷ step of the loss", "only the direction counts",
        "clamps each element to ±10", large[0], f"larsclamp: {large[1]:.3g}",
    )  # fmt: skip
    tiny = (moves(lars(False), weight, 1e-3 * gradient)[0].norm() / size / RATE).item()
    say(
        "LARS", "step ÷ lr·η of the weight, for a gradient of 1/1000 of it", "1 at any size",
        "trust ratio clipped to [0, 50]", tiny, "kept: a brake near a minimum",
    )  # fmt: skip
    start = (moves(lars(False), torch.zeros_like(weight), gradient)[0].norm() / gradient.norm() / RATE).item()
    say(
        "LARS", "step of a tensor of zeros ÷ lr of its gradient", "not defined", "no trust ratio while it is 0", start,
        "kept",
    )  # fmt: skip
    group = [{"params": [nn.Parameter(weight.clone())], "lars": False}]
    optimizer = Lars(group, lr=RATE, weight_decay=0.1)
    group[0]["params"][0].grad = torch.zeros_like(weight)
    optimizer.step()
    decay = (group[0]["params"][0].detach() - weight).norm().item()
    say(
        "LARS",
        "decay of a group with lars=False",
        "says nothing of it",
        "none, whatever weight_decay says",
        decay,
        "kept",
    )
    say("LARS", "lr=1", "a number", "refuses whole numbers", error_of(lambda: lars(True, lr=1)([nn.Parameter(weight)])),
        "a float is passed")  # fmt: skip

    first = [moves(lamb(bias_correction=c), weight, gradient)[0].norm().item() for c in (True, False)]
    say(
        "LAMB", "first step with bias_correction=True ÷ without", "correction before the trust ratio, which undoes it",
        "correction of lr, after the trust ratio", first[0] / first[1], "left off, as the paper's third version",
    )  # fmt: skip
    defaults = [kind([nn.Parameter(weight)]).defaults["bias_correction"] for kind in (Lamb, DistributedLamb)]
    say(
        "LAMB",
        "bias_correction of Lamb, of DistributedLamb",
        "off",
        "two defaults",
        f"{defaults[0]}, {defaults[1]}",
        "off",
    )
    lone = [nn.Parameter(weight.clone())]
    lone[0].grad = gradient.clone()
    say("LAMB", "DistributedLamb.step() by itself", "—", "needs setup_distributed, which plugins call",
        error_of(DistributedLamb(lone).step), "called in the tests")  # fmt: skip
    cast = cast_to_distributed(Lamb([nn.Parameter(weight)], adam=True))
    say("LAMB", "Lamb(adam=True) under a plugin that divides", "—", "the option is dropped",
        f"{type(cast).__name__}, adam {getattr(cast, 'adam', 'gone')}", "larsparts refuses")  # fmt: skip


if __name__ == "__main__":
    main()
