"""Machines to plan for: named profiles with the source of each figure, and the units that a command line gives.

All figures are peaks out of data sheets. A real step reaches less of each, and not the same share of each: give what
you measured with `--flops`, `--bandwidth` and `--latency` where you have it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

GIB = 1 << 30
HOST = 8  # devices that share one host's fast links


class UnitError(ValueError):
    """A quantity cannot be read; the text is one sentence."""


@dataclass(frozen=True)
class Hardware:
    """One accelerator and its two kinds of links.

    `flops` counts a multiply and an add as two, as data sheets do; it is the dense rate for fp32 tensors, which these
    chips multiply as TF32. `inside` and `between` are (bytes per second in one direction, seconds of latency) within a
    host and between hosts; `sources` says of each figure where it is from.
    """

    name: str
    flops: float
    memory_bytes: float
    inside: tuple[float, float]
    between: tuple[float, float]
    sources: dict[str, str]

    def links(self, mesh: tuple[int, int]) -> list[tuple[float, float]]:
        """The link along each axis: all within one host up to 8 devices, else axis 0 runs between hosts."""
        one_host = prod(mesh) <= HOST
        return [self.inside if one_host else self.between, self.inside]


def _nvidia(name: str, tflops: float, gigabytes: int, nvlink: int, network: float, by: str) -> Hardware:
    """`nvlink`: GB/s of both directions together, as NVIDIA counts; `network`: GB/s of one GPU's share."""
    return Hardware(
        name,
        flops=tflops * 1e12,
        memory_bytes=gigabytes * 1e9,
        inside=(nvlink / 2 * 1e9, 10e-6),
        between=(network * 1e9, 20e-6),
        sources={
            "compute": f"TF32, dense, {tflops:g} TFLOP/s: NVIDIA's data sheet",
            "memory": f"{gigabytes} GB: NVIDIA's data sheet",
            "link within a host": f"NVLink, {nvlink} GB/s in both directions: NVIDIA's data sheet",
            "link between hosts": by,
            "latencies": "within a host, between hosts: those of the planner Calculon, systems/a100_80g.json",
        },
    )


HARDWARE = {
    "h200": _nvidia("NVIDIA H200 SXM", 494.7, 141, 900, 50, "400 Gb/s for each GPU: NVIDIA's DGX H200"),
    "h100": _nvidia("NVIDIA H100 SXM", 494.7, 80, 900, 50, "400 Gb/s for each GPU: NVIDIA's DGX H100"),
    "a100": _nvidia("NVIDIA A100 SXM 80 GB", 156, 80, 600, 25, "25 GB/s for each GPU: Calculon, systems/a100_80g.json"),
}

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "p": 1e15}
_PREFIXES |= {f"{prefix}i": 1024.0**power for power, prefix in enumerate("kmgtp", 1)}


def mesh(text: str) -> tuple[int, int]:
    """`2x4` as (2, 4); one number is a line of devices.

    Raises:
        UnitError: when it is no mesh that the solver's strategies know.
    """
    if not re.fullmatch(r"[0-9]{1,4}(x[0-9]{1,4})*", text):
        raise UnitError(f"--mesh {text} is no mesh: write its sizes with an x between them, such as 2x4 or 8")
    sizes = tuple(int(size) for size in text.split("x"))
    if len(sizes) > 2:
        raise UnitError(f"--mesh {text} has {len(sizes)} axes: the solver's strategies know at most two, such as 2x4")
    if prod(sizes) < 2:
        raise UnitError(f"--mesh {text} has {prod(sizes)} devices: a plan needs two or more")
    return sizes if len(sizes) == 2 else (1, sizes[0])


def size(text: str, option: str) -> float:
    """`80GiB` or `80GB` in bytes."""
    return _quantity(text, option, "B", "80GiB")


def bandwidth(text: str, option: str = "--bandwidth") -> float:
    """`450GB/s` or `400Gb/s` (bits) in bytes per second."""
    if re.search(r"(?<=[kKMGTPi0-9])b(it)?/s$", text):
        return _quantity(re.sub(r"b(it)?/s$", "B/s", text), option, "B/s", "400Gb/s") / 8
    return _quantity(text, option, "B/s", "400GB/s")


def latency(text: str, option: str = "--latency") -> float:
    """`10us` in seconds; 0 is allowed."""
    found = re.fullmatch(r"([0-9.]+)\s*(s|ms|us|µs|ns)", text)
    try:
        return float(found[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}[found[2]]
    except (TypeError, ValueError):
        raise UnitError(f"{option} {text} is no time: write it like 10us, 0.5ms or 0s") from None


def flops(text: str, option: str = "--flops") -> float:
    """`495TFLOPS` or `495TFLOP/s` in floating-point operations per second."""
    return _quantity(re.sub(r"(?i)flop(/s|s)$", "FLOP/s", text), option, "FLOP/s", "495TFLOPS")


def _quantity(text: str, option: str, unit: str, example: str) -> float:
    found = re.fullmatch(rf"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([kKMGTP]?i?){re.escape(unit)}", text)
    factor = _PREFIXES.get(found[2].lower()) if found else None
    value = float(found[1]) * factor if factor else 0.0
    if not value > 0:
        raise UnitError(f"{option} {text} cannot be read: write a number above 0 with its unit, such as {example}")
    return value
