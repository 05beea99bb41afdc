"""Images to train on: synthetic ones that every rank draws alike, so that each holds the same global batch."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

SEED = 1024


@functools.cache  # the patterns take seconds to draw, and every plan is measured on the same batch
def synthetic(batch: int, size: int, classes: int, *, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """A batch of images [batch, 3, size, size] and labels [batch]: a pattern for each class, under noise."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(classes, 3, size, size, generator=generator)
    labels = torch.randint(classes, (batch,), generator=generator)
    return torch.randn(batch, 3, size, size, generator=generator).add_(patterns[labels]), labels
