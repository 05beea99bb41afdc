"""Ordinary code in, a plan out: trace the model, list how each node can be sharded, let an ILP solver choose.

    plan = solver.plan(networks.resnet("resnet50"), {"x": torch.rand(16, 3, 32, 32, device="meta")}, (2, 2),
                       Machine(macs_per_second=2.5e14, bytes_per_second=(4e11, 4e11), latency_s=(1e-5, 1e-5)))

The tracer, the strategies, their costs and the graph of costs are Colossal-AI's
(colossalai/auto_parallel/tensor_shard), the ILP is solved by the CBC inside pulp. All of it runs in one process for
any mesh: no process group, no GPU.

Upstream's unit of cost is a multiply-accumulate (MAC). `Machine` turns it into seconds: a MAC takes
1 / macs_per_second, a collective latency + bytes / bandwidth (with the collective's own factor), resharding the same.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from handson import repairs
from handson.repairs import auto_parallel, auto_parallel_run, auto_trace, gloo, legacy_engine, noise

if TYPE_CHECKING:
    import torch
    from colossalai.auto_parallel.tensor_shard.sharding_strategy import ShardingStrategy
    from colossalai.device.device_mesh import DeviceMesh
    from torch import nn
    from torch.fx import Node

# Of the legacy engine's repairs auto-parallel needs one: its search, too, writes thousands of lines that are not shown.
LOGGING = SimpleNamespace(REPAIRS=tuple(repair for repair in legacy_engine.REPAIRS if repair.name == "stack"))
AREAS = (noise, auto_trace, auto_parallel, auto_parallel_run, gloo, LOGGING)

LOADERS = ("replicated", "distributed")
MIB = 1 << 20


class PlanError(ValueError):
    """There is no plan; the text is one sentence that says why and what to do."""


class Untraceable(PlanError):
    """The tracer cannot follow the model, or knows no strategy for one of its operations."""


class Infeasible(PlanError):
    """No plan (that was found in time) fits the memory budget."""


@dataclass(frozen=True)
class Machine:
    """How fast one device computes and how fast the links are along each axis of the mesh.

    macs_per_second: multiply-accumulates of one device; bytes_per_second, latency_s: one number per axis of the mesh.
    """

    macs_per_second: float
    bytes_per_second: tuple[float, float]
    latency_s: tuple[float, float]

    def __post_init__(self) -> None:
        numbers = (self.macs_per_second, *self.bytes_per_second)
        if not all(number > 0 for number in numbers) or any(latency < 0 for latency in self.latency_s):
            raise PlanError(f"a machine has speeds above 0 and latencies of 0 or more, which {self} has not")


@dataclass(frozen=True)
class Plan:
    """A strategy for every node, and what the cost model says of it.

    `summary`, `nodes` and `edges` are rows of plain numbers and texts: times in ms, memory in bytes of one device.
    `solution` holds, for each node that has strategies, the index of the chosen one.
    """

    summary: dict[str, Any]
    nodes: list[dict[str, Any]]
    edges: list[dict[str, Any]]
    solution: list[int] = field(repr=False)


def plan(
    model: nn.Module,
    inputs: Mapping[str, torch.Tensor],
    mesh: tuple[int, int],
    machine: Machine,
    *,
    memory_budget: float | None = None,
    gap: float = 0.0,
    time_limit: float = 60.0,
    loader: str = "replicated",
    label: str = "solver",
) -> Plan:
    """Solve once: `Search(...)`, then `solve(...)`; their arguments and errors."""
    search = Search(model, inputs, mesh, machine, loader=loader)
    return search.solve(memory_budget, gap=gap, time_limit=time_limit, label=label)


class Search:
    """A traced model with the strategies of every node on one mesh, ready to be solved under several budgets.

    Args:
        model: ordinary code; its parameters may be on the meta device where nothing is going to run.
        inputs: for each argument of forward() a meta tensor of the global batch's shape.
        mesh: devices along the two axes; (1, n) is one line of devices.
        machine: speeds, for costs in seconds.
        device_mesh: Colossal-AI's mesh of a running job (`sharded.join_mesh`); without it nothing can be run.
        loader: `replicated`: every rank is fed the global batch; `distributed`: each its share, along all axes.
        costs: leave out the costs of resharding, which takes most of the time, where only strategies are wanted.

    Raises:
        Untraceable: naming the operation, where the tracer or the strategies stop.
        PlanError: for a mesh that cannot be.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        mesh: tuple[int, int],
        machine: Machine,
        *,
        device_mesh: DeviceMesh | None = None,
        loader: str = "replicated",
        costs: bool = True,
    ) -> None:
        if len(mesh) != 2 or any(size < 1 for size in mesh) or math.prod(mesh) < 2:
            raise PlanError(
                f"a mesh of {mesh} cannot be: upstream's strategies know two axes; use for example 2x4 or 1x8"
            )
        if loader not in LOADERS:
            raise PlanError(f"loader={loader} is unknown; use {' or '.join(LOADERS)}")
        repairs.apply(*AREAS)
        self.model, self.inputs, self.mesh, self.machine, self.loader = model, dict(inputs), mesh, machine, loader
        self.seconds: dict[str, float] = {}
        self.device_mesh = device_mesh or fake_mesh(mesh)
        calibrate(self.device_mesh, machine, next(model.parameters()).element_size())
        self.graph_module = self._timed("trace", self._trace)
        self._constructor = self._timed("strategies", self._strategies, costs)
        self._costs = self._cost_graph() if costs else None

    @property
    def strategies(self) -> list[list[ShardingStrategy]]:
        """Upstream's strategies of each node that has any, in the graph's order."""
        return self._constructor.leaf_strategies

    def least_memory(self) -> float:
        """Bytes of one device that every plan needs: each node at its smallest, whether or not they fit together."""
        return sum(min(_memory(strategy) for strategy in vector) for vector in self.strategies)

    def solve(
        self,
        memory_budget: float | None = None,
        *,
        gap: float = 0.0,
        time_limit: float = 60.0,
        label: str = "solver",
    ) -> Plan:
        """The cheapest plan whose memory, by upstream's estimate, is within the budget.

        Args:
            memory_budget: bytes of one device for parameters, activations and the gradients of both; None: no limit.
            gap: stop at a plan that is proven to cost at most this fraction more than the best.
            time_limit: seconds, after which the best plan so far is taken.
            label: names the plan in its rows.

        Raises:
            Infeasible: saying the least memory that any plan needs.
        """
        from colossalai.auto_parallel.tensor_shard.solver import Solver
        from colossalai.auto_parallel.tensor_shard.solver import solver as upstream

        least = self.least_memory()
        budget = -1.0 if memory_budget is None else float(memory_budget)
        given = "" if memory_budget is None else f" within {budget / MIB:.1f} MiB a device"
        advice = "use a larger budget, more devices or a smaller batch"
        if memory_budget is not None and budget < least:
            raise Infeasible(
                f"no plan fits{given} on a {_times(self.mesh)} mesh: every plan needs at least {least / MIB:.1f} MiB; "
                f"{advice}"
            )
        getattr(upstream.pulp, "settings", {}).update(timeLimit=float(time_limit), gapRel=float(gap))
        began = time.perf_counter()
        solver = Solver(self.graph_module.graph, self._constructor, self._costs, memory_budget=budget)
        try:
            solution, _, objective, _ = solver.call_solver_serialized_args()
        except (RuntimeError, AssertionError) as error:
            # Upstream raises RuntimeError when it is proven that there is none, and on "none yet" fails an assertion
            # that says nothing.
            if isinstance(error, AssertionError) and error.args:
                raise
            why = (
                "no plan fits"
                if isinstance(error, RuntimeError)
                else f"in {time_limit:g} s no plan was found that fits"
            )
            raise Infeasible(f"{why}{given} on a {_times(self.mesh)} mesh; {advice}") from error
        (problem,) = upstream.pulp.problems
        status = "optimal" if problem.sol_status == upstream.pulp.LpSolutionOptimal else "feasible"
        return self.describe(
            solution,
            label=label,
            status=f"within {gap:.0%}" if gap > 0 and status == "optimal" else status,
            budget=memory_budget,
            solve_seconds=time.perf_counter() - began,
            objective=objective,
            variables=problem.numVariables(),
            constraints=problem.numConstraints(),
        )

    def forced(self, kind: str, *, label: str = "") -> Plan:
        """A plan that nobody searched for.

        Args:
            kind: `replicated`, where every device computes everything; or `data`, where every device has all the
                parameters and its share of every activation, along both axes of the mesh. A node without such a
                strategy gets the one that communicates least.
            label: names the plan in its rows; the kind by default.
        """
        from colossalai.auto_parallel.tensor_shard.sharding_strategy import OperationDataType

        batch = next(iter(self.inputs.values())).shape[0]
        activations = (OperationDataType.INPUT, OperationDataType.ARG, OperationDataType.OUTPUT)

        def fits(strategy: ShardingStrategy) -> bool:
            for data, spec in strategy.sharding_specs.items():
                for one in spec if isinstance(spec, list | tuple) else [spec]:
                    if one is None:
                        continue
                    split = kind == "data" and data.type in activations and tuple(one.entire_shape[:1]) == (batch,)
                    if one.dim_partition_dict != ({0: [0, 1]} if split else {}):
                        return False
            return True

        solution, chosen = [], {}
        for vector in self.strategies:
            # Upstream has no such strategy for every node (pooling to one pixel leaves nothing split, for one).
            numbers = [number for number, strategy in enumerate(vector) if fits(strategy)] or range(len(vector))
            number = min(numbers, key=lambda number, vector=vector: _cost_after(chosen, vector[number]))
            chosen[vector.node] = number
            solution.append(number)
        return self.describe(solution, label=label or kind, status="forced")

    def describe(self, solution: list[int], *, label: str, status: str = "given", **solved: Any) -> Plan:
        """The rows of a plan from the indices of its strategies."""
        from rows import describe

        return describe(self, [int(index) for index in solution], label=label, status=status, **solved)

    def _timed(self, name: str, work: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        result = work(*arguments)
        self.seconds[name] = time.perf_counter() - began
        return result

    def _trace(self) -> Any:
        from colossalai.auto_parallel.tensor_shard import initialize as upstream

        name = type(self.model).__name__
        try:
            tracer = upstream.ColoTracer(trace_act_ckpt=True, bias_addition_split=True)
            graph = tracer.trace(root=self.model, meta_args=self.inputs)
            graph.set_codegen(upstream.ActivationCheckpointCodeGen())
            graph_module = upstream.ColoGraphModule(self.model, graph, name)
            upstream.shape_prop_pass(graph_module, *self.inputs.values())
            graph_module.recompile()
        except Exception as error:
            raise Untraceable(
                f"{name} cannot be traced: {_one_line(error)}; the tracer follows code whose path does not depend on "
                "its input's values or sizes"
            ) from error
        return graph_module

    def _strategies(self, costs: bool) -> Any:
        from colossalai.auto_parallel.tensor_shard import initialize as upstream

        graph, name = self.graph_module.graph, type(self.model).__name__
        try:
            with contextlib.nullcontext() if costs else _without_costs():
                return upstream.build_strategy_constructor(graph, self.device_mesh, "standard", self.loader, "standard")
        except Exception as error:
            raise Untraceable(
                f"{name} was traced, but not every operation has a strategy on a {_times(self.mesh)} mesh: "
                f"{_one_line(error)}"
            ) from error

    def _cost_graph(self) -> Any:
        from colossalai.auto_parallel.tensor_shard.solver import CostGraph

        graph = CostGraph(self.strategies)
        graph.simplify_graph()
        return graph


@contextlib.contextmanager
def _without_costs() -> Iterator[None]:
    """Inside, strategies are listed and nothing is worked out about them, which takes most of the time."""
    from colossalai.auto_parallel.tensor_shard.node_handler import node_handler as upstream

    put = [(upstream.NodeHandler, "update_resharding_cost", lambda handler, strategy: strategy)]
    for handler in (upstream.MetaInfoNodeHandler, upstream.MetaInfoModuleHandler):
        put.append((handler, "register_strategy", upstream.NodeHandler.register_strategy))
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in put]
    for owner, name, value in put:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def fake_mesh(shape: tuple[int, int]) -> DeviceMesh:
    """A mesh that costs can be asked of, and nothing else."""
    import torch
    from colossalai.device.device_mesh import DeviceMesh

    return DeviceMesh(torch.arange(math.prod(shape)), shape, device="cpu")


def calibrate(device_mesh: DeviceMesh, machine: Machine, element_size: int) -> None:
    """Write the machine's speeds into the mesh, in upstream's unit: MACs for a byte, MACs for a collective."""
    speed = machine.macs_per_second
    # Upstream multiplies the whole cost of a collective, latency included, by the bytes of an element. On an axis of
    # one device nothing is sent, but its formula would still charge the latency.
    alpha = [speed * latency / element_size for latency in machine.latency_s]
    alpha = [cost if devices > 1 else 0.0 for cost, devices in zip(alpha, device_mesh.shape, strict=True)]
    beta = [speed / bandwidth for bandwidth in machine.bytes_per_second]
    flat = device_mesh.flatten()
    device_mesh.mesh_alpha, device_mesh.mesh_beta = tuple(alpha), tuple(beta)
    flat.mesh_alpha, flat.mesh_beta = (max(alpha),), (max(beta),)


def _cost_after(chosen: dict[Node, int], strategy: ShardingStrategy) -> float:
    """What this strategy communicates after those chosen before it [MACs]."""
    before = (costs[chosen[node]].total for node, costs in strategy.resharding_costs.items() if node in chosen)
    return strategy.communication_cost.total + sum(before)


def _memory(strategy: ShardingStrategy) -> float:
    """What the ILP's budget constrains: bytes of one device, forward and backward."""
    cost = strategy.memory_cost.total
    return cost.parameter + cost.activation + cost.buffer


def _times(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no reason given"
    return f"{type(error).__name__}: {text if len(text) <= 200 else text[:199] + '…'}"
