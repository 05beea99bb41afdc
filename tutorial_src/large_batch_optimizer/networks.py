"""The networks: a multilayer perceptron with or without batch norm for accuracy, a residual network for speed."""

from __future__ import annotations

from itertools import pairwise

import torch
from digits import CLASSES, FEATURES, Split
from settings import Settings
from torch import Tensor, nn


def mlp(settings: Settings, seed: int) -> nn.Sequential:
    """LAYERS linear layers with ReLU between them, and batch norm before each ReLU where NETWORK says so.

    A linear layer before batch norm has no bias: batch norm would take it out again, its gradient would be rounding
    alone, and Adam's division would make steps of that.
    """
    torch.manual_seed(seed)
    normalised = settings.network == "batchnorm"
    sizes = [FEATURES, *[settings.width] * (settings.layers - 1), CLASSES]
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        if parts:
            parts += [nn.BatchNorm1d(inputs)] * normalised + [nn.ReLU()]
        parts.append(nn.Linear(inputs, outputs, bias=len(parts) == 3 * (settings.layers - 1) or not normalised))
    return nn.Sequential(*parts)


@torch.no_grad()
def accuracy(model: nn.Module, training: Split, *splits: Split) -> list[float]:
    """The share of right answers on each split; batch norm then uses the statistics of all training images.

    Running averages would still remember the first weights when a run has 20 steps, so they are taken afresh.
    """
    norms = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the mean of all that is seen: one pass
    model.train()
    if norms:
        model(training.images)
    model.eval()
    found = [(model(split.images).argmax(1) == split.labels).float().mean().item() for split in splits]
    model.train()
    return found


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385); the 3 x 3 strides."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, inputs, height, width] -> [batch, 4 * width of the block, height / stride, width / stride]"""
        shortcut = self.downsample(x) if self.downsample else x
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


def resnet(settings: Settings) -> nn.Sequential:
    """A residual network; BLOCKS 3, 4, 6, 3 with STEM_WIDTH 64 and 1000 classes is ResNet-50."""
    torch.manual_seed(settings.seed)
    width = channels = settings.stem_width
    parts: list[nn.Module] = [
        nn.Conv2d(3, width, 7, 2, padding=3, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, padding=1),
    ]
    for stage, blocks in enumerate(settings.blocks):
        for block in range(blocks):
            parts.append(Bottleneck(channels, width << stage, stride=2 if stage and not block else 1))
            channels = 4 * (width << stage)
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, settings.classes))
