"""A plan as rows of plain numbers and texts: one per node, one per edge that costs, one for the whole.

Rows survive the search that made them: they travel to another process, into a file, onto a page.
"""

from __future__ import annotations

import csv
import io
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from colossalai.auto_parallel.tensor_shard.sharding_strategy import ShardingStrategy
    from solver import Plan, Search
    from torch.fx import Node

FUNCTIONS = {"iadd": "add", "batch_norm2d": "batch_norm"}


def describe(search: Search, solution: list[int], *, label: str, status: str, **solved: Any) -> Plan:
    """The plan that these indices choose among `search.strategies`.

    Args:
        solved: budget [bytes], solve_seconds, objective [MACs], variables, constraints, where a solver was asked.
    """
    from solver import Plan

    milliseconds = 1e3 / search.machine.macs_per_second
    chosen = {v.node: v[number] for v, number in zip(search.strategies, solution, strict=True)}
    nodes = [
        _node_row(vector.node, chosen[vector.node], len(vector), milliseconds) | {"plan": label}
        for vector in search.strategies
    ]
    edges = []
    for vector in search.strategies:
        for source in vector.predecessor_nodes:
            row = _edge_row(source, vector.node, chosen, solution, search, milliseconds)
            if row is not None and row["ms"] > 0:
                edges.append(row | {"plan": label})
    total = {name: sum(row[name] for row in nodes) for name in nodes[0] if name.endswith(("_ms", "_bytes"))}
    resharding = sum(row["ms"] for row in edges)
    memory = total["activation_bytes"] + total["parameter_bytes"] + total["buffer_bytes"]
    graph = search._costs
    summary = {
        "plan": label,
        "model": type(search.model).__name__,
        "mesh": list(search.mesh),
        "devices": search.mesh[0] * search.mesh[1],
        "batch": next(iter(search.inputs.values())).shape[0],
        "status": status,
        "budget_bytes": solved.get("budget"),
        "memory_bytes": memory,
        "objective_ms": total["compute_ms"] + total["communication_ms"] + resharding,
        "resharding_ms": resharding,
        "compute_ms": total["compute_ms"],
        "communication_ms": total["communication_ms"],
        "activation_bytes": total["activation_bytes"],
        "parameter_bytes": total["parameter_bytes"],
        "buffer_bytes": total["buffer_bytes"],
        "solver_objective_ms": solved["objective"] * milliseconds if "objective" in solved else None,
        "nodes": len(nodes),
        "strategies": sum(len(vector) for vector in search.strategies),
        "edges": len(graph.edge_costs) if graph else None,
        "variables": solved.get("variables"),
        "constraints": solved.get("constraints"),
        "seconds": search.seconds | {"solve": solved.get("solve_seconds")},
        "macs_per_second": search.machine.macs_per_second,
        "bytes_per_second": list(search.machine.bytes_per_second),
        "latency_s": list(search.machine.latency_s),
    }
    return Plan(summary=summary, nodes=nodes, edges=edges, solution=solution)


def lines(plan: Plan) -> list[str]:
    """The plan as the tutorial's log shows it: `layer1_0_conv1 S01R = S01R x RR`, then the edges that cost."""
    strategies = [f"{row['name']} {row['strategy']}" for row in plan.nodes]
    costs = [f"Edge cost ({row['source']}, {row['target']}) : {row['ms']:.3g} ms" for row in plan.edges]
    return strategies + costs


def as_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as a CSV table; shardings as `S01 R R R`, tensors in three columns each."""
    flat = [_flat(row) for row in rows]
    columns = list(dict.fromkeys(name for row in flat for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    return text.getvalue()


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    flat = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}_{part}": _join(inner) for part, inner in value.items()}
        elif name != "others":
            flat[name] = _join(value)
    return flat


def _join(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _node_row(node: Node, strategy: ShardingStrategy, choices: int, milliseconds: float) -> dict[str, Any]:
    from colossalai.auto_parallel.tensor_shard.sharding_strategy import OperationDataType

    tensors: dict[OperationDataType, list[dict]] = {kind: [] for kind in OperationDataType}
    for data, spec in strategy.sharding_specs.items():
        one = spec[0] if isinstance(spec, list | tuple) and spec else spec
        if hasattr(one, "sharding_sequence"):
            tensors[data.type].append(
                {"name": data.name, "sharding": list(map(str, one.sharding_sequence)), "shape": list(one.entire_shape)}
            )
    activations = tensors[OperationDataType.ARG] + tensors[OperationDataType.INPUT]
    memory = strategy.memory_cost.total
    return {
        "name": node.name,
        "op": _operation(node),
        "strategy": strategy.name,
        "choices": choices,
        "input": activations[0] if activations else None,
        "weight": next(iter(tensors[OperationDataType.PARAM]), None),
        "output": next(iter(tensors[OperationDataType.OUTPUT]), None),
        "others": activations[1:],
        "compute_ms": float(strategy.compute_cost.total) * milliseconds,
        "communication_ms": float(strategy.communication_cost.total) * milliseconds,
        "collectives": len(strategy.communication_actions or {}),
        "activation_bytes": float(memory.activation),
        "parameter_bytes": float(memory.parameter),
        "buffer_bytes": float(memory.buffer),
    }


def _edge_row(
    source: Node,
    target: Node,
    chosen: dict[Node, ShardingStrategy],
    solution: list[int],
    search: Search,
    milliseconds: float,
) -> dict[str, Any] | None:
    before, after = chosen.get(source), chosen[target]
    costs = (after.resharding_costs or {}).get(source)
    if before is None or not costs:
        return None
    number = solution[[vector.node for vector in search.strategies].index(source)]
    spec, wanted = before.get_sharding_spec_by_name(source.name), after.get_sharding_spec_by_name(source.name)
    if isinstance(spec, list | tuple):
        spec, wanted = spec[0], wanted[0]
    return {
        "source": source.name,
        "target": target.name,
        "before": list(map(str, spec.sharding_sequence)),
        "after": list(map(str, wanted.sharding_sequence)),
        "shape": list(spec.entire_shape),
        "ms": float(costs[number].total) * milliseconds,
    }


def _operation(node: Node) -> str:
    if node.op == "call_module":
        name = type(node.graph.owning_module.get_submodule(node.target)).__name__
        name = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()
    elif node.op == "call_function":
        name = node.target.__name__
    else:
        name = node.target if node.op == "call_method" else node.op
    return FUNCTIONS.get(name, name)
