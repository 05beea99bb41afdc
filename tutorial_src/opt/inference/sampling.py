"""From logits to tokens, for a whole batch at once, each row with its own parameters and its own random numbers.

A request draws one number a token from a generator of its own, on the host. So the same request with the same seed
gets the same numbers, whoever shares its batch, and the device gives all rows' tokens in one copy.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Sampling:
    """How a request wants its tokens: greedy when temperature, top_k and top_p are all absent."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken, always."""
        return self.temperature is None and self.top_k is None and self.top_p is None

    @property
    def repeatable(self) -> bool:
        """Whether asking again gives the same answer."""
        return self.greedy or self.seed is not None


@dataclass
class Draw:
    """A request's sampling with its random numbers; without a seed they are the operating system's."""

    sampling: Sampling
    numbers: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.numbers = random.Random(self.sampling.seed)


def choose(logits: torch.Tensor, draws: Sequence[Draw]) -> list[int]:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary], on any device.
        draws: one for each row; a row that samples draws one number from it.
    """
    best = logits.argmax(-1)
    if all(draw.sampling.greedy for draw in draws):
        return best.tolist()
    vocabulary = logits.shape[-1]
    asked = torch.tensor([_numbers(draw, vocabulary) for draw in draws], dtype=torch.float64)
    temperature, top_k, top_p, number, greedy = asked.to(logits.device, non_blocking=True).unbind(1)
    # In double precision and from the largest on, any temperature over 0 will do: the likeliest token stays at 0.
    scores = logits.double()
    scores = (scores - scores.amax(-1, keepdim=True)) / temperature[:, None]
    if any(draw.sampling.top_k or draw.sampling.top_p for draw in draws):
        scores = keep_likely(scores, top_k, top_p)
    # In the vocabulary's order, not that of the probabilities: two tokens of nearly one probability cannot swap places.
    reached = scores.softmax(-1).cumsum(-1)
    sampled = torch.searchsorted(reached, (number * reached[:, -1])[:, None], right=True)[:, 0]
    return torch.where(greedy > 0, best, sampled.clamp(max=vocabulary - 1)).tolist()


def keep_likely(scores: torch.Tensor, top_k: torch.Tensor, top_p: torch.Tensor) -> torch.Tensor:
    """Set to -inf what is not among a row's `top_k` likeliest, or not in the smallest set that reaches `top_p`.

    Args:
        scores: [rows, vocabulary], logits over temperature.
        top_k: [rows], from 1 to the size of the vocabulary.
        top_p: [rows], over 0 and up to 1: a share of the probability that top_k leaves, as in transformers.
    """
    ordered = scores.sort(-1, descending=True).values
    place = torch.arange(scores.shape[-1], device=scores.device)
    ordered = ordered.masked_fill(place[None, :] >= top_k[:, None], -torch.inf)
    share = ordered.softmax(-1)
    kept = (share.cumsum(-1) - share < top_p[:, None]) & (ordered > -torch.inf)
    smallest = ordered.gather(1, kept.sum(-1, keepdim=True) - 1)
    return scores.masked_fill(scores < smallest, -torch.inf)


def _numbers(draw: Draw, vocabulary: int) -> tuple[float, ...]:
    asked = draw.sampling
    if asked.greedy:
        return 1.0, vocabulary, 1.0, 0.0, 1.0
    return (
        asked.temperature or 1.0,
        min(asked.top_k or vocabulary, vocabulary),
        asked.top_p or 1.0,
        draw.numbers.random(),
        0.0,
    )
