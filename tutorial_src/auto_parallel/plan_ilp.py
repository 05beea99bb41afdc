"""The solver's integer programme written tighter: the same optimum, soon enough to try many machines and budgets.

The programme is Alpa's (Zheng et al. 2022), which Colossal-AI's Solver took over: choose one strategy for each
node so that compute + communication + resharding is least and memory stays within a budget. What makes it faster:

1. A node that follows another (elementwise, reshape) is added to it before the solver sees it.
2. An edge's variables are continuous and sum exactly to its ends' strategies. That is the convex hull of one edge, so
   the relaxation is close to the integer optimum and few branches are needed. Upstream's are integers that sum to less.
3. One constraint keeps the budget. Upstream writes one for each prefix of the nodes, of which only the last matters.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from solver import Plan, Search

GIB = 1 << 30


@dataclass(frozen=True)
class Problem:
    """Costs in MACs and memory in bytes for each strategy of each independent node, and costs for each pair on an edge.

    `follows` names for every node of the graph the independent node whose choice it takes.
    """

    follows: list[int]
    cost: dict[int, np.ndarray]
    memory: dict[int, np.ndarray]
    edges: dict[tuple[int, int], np.ndarray]

    def least_memory(self) -> float:
        """Bytes below which there is no plan at all: memory is a sum over nodes, each may choose its least."""
        return float(sum(memory.min() for memory in self.memory.values()))


def problem(search: Search) -> Problem:
    """Collect the costs that upstream computed, a follower's added to the node that it follows."""
    from colossalai.auto_parallel.tensor_shard.solver import Solver

    upstream = Solver(search.graph_module.graph, search._constructor, search._costs)
    count, _, lengths, following, pairs, _, _, compute, communication, memory, resharding, *_ = (
        upstream._prepare_data_for_solver()
    )
    ends = np.cumsum(lengths)
    follows = [following[node] if following[node] >= 0 else node for node in range(count)]
    cost, held = {}, {}
    for node, root in enumerate(follows):
        part = slice(ends[node] - lengths[node], ends[node])
        cost[root] = cost.get(root, 0) + compute[part] + communication[part]
        held[root] = held.get(root, 0) + memory[part]
    edges: dict[tuple[int, int], np.ndarray] = {}
    start = 0
    for source, target in pairs.reshape(-1, 2):
        shape = (lengths[source], lengths[target])
        table = resharding[start : start + shape[0] * shape[1]].reshape(shape)
        start += table.size
        first, second = follows[source], follows[target]
        if first == second:
            cost[first] = cost[first] + np.diag(table)
        elif (second, first) in edges:
            edges[second, first] = edges[second, first] + table.T
        else:
            edges[first, second] = edges.get((first, second), 0) + table
    return Problem(follows, cost, held, edges)


def solve(
    search: Search,
    memory_budget: float | None = None,
    *,
    gap: float = 0.0,
    time_limit: float = 60.0,
    label: str = "solver",
    of: Problem | None = None,
) -> Plan:
    """The cheapest plan within a budget; the arguments and the result of `Search.solve`.

    Args:
        search: a traced model with its strategies.
        memory_budget: bytes of one device; None: no limit.
        gap: stop at a plan that is proven to cost at most this fraction more than the best.
        time_limit: seconds, after which the best plan so far is taken.
        label: names the plan in its rows.
        of: `problem(search)`, where several budgets are solved on the same costs.

    Raises:
        Infeasible: saying the least memory that any plan needs.
    """
    import pulp
    from solver import Infeasible

    began = time.perf_counter()
    of = of or problem(search)
    least, mesh = of.least_memory(), "x".join(map(str, search.mesh))
    if memory_budget is not None and memory_budget < least:
        raise Infeasible(
            f"no plan fits within {memory_budget / GIB:.3g} GiB a device on a {mesh} mesh: every plan needs at least "
            f"{least / GIB:.3g} GiB; use a larger budget, more devices or a smaller batch"
        )
    programme, chosen = _programme(of, memory_budget, search.machine.macs_per_second)
    programme.solve(pulp.PULP_CBC_CMD(msg=False, gapRel=gap, timeLimit=time_limit, threads=1))
    if programme.sol_status not in (pulp.LpSolutionOptimal, pulp.LpSolutionIntegerFeasible):
        why = "no plan fits" if programme.status == pulp.LpStatusInfeasible else "no plan was found in time that fits"
        given = "" if memory_budget is None else f" within {memory_budget / GIB:.3g} GiB a device"
        raise Infeasible(f"{why}{given} on a {mesh} mesh; use a larger budget, more devices or a smaller batch")
    picked = {root: int(np.argmax([v.value() for v in chosen[root]])) for root in chosen}
    optimal = programme.sol_status == pulp.LpSolutionOptimal
    return search.describe(
        [picked[root] for root in of.follows],
        label=label,
        status="feasible" if not optimal else f"within {gap:.0%}" if gap else "optimal",
        budget=memory_budget,
        solve_seconds=time.perf_counter() - began,
        # The programme counts in milliseconds; rows count from MACs.
        objective=programme.objective.value() * search.machine.macs_per_second / 1e3,
        variables=programme.numVariables(),
        constraints=programme.numConstraints(),
    )


def _programme(of: Problem, memory_budget: float | None, speed: float) -> tuple:
    """The programme in milliseconds and GiB: numbers near 1 are what CBC's tolerances are made for."""
    import pulp

    programme = pulp.LpProblem("plan", pulp.LpMinimize)
    chosen = {
        root: [pulp.LpVariable(f"s_{root}_{number}", cat="Binary") for number in range(len(costs))]
        for root, costs in of.cost.items()
    }
    terms = [(v, c * 1e3 / speed) for root in chosen for v, c in zip(chosen[root], of.cost[root], strict=True)]
    for variables in chosen.values():
        programme += pulp.lpSum(variables) == 1
    for (first, second), table in of.edges.items():
        table = table * 1e3 / speed
        rows, columns = table.shape
        if np.ptp(table, axis=1).max() == 0:
            # Nothing depends on the target's choice: the cost is the source's own.
            terms += zip(chosen[first], table[:, 0], strict=True)
            continue
        pair = [
            [pulp.LpVariable(f"e_{first}_{second}_{i}_{j}", lowBound=0) for j in range(columns)] for i in range(rows)
        ]
        for i in range(rows):
            programme += pulp.lpSum(pair[i]) == chosen[first][i]
        for j in range(columns):
            programme += pulp.lpSum(pair[i][j] for i in range(rows)) == chosen[second][j]
        terms += [(pair[i][j], table[i, j]) for i in range(rows) for j in range(columns) if table[i, j]]
    programme.setObjective(pulp.LpAffineExpression([(v, float(c)) for v, c in terms if c]))
    if memory_budget is not None:
        held = [(v, float(m) / GIB) for root in chosen for v, m in zip(chosen[root], of.memory[root], strict=True) if m]
        programme += pulp.LpAffineExpression(held) <= memory_budget / GIB
    return programme, chosen
