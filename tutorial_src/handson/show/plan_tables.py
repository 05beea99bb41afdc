"""The tables of a solver's plan: a row for each node, a row for each tensor that must be resharded, and their CSV.

Rows are plain dicts, as auto_parallel/solver.py records them: a "node" has `name`, `op`, `strategy`, `compute_ms`,
`communication_ms`, `activation_bytes`, `parameter_bytes`, `buffer_bytes`, and under `input`, `weight` and `output` the
tensor's `name`, `shape` and `sharding` (one of "R", "S0", "S1", "S01" for each dimension), or None. An "edge" has
`source`, `target`, `before`, `after`, `shape` and `ms`.
"""

from __future__ import annotations

import base64
import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import prod
from typing import Any

from handson.show.conditions import RunLike
from handson.show.plan_fold import TENSORS, folded, letters, plain
from handson.show.style import number, quantity
from handson.show.tables import Cell, Table, code, failure, lines, soft

Row = Mapping[str, Any]

# What a tensor's dimensions are called, by the number of them; a weight's go output first, as PyTorch stores it. Four
# dimensions are images in a network that convolves; in another one heads and tokens come in any order.
ACTIVATION = {1: "c", 2: "bc", 3: "bsh", 4: "bchw"}
HEADS = ACTIVATION | {4: "bjkl"}
WEIGHT = {1: "o", 2: "oi", 4: "oiuv"}
TIMES = ("compute_ms", "communication_ms")
SIZES = ("activation_bytes", "parameter_bytes", "buffer_bytes")


@dataclass(frozen=True)
class DataTable(Table):
    """A table that scrolls in both directions and carries its raw data, `csv`, as a file to download."""

    csv: str = ""
    filename: str = "table.csv"
    about: str = ""

    def _repr_html_(self) -> str:
        html = super()._repr_html_().replace('<div class="scroll"', '<div class="scroll tall"', 1)
        address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(self.csv.encode()).decode()}"
        link = f'<a href="{address}" download="{escape(self.filename)}">Raw data as CSV</a>'
        offer = f'<div class="notes"><p>{link}{escape(self.about and f": {self.about}")}</p></div>'
        return f"{html.removesuffix('</div>')}{offer}</div>"

    __repr__ = Table.__str__


def plan_rows(run: RunLike, plan: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the rows "node" and "edge" of one plan of a run.

    Raises:
        LookupError: naming the plans whose nodes the run recorded, when this is none of them.
    """
    nodes, edges = ([row for row in run.rows(kind) if row["plan"] == plan] for kind in ("node", "edge"))
    if not nodes:
        known = ", ".join(dict.fromkeys(row["plan"] for row in run.rows("node"))) or "none"
        raise LookupError(f"this run recorded no nodes of the plan {plan!r}; it recorded those of {known}")
    return nodes, edges


def plan_table(nodes: Iterable[Row], *, caption: str = "", fold: bool = True) -> DataTable:
    """Every node of a plan: strategy, how its tensors are cut, and what the solver thinks that it costs.

    Args:
        nodes: the rows "node" of one plan, in the order of the graph.
        caption: what the table is called.
        fold: show layers that repeat as one row where all of them agree in strategy and sharding; costs are then sums.

    Raises:
        ValueError: when there is no node, or the rows are of several plans.
    """
    nodes = list(nodes)
    plans = {str(node.get("plan", "")) for node in nodes}
    if len(plans) != 1:
        raise ValueError(f"a table shows one plan, these rows are of {', '.join(sorted(plans)) or 'none'}")
    dims = ACTIVATION if any(node["op"].startswith("conv") for node in nodes) else HEADS
    body = []
    for label, group in folded(nodes) if fold else [(node["name"], [node]) for node in nodes]:
        node = group[0]
        body.append(
            [
                lines(_name(label), soft(f"{len(group)} nodes") if len(group) > 1 else ""),
                _strategy(plain(node["strategy"]) if len(group) > 1 else node["strategy"]),
                lines(*[_cut(node, tensor, dims) for tensor in TENSORS if node.get(tensor)]),
                *[_amount(group, [field], "ms") for field in TIMES],
                _amount(group, SIZES, "B"),
            ]
        )
    columns = ["node", "strategy", "input, weight, output", "compute", "links", "memory"]
    total = ", ".join(f"{name} {_amount(nodes, [f], 'ms')}" for name, f in zip(columns[3:], TIMES, strict=False))
    notes = [
        "Compute and links (communication): forward and backward of one training step on one rank, as the solver "
        "estimates them. Memory: what the solver charges to its budget, forward and backward together.",
        f"All {len(nodes)} nodes: {total}, memory {_amount(nodes, SIZES, 'B')}.",
    ]
    if len(body) < len(nodes):
        notes.insert(1, "A * stands for every stage or block: layers that agree are one row, and its costs are sums.")
    return DataTable(
        columns,
        body,
        caption or "The plan, node by node",
        notes,
        csv=plan_csv(nodes),
        filename=f"{_slug('plan', *plans)}.csv",
        about=f"all {len(nodes)} nodes, times in milliseconds, sizes in bytes.",
    )


def edge_table(edges: Iterable[Row], *, caption: str = "") -> DataTable:
    """The tensors that are cut otherwise where they are made than where they are used, the dearest first.

    Raises:
        ValueError: when the rows are of several plans.
    """
    edges = sorted(edges, key=lambda edge: -edge["ms"])
    plans = {str(edge.get("plan", "")) for edge in edges}
    if len(plans) > 1:
        raise ValueError(f"a table shows one plan, these rows are of {', '.join(sorted(plans))}")
    body = [
        [
            lines(_name(edge["source"]), soft(f"to {edge['target']}")),
            lines(_narrow(split(edge["before"])), _narrow(f"→ {split(edge['after'])}")),
            " × ".join(map(str, edge["shape"])),
            quantity(edge["ms"], "ms"),
        ]
        for edge in edges
    ]
    total = quantity(sum(edge["ms"] for edge in edges), "ms")
    notes = [f"Together {total} of a step, forward and backward, as the solver estimates it."] if edges else []
    return DataTable(
        ["tensor", "cut when made → when used", "whole shape", "resharding"],
        body or [["none", "—", "—", "—"]],
        caption or "Edges that cost something",
        notes,
        csv=edge_csv(edges),
        filename=f"{_slug('edges', *plans)}.csv",
        about="times in milliseconds.",
    )


def plans_table(plans: Iterable[Row], *, first: str = "plan", caption: str = "") -> Table:
    """Several plans beside each other: what each predicts, and which strategies its layers with weights got.

    Args:
        plans: rows "plan"; one without `objective_ms` is shown as infeasible.
        first: what the labels are: "mesh", "budget", "link of axis 0".
        caption: what the table is called.
    """
    body = []
    for plan in plans:
        if plan.get("objective_ms") is None:
            body.append([plan["plan"], failure("no plan fits"), *["—"] * 5])
            continue
        chosen = plan.get("layers") or ()
        more = f"and {len(chosen) - SHOWN} more" if len(chosen) > SHOWN else ""
        names = [code(f"{count} × {name}") for name, count in chosen[:SHOWN]]
        times = [quantity(plan[f"{part}_ms"], "ms") for part in ("objective", "compute", "communication", "resharding")]
        body.append([plan["plan"], lines(*names, soft(more)), *times, quantity(plan["memory_bytes"], "B")])
    return Table(
        [first, "layers with weights", "step", "compute", "links", "resharding", "memory"],
        body,
        caption or "Plans compared",
        [
            "All predicted, none measured. A step is its compute, its communication over the links and its resharding; "
            "memory is that of one device."
        ],
    )


SHOWN = 3  # strategies that a row names; a mixed plan has more


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


def plan_csv(nodes: Iterable[Row]) -> str:
    """The rows "node" as CSV text, nothing folded or rounded: times in milliseconds, sizes in bytes."""
    fields = ["plan", "name", "op", "strategy", *(f"{t} {what}" for t in TENSORS for what in ("sharding", "shape"))]
    table = []
    for node in nodes:
        tensors = [node.get(tensor) or {"sharding": (), "shape": ()} for tensor in TENSORS]
        cut = [part for t in tensors for part in (letters(t["sharding"]), "x".join(map(str, t["shape"])))]
        plain = [node.get(field, "") for field in ("plan", "name", "op", "strategy")]
        table.append([*plain, *cut, *[node.get(field, "") for field in (*TIMES, *SIZES)]])
    return _csv([*fields, *TIMES, *SIZES], table)


def edge_csv(edges: Iterable[Row]) -> str:
    """The rows "edge" as CSV text; times in milliseconds."""
    table = [
        [edge.get("plan", ""), edge["source"], edge["target"], letters(edge["before"]), letters(edge["after"]),
         "x".join(map(str, edge["shape"])), edge["ms"]]
        for edge in edges
    ]  # fmt: skip
    return _csv(["plan", "source", "target", "before", "after", "shape", "ms"], table)


def split(sharding: Sequence[str], letter: str = "X", dims: str = "") -> str:
    """The site's notation: ["S01", "R"] is "X[b01, c]"."""
    names = dims or ACTIVATION.get(len(sharding), "IJKLMNOP")
    cut = [
        f"{name}{spec.removeprefix('S') if spec != 'R' else ''}" for name, spec in zip(names, sharding, strict=False)
    ]
    return f"{letter}[{', '.join(cut)}]"


def _cut(node: Row, role: str, activation: Mapping[int, str]) -> Cell:
    tensor = node[role]
    weight = role == "weight" or node["op"] == "get_attr"
    dims = (WEIGHT if weight else activation).get(len(tensor["sharding"]), "IJKLMNOP")
    letter = "W" if weight else {"input": "X", "output": "Y"}[role]
    return _narrow(split(tensor["sharding"], letter, dims))


def _narrow(text: str) -> Cell:
    """The notation in small type: a table of a plan is wide."""
    return Cell(text, f'<span class="cut">{escape(text)}</span>')


def _strategy(text: str) -> Cell:
    """A strategy's name; the long ones, of norms and elementwise operations, take a line for each part."""
    return Cell(text, re.sub(r"(?<=\]) (-&gt;|=) | (&lt;[a-z-]+&gt;) | (?=WITH)", _broken, escape(text)))


def _broken(match: re.Match[str]) -> str:
    return f" {match[1]}<br>" if match[1] else f"<br>{match[2]}<br>" if match[2] else "<br>"


def _name(text: str) -> Cell:
    """A node's name, not as code, for which the site keeps a wide column; it may break after an underscore."""
    return Cell(text, escape(text).replace("_", "_<wbr>"))


def _amount(group: Sequence[Row], fields: Iterable[str], unit: str) -> str:
    """The sum over nodes and fields. Upstream charges a few units for what costs nothing: that is less than 1 ns."""
    total = sum(node.get(field) or 0 for node in group for field in fields)
    if unit == "ms" and 0 < total < 1e-6:
        return "< 1 ns"
    return quantity(total, unit) if total else number(0)


def _csv(head: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(table)
    return text.getvalue()


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
