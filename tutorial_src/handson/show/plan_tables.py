"""The tables of a solver's plan: a row for each node, a row for each tensor that must be resharded, a row a plan.

Rows are plain dicts, as auto_parallel/solver.py records them: a "node" has `name`, `op`, `strategy`, `compute_ms`,
`communication_ms`, `activation_bytes`, `parameter_bytes`, `buffer_bytes`, and under `input`, `weight` and `output` the
tensor's `name`, `shape` and `sharding` (one of "R", "S0", "S1", "S01" for each dimension), or None. An "edge" has
`source`, `target`, `before`, `after`, `shape` and `ms`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from handson.show.conditions import RunLike
from handson.show.plan_csv import SIZES, TIMES, DataTable, edge_csv, plan_csv
from handson.show.plan_fold import TENSORS, Row, folded, plain
from handson.show.style import number, quantity
from handson.show.tables import Cell, Table, code, failure, lines, soft

# What a tensor's dimensions are called, by the number of them; a weight's go output first, as PyTorch stores it. Four
# dimensions are images in a network that convolves; in another one heads and tokens come in any order.
ACTIVATION = {1: "c", 2: "bc", 3: "bsh", 4: "bchw"}
HEADS = ACTIVATION | {4: "bjkl"}
WEIGHT = {1: "o", 2: "oi", 4: "oiuv"}


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


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
