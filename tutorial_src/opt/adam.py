"""AdamW for weights and gradients of 16 bits: fp32 where it counts, and the `div_scale` that Gemini hands it.

`torch.optim.AdamW` wants a gradient of its weight's type. Gemini gives an fp32 weight a bf16 gradient, and plain data
parallelism in bf16 has no fp32 weight at all. This one takes both: gradients are widened a piece at a time, and a
weight of 16 bits gets an fp32 master copy among its states (Micikevicius et al. 2018, arxiv.org/abs/1710.03740).
Every strategy of the lesson trains by it, on the GPU and on the CPU, through torch's own fused kernel: there is
nothing to compile.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.adamw import adamw

PIECE = 2**24  # elements that are updated by one call: what is widened for it takes 64 MiB
STATES = ("exp_avg", "exp_avg_sq", "master")


class AdamW(torch.optim.AdamW):
    """AdamW with decoupled weight decay (Loshchilov and Hutter, arxiv.org/abs/1711.05101), in fp32 for any weight."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.0, **options: Any) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, fused=True, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, div_scale: float = -1.0) -> Any:
        """Update every weight that has a gradient, divided by `div_scale` where that is positive.

        Returns what `closure` returned, which is None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            waiting: dict[torch.device, list[tuple[torch.Tensor, ...]]] = defaultdict(list)
            elements: Counter[torch.device] = Counter()
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self._state_of(p)
                gradient, weight = p.grad.reshape(-1), state.get("master", p).reshape(-1)
                columns = [weight, gradient, state["exp_avg"].reshape(-1), state["exp_avg_sq"].reshape(-1)]
                for pieces in zip(*(column.split(PIECE) for column in columns), strict=True):
                    waiting[weight.device].append((*pieces, state["step"]))
                    elements[weight.device] += pieces[0].numel()
                    if elements[weight.device] >= PIECE:
                        self._update(waiting.pop(weight.device), group, div_scale)
                        elements[weight.device] = 0
            for batch in waiting.values():
                self._update(batch, group, div_scale)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["step"] += 1
                    if "master" in self.state[p]:
                        p.copy_(self.state[p]["master"])
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load states, and keep those of 16-bit weights in fp32: torch would cast them to the weight's type."""
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        held = [p for group in self.param_groups for p in group["params"]]
        for number, p in zip(numbers, held, strict=True):
            for name in STATES:
                if name in (saved := state_dict["state"].get(number, {})):
                    self.state[p][name] = saved[name].to(p.device, torch.float32, copy=True)

    def _state_of(self, p: torch.Tensor) -> dict[str, Any]:
        state = self.state[p]
        if not state:
            wide = p.detach().float()
            state["step"] = torch.zeros((), device=p.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(wide), torch.zeros_like(wide)
            if wide.dtype != p.dtype:
                state["master"] = wide
        return state

    def _update(self, batch: list[tuple[torch.Tensor, ...]], group: dict[str, Any], div_scale: float) -> None:
        """One call of torch's kernel for these pieces of (weight, gradient, exp_avg, exp_avg_sq, step)."""
        weights, narrow, first, second, steps = map(list, zip(*batch, strict=True))
        gradients = [gradient.float() for gradient in narrow]
        if div_scale > 0 and div_scale != 1:
            gradients = [gradient / div_scale for gradient in gradients]
        beta1, beta2 = group["betas"]
        # The kernel counts the step up by itself, once for each piece: it gets a copy to count.
        steps = [step.clone() for step in steps]
        adamw(
            *(weights, gradients, first, second, [], steps),
            **{name: group[name] for name in ("lr", "weight_decay", "eps")},
            **dict(beta1=beta1, beta2=beta2, fused=True, amsgrad=False, maximize=False),
        )
