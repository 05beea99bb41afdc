"""Solve for a mesh that you do not own: one process, no process group, no GPU, ResNet-50 in seconds.

    python -m handson plan resnet50 --mesh 2x4 --memory 80GiB --csv plan.csv
    python plan.py resnet50 --mesh 4x8 --hardware h200 --batch 2048 --memory none,80GiB,40GiB
    python plan.py mlp --mesh 2x2 --bandwidth 25GB/s,450GB/s --latency 20us,10us --flops 495TFLOPS
    python plan.py resnet50 --mesh 2x4 --sweep 450GB/s,100GB/s,25GB/s

The model lives on the meta device, so its size does not matter. Colossal-AI traces it and lists how each node could be
cut and what that costs on this machine; an integer programme picks one strategy for each node (solver.py, plan_ilp.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import plan_options
import plan_report
from handson import repairs, worker
from handson.repairs import auto_plan, noise
from plan_models import MODELS

if TYPE_CHECKING:
    from plan_options import Question
    from solver import Plan


def main(argv: list[str] | None = None, *, prog: str = "plan.py") -> int:
    """Read the command line, solve, report; what cannot be is refused in one sentence, with exit code 2."""
    began = time.perf_counter()
    question = plan_options.read(argv, prog=prog, about=__doc__)
    plan_report.working("loading PyTorch and Colossal-AI")
    repairs.apply(noise, auto_plan)
    from solver import PlanError

    try:
        plans = list(solve(question))
    except PlanError as error:
        worker.refuse(str(error))
    if plans and not question.brief:
        for plan in {id(plan): plan for plan in (plans[0], plans[-1])}.values():
            plan_report.tensors(plan)
    if plans and question.nodes:
        plan_report.strategies(plans[-1])
    worker.log(f"{time.perf_counter() - began:.1f} s in all")
    if plans and question.csv:
        plan_report.write(plans[-1], Path(question.csv))
    return 0


def solve(question: Question) -> Iterator[Plan]:
    """Look for strategies once for each machine, solve once for each budget, report each plan as soon as it is there.

    Raises:
        PlanError: where the model cannot be planned, or the only budget is impossible.
    """
    import plan_ilp
    from solver import Infeasible, Machine, Search

    entry = MODELS[question.model]
    model, inputs = entry.build(question.batch, question.size)
    plan_report.opening(question, sum(parameter.numel() for parameter in model.parameters()), entry.means)
    # A search takes about twice as long as a solution.
    total, done, first = len(question.cases) * (2 + len(question.budgets)), 0, {}
    for case in question.cases:
        plan_report.machine(case)
        plan_report.working("tracing, listing strategies and their costs")
        machine = Machine(case.flops / 2, case.bandwidths, case.latencies)
        search = Search(model, inputs, case.mesh, machine, loader=question.loader)
        plan_report.search(search)
        problem = plan_ilp.problem(search)
        worker.progress(done := done + 2, total)
        for budget in question.budgets:
            label, least = question.label(case, budget), problem.least_memory()
            plan_report.working("solving")
            try:
                plan = plan_ilp.solve(
                    search, budget, gap=question.gap, time_limit=question.limit, label=label, of=problem
                )
            except Infeasible:
                # One impossible budget among several is a result; alone it is an error.
                if len(question.budgets) * len(question.cases) == 1:
                    raise
                plan_report.infeasible(label, budget, question, case, least)
            else:
                kept = search.describe(first.setdefault(case.mesh, plan.solution), label=label)
                plan_report.plan(plan, question, case, least, kept.summary["objective_ms"])
                yield plan
            worker.progress(done := done + 1, total)


if __name__ == "__main__":
    raise SystemExit(main())
