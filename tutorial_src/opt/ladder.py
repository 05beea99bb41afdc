"""Sizes to search over: the published ones on a GPU, small ones of this tutorial's own on a CPU, doubling each time."""

from __future__ import annotations

from models import PUBLISHED, SIZES, Shape

# Much smaller than any published OPT, in their proportions; named by how many parameters they have.
OWN = {
    "0.25m": Shape(2, 88, 4, vocabulary=512, positions=64),
    "0.5m": Shape(3, 112, 4, vocabulary=512, positions=64),
    "1m": Shape(4, 140, 4, vocabulary=512, positions=64),
    "2m": Shape(6, 164, 4, vocabulary=512, positions=64),
    "4m": Shape(8, 200, 4, vocabulary=512, positions=64),
    "8m": Shape(10, 256, 8, vocabulary=512, positions=64),
    "16m": Shape(12, 332, 4, vocabulary=512, positions=64),
}


def sizes(preset: str) -> dict[str, Shape]:
    """{name: shape} from the smallest to the largest."""
    return {name: SIZES[name] for name in PUBLISHED} if preset == "gpu" else dict(OWN)
