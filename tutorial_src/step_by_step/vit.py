"""What all five steps train: one vision transformer, and images that it can learn to tell apart.

The model is transformers' `ViTForImageClassification` with weights drawn from a fixed seed, so that every script and
every rank starts from the same numbers. An image is its class's pattern under noise, a pure function of its index, so
that any rank can make any image. There is no dropout and no TF32: losses can be compared to the last digits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from handson import worker
from transformers import ViTConfig, ViTForImageClassification


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How large the model and the batch are."""

    image: int
    patch: int
    hidden: int
    layers: int
    heads: int
    batch: int
    learning_rate: float


SIZES = {
    "laptop": Sizes(image=32, patch=8, hidden=64, layers=4, heads=4, batch=16, learning_rate=0.02),
    "gpu": Sizes(image=224, patch=16, hidden=1024, layers=12, heads=16, batch=128, learning_rate=0.0003),
}[worker.preset()]
BATCH_SIZE = SIZES.batch  # of all ranks together: every script sees the same images in a step
LEARNING_RATE = SIZES.learning_rate
STEPS = 10
LABELS = 8
SEED = 1024

if BATCH_SIZE % worker.place().world_size:
    worker.refuse(f"{worker.place().world_size} ranks cannot share a batch of {BATCH_SIZE} images; start 1, 2, 4 or 8")
torch.backends.cudnn.allow_tf32 = False  # the patch embedding is a convolution


def build_model() -> ViTForImageClassification:
    """The transformer, on the CPU, with the same weights on every rank."""
    torch.manual_seed(SEED)
    config = ViTConfig(
        image_size=SIZES.image,
        patch_size=SIZES.patch,
        hidden_size=SIZES.hidden,
        num_hidden_layers=SIZES.layers,
        num_attention_heads=SIZES.heads,
        intermediate_size=4 * SIZES.hidden,
        num_labels=LABELS,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return ViTForImageClassification(config).train()


class Images(torch.utils.data.Dataset):
    """Images for STEPS steps; the class of each is its index modulo LABELS."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.patterns = torch.randn(LABELS, 3, SIZES.image, SIZES.image, generator=generator)

    def __len__(self) -> int:
        return STEPS * BATCH_SIZE

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = index % LABELS
        noise = torch.randn(self.patterns[label].shape, generator=torch.Generator().manual_seed(index))
        return {"pixel_values": self.patterns[label] + 0.5 * noise, "labels": torch.tensor(label)}
