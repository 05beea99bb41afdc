"""What plan.py says and records of each plan: a few lines, a row, and the rows of its nodes and edges."""

from __future__ import annotations

import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from handson import worker
from plan_machines import GIB, HARDWARE

if TYPE_CHECKING:
    from plan_options import Case, Question
    from solver import Plan, Search


def working(what: str) -> None:
    """Say what takes a moment, to whoever waits at a terminal; the kit shows its own progress."""
    if "HANDSON_ROWS_FD" not in os.environ:
        print(f"   {what} ...", file=sys.stderr, flush=True)


def opening(question: Question, parameters: int, means: str) -> None:
    """Say what is planned for, and record whose figures are used."""
    if question.hardware in HARDWARE:
        profile = HARDWARE[question.hardware]
        worker.record("hardware", key=question.hardware, **asdict(profile))
    size = f"{means.partition(';')[0].partition(',')[0]}: {question.size}"
    worker.log(f"{question.model}: {parameters:,} parameters, fp32, batch {question.batch}, {size}")


def machine(case: Case) -> None:
    """Say what is assumed of one machine."""
    axes = [
        f"axis {axis}: {case.bandwidths[axis] / 1e9:g} GB/s, {case.latencies[axis] * 1e6:g} us"
        for axis, devices in enumerate(case.mesh)
        if devices > 1
    ]
    mesh = "x".join(map(str, case.mesh))
    worker.log(f"mesh {mesh}: {case.flops / 2e12:.4g} T MAC/s; {'; '.join(axes)}")


def search(found: Search) -> None:
    """Say how large the search is."""
    strategies = sum(len(vector) for vector in found.strategies)
    worker.log(
        f"   traced in {found.seconds['trace']:.1f} s; {len(found.strategies)} nodes, {strategies} strategies in "
        f"{found.seconds['strategies']:.1f} s"
    )


def plan(made: Plan, question: Question, case: Case, least: float, kept_ms: float) -> None:
    """Say and record a plan.

    Args:
        made: the plan.
        question: what was asked.
        case: the machine it is for.
        least: bytes of a device that every plan needs.
        kept_ms: what the first plan of this mesh would cost on this machine.
    """
    row = made.summary
    words = {"compute": "compute", "communication": "links", "resharding": "resharding"}
    parts = " + ".join(f"{word} {row[f'{part}_ms']:.3g}" for part, word in words.items())
    worker.log(
        f"   {row['plan']}: {row['objective_ms']:.3g} ms = {parts}; {row['memory_bytes'] / GIB:.3g} GiB a device"
    )
    chosen = layers(made.nodes)
    shown = ", ".join(f"{count} x ({name})" for name, count in chosen[:2]) + ", ..." * (len(chosen) > 2)
    worker.log(f"   {shown}; {row['status']}, {row['seconds']['solve']:.1f} s")
    record = row | _asked(question, case) | {"layers": chosen, "kept_ms": kept_ms, "least_bytes": least}
    worker.record("plan", **{name: _rounded(value) for name, value in record.items()})


def tensors(made: Plan) -> None:
    """Record every node and every edge that costs."""
    for kind, rows in (("node", made.nodes), ("edge", made.edges)):
        for row in rows:
            kept = {name: value for name, value in row.items() if name not in ("others", "choices", "collectives")}
            worker.record(kind, **{name: _rounded(value) for name, value in kept.items()})


def strategies(made: Plan) -> None:
    """Say the strategy of every node, as the tutorial's log does, and the edges that cost."""
    import rows

    for line in rows.lines(made):
        worker.log(line)


def infeasible(label: str, budget: float | None, question: Question, case: Case, least: float) -> None:
    """Say and record that there is no plan within one of several budgets."""
    worker.log(f"   {label}: no plan fits; every plan needs at least {least / GIB:.3g} GiB")
    worker.record(
        "plan", plan=label, status="infeasible", budget_bytes=budget, objective_ms=None, memory_bytes=None,
        least_bytes=least, **_asked(question, case),
    )  # fmt: skip


def layers(nodes: list[dict[str, Any]]) -> list[tuple[str, int]]:
    """How often each strategy was chosen for a convolution or a linear layer, the most frequent first."""
    weighed = [node for node in nodes if node["weight"] and len(node["weight"]["shape"]) > 1]
    # Upstream numbers the strategies of a linear layer that differ in where the input's other dimensions go.
    return Counter(node["strategy"] for node in weighed if node["op"] != "get_attr").most_common()


def write(made: Plan, path: Path) -> None:
    """A plan as CSV: its nodes in `path`, its edges beside it."""
    import rows

    edges = path.with_name(f"{path.stem}_edges{path.suffix or '.csv'}")
    try:
        path.write_text(rows.as_csv(made.nodes), encoding="utf-8")
        edges.write_text(rows.as_csv(made.edges), encoding="utf-8")
    except OSError as error:
        worker.refuse(f"--csv {path} cannot be written: {error.strerror}")
    worker.log(f"wrote {path} ({len(made.nodes)} nodes) and {edges.name} ({len(made.edges)} edges)")


def _asked(question: Question, case: Case) -> dict[str, Any]:
    return {
        "model": question.model,
        "batch": question.batch,
        "size": question.size,
        "loader": question.loader,
        "hardware": question.hardware,
        "mesh": list(case.mesh),
        "bytes_per_second": list(case.bandwidths),
        "latency_s": list(case.latencies),
        "macs_per_second": case.flops / 2,
    }


def _rounded(value: Any) -> Any:
    return float(f"{value:.7g}") if isinstance(value, float) else value
