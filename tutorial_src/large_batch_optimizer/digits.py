"""The data: scikit-learn's 1797 handwritten digits, which ship in its wheel, split once for all seeds and methods."""

from __future__ import annotations

from typing import NamedTuple

import torch
from settings import TRAINING_IMAGES
from torch import Tensor

VALIDATION_IMAGES = 273  # what is left, 500, is the test split
SPLIT_SEED = 0
FEATURES, CLASSES = 64, 10


class Split(NamedTuple):
    """Some of the images, as rows of 64 pixels, and their labels."""

    images: Tensor  # [images, 64]
    labels: Tensor  # [images]


class Digits(NamedTuple):
    """The three splits: what is trained on, what chooses the learning rate, and what is reported."""

    training: Split
    validation: Split
    test: Split


def load(device: torch.device) -> Digits:
    """Read, shuffle by a fixed seed, centre each pixel by the training images, and scale all by one deviation.

    A pixel that no training image uses stays exactly 0 by that, and its weights stay where they are.

    Source: the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak 1998), as
    `sklearn.datasets.load_digits` ships it.
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(SPLIT_SEED))
    images = torch.tensor(found.data, dtype=torch.float32)[order]
    labels = torch.tensor(found.target)[order]
    images = images - images[:TRAINING_IMAGES].mean(0)
    images = (images / images[:TRAINING_IMAGES].std()).to(device)
    ends = [TRAINING_IMAGES, VALIDATION_IMAGES, len(labels) - TRAINING_IMAGES - VALIDATION_IMAGES]
    return Digits(*map(Split, images.split(ends), labels.to(device).split(ends)))


def order(seed: int, epoch: int) -> Tensor:
    """In which order a seed sees the training images in an epoch, the same for every method and batch. [images]"""
    return torch.randperm(TRAINING_IMAGES, generator=torch.Generator().manual_seed(1000 * seed + epoch))
