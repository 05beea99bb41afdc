"""The learning rate over a run: it rises to its peak, then falls along half a cosine (the same for every method)."""

from __future__ import annotations

import math


def factor(step: int, steps: int, warmup: float) -> float:
    """The share of the peak learning rate at a step, counted from 0.

    The warm-up is gradual as in Goyal et al. 2017 (arXiv:1706.02677, section 2.2), over `warmup` of the steps.
    """
    rising = max(1, round(warmup * steps)) if warmup else 0
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
