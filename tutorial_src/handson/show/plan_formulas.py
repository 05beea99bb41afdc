"""A solver's plan (see plan_tables) beside what a formula says, and what the plan takes the host to be."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

from handson.show.plan_fold import Row
from handson.show.style import quantity
from handson.show.tables import Table


def by_hand(nodes: Iterable[Row], plan: Row) -> list[dict[str, Any]]:
    """Rows for `formula_table`: what data parallelism over all devices must cost by the definition of the units.

    Upstream counts multiply-accumulates (MACs): a convolution's forward, twice as many backward. The gradient of each
    fp32 weight is all-reduced over all P devices in a ring, at the speed of the slowest axis.

    Args:
        nodes: the rows "node" of a plan that is data parallel in all its convolutions.
        plan: its row "plan".
    """
    layers = [node for node in nodes if node["op"] == "conv2d"]
    sizes = [prod(node["weight"]["shape"]) for node in layers]
    macs = sum(prod(node["output"]["shape"]) * prod(node["weight"]["shape"][1:]) for node in layers)
    devices = prod(plan["mesh"])
    sent = 2 * (devices - 1) / devices * 4 * sum(sizes)
    waits = len(layers) * max(plan["latency_s"])
    return [
        {
            "what": "computing convolutions",
            "formula": f"3 × MACs ÷ {devices} devices ÷ MAC/s",
            "expected": 3 * macs / devices / plan["macs_per_second"],
            "counted": sum(node["compute_ms"] for node in layers) / 1e3,
            "unit": "s",
        },
        {
            "what": "their gradients",
            "formula": "latency + 2 (P − 1)/P × bytes ÷ bandwidth",
            "expected": waits + sent / min(plan["bytes_per_second"]),
            "counted": sum(node["communication_ms"] for node in layers) / 1e3,
            "unit": "s",
        },
        {
            "what": "the whole plan",
            "formula": "the minimum that the solver found",
            "expected": plan["solver_objective_ms"] / 1e3,
            "counted": plan["objective_ms"] / 1e3,
            "unit": "s",
        },
    ]


def rings_table(nodes: Iterable[Row], plans: Iterable[Row], *, first: str = "plan", caption: str = "") -> Table:
    """The solver's plan beside data parallelism, whose gradients are reduced in one ring or first along axis 1.

    In two levels a gradient of n bytes is reduce-scattered along axis 1, its share of n / n1 all-reduced along axis 0,
    and gathered again along axis 1, as NCCL does it over hosts; upstream knows the one ring alone.

    Args:
        nodes: the rows "node" of a plan that is data parallel in all its convolutions.
        plans: rows "plan" for the same mesh, whose `kept_ms` is that plan's step on their links.
        first: what the labels are.
        caption: what the table is called.
    """
    sizes = [4 * prod(node["weight"]["shape"]) for node in nodes if node["op"] == "conv2d"]
    body = []
    for plan in plans:
        (slow, fast), (late, soon), (outer, inner) = plan["bytes_per_second"], plan["latency_s"], plan["mesh"]
        devices = outer * inner
        ring = sum(2 * (devices - 1) / devices * size / min(slow, fast) + max(late, soon) for size in sizes)
        levels = sum(
            2 * (inner - 1) / inner * size / fast + 2 * soon + 2 * (outer - 1) / outer * size / inner / slow + late
            for size in sizes
        )
        times = [plan["objective_ms"], plan["kept_ms"], plan["kept_ms"] + 1e3 * (levels - ring)]
        body.append([plan["plan"], *(quantity(time, "ms") for time in times)])
    columns = [first, "the solver's plan", "data parallel, one ring", "data parallel, two levels"]
    note = "Predicted steps. Two levels: each gradient is reduced along axis 1, its share along axis 0, then gathered."
    return Table(columns, body, caption or "One ring, or two levels", [note])


def assumptions_table(hardware: Row) -> Table:
    """What a plan takes a device and its links to be, and where each figure is from; a row "hardware"."""
    (inside, soon), (between, late) = hardware["inside"], hardware["between"]
    values = {
        "compute": quantity(hardware["flops"] / 2, "MAC/s"),
        "memory": quantity(hardware["memory_bytes"], "B"),
        "link within a host": f"{inside / 1e9:g} GB/s",
        "link between hosts": f"{between / 1e9:g} GB/s",
        "latencies": f"{quantity(soon, 's')}, {quantity(late, 's')}",
    }
    body = [[name, value, hardware["sources"][name]] for name, value in values.items()]
    return Table(["assumed", "figure", "source"], body, hardware["name"], ["Peaks; a real step reaches less of each."])
