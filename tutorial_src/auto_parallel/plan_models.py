"""Models to plan for, on the meta device: one with terabytes of activations costs nothing to look at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import nn

Model = tuple["nn.Module", dict[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Entry:
    """How to build a model with its inputs from (batch, size), what its size means, and the usual and least values.

    torch is imported when a model is built: a slip in a command line is answered before that.
    """

    build: Callable[[int, int], Model]
    means: str
    batch: int
    size: int
    least: int


def _resnet(name: str) -> Callable[[int, int], Model]:
    def build(batch: int, size: int) -> Model:
        import networks
        import torch

        with torch.device("meta"):
            return networks.resnet(name), {"x": torch.empty(batch, 3, size, size)}

    return build


def _mlp(batch: int, size: int) -> Model:
    import networks
    import torch

    with torch.device("meta"):
        return networks.MLP(size), {"x": torch.empty(batch, size)}


def _gpt_block(batch: int, size: int) -> Model:
    import networks
    import torch

    class Masked(torch.nn.Module):
        """The block with the mask as its own: the loader would cut an argument along its first dimension."""

        def __init__(self, sizes: networks.GPTSizes) -> None:
            super().__init__()
            self.h = networks.Block(sizes)
            self.register_buffer("mask", torch.empty(sizes.positions, sizes.positions))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.h(x, self.mask)

    sizes = networks.GPTSizes(layers=1, width=768, heads=12, positions=size)
    with torch.device("meta"):
        return Masked(sizes), {"x": torch.empty(batch, size, sizes.width)}


MODELS = {
    "resnet18": Entry(_resnet("resnet18"), "side of an image", 512, 224, 32),
    "resnet50": Entry(_resnet("resnet50"), "side of an image", 512, 224, 32),
    "resnet152": Entry(_resnet("resnet152"), "side of an image", 512, 224, 32),
    "mlp": Entry(_mlp, "features of a layer, four times as many between", 2048, 4096, 1),
    "gpt-block": Entry(_gpt_block, "tokens of a sequence; 768 wide, 12 heads, as GPT-2 small", 16, 1024, 1),
}
