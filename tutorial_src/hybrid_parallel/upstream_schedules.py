"""Which pipeline schedules the installed Colossal-AI has, and what each says when it is asked to start.

python upstream_schedules.py
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from handson import repairs, worker
from handson.repairs import legacy_cpu, legacy_engine, legacy_launch, legacy_layers, noise, titans_imports

LEGACY = "colossalai.legacy.engine.schedule"
RPC = "colossalai.legacy.pipeline.rpc"
TODAY = "colossalai.pipeline.schedule"
# class, the module it is in, the order it stands for
SCHEDULES = (
    ("PipelineSchedule", LEGACY, "1F1B"),
    ("InterleavedPipelineSchedule", LEGACY, "interleaved 1F1B"),
    ("PipelineScheduleV2", f"{LEGACY}._pipeline_schedule_v2", "1F1B, tensors pickled"),
    ("FillDrainPipelineEngine", RPC, "GPipe"),
    ("OneFOneBPipelineEngine", RPC, "1F1B"),
    ("ChimeraPipelineEngine", RPC, "both directions at once"),
    ("OneForwardOneBackwardSchedule", TODAY, "1F1B"),
    ("InterleavedSchedule", TODAY, "interleaved 1F1B"),
    ("ZeroBubbleVPipeScheduler", TODAY, "zero bubble, V-shaped"),
)
MICRO_BATCHES = 4


def main() -> None:
    """Record a row `upstream` for each schedule: importable or not, and the first thing that fails."""
    repairs.apply(noise, titans_imports, legacy_launch, legacy_cpu, legacy_engine, legacy_layers)
    for name, module, order in SCHEDULES:
        fault = first_fault(lambda name=name, module=module: start(getattr(importlib.import_module(module), name)))
        worker.record("upstream", name=name, module=module, order=order, fault=fault)
        worker.log(f"{module}.{name}: {order}; {fault or 'no fault found'}")
    worker.record("fill_drain", order=fill_drain_order(MICRO_BATCHES))
    worker.log(f"FillDrainPipelineEngine's order for {MICRO_BATCHES} micro-batches: {fill_drain_order(MICRO_BATCHES)}")


def start(schedule: type) -> None:
    """What the engine does with a schedule before the first batch; the others need a job of their own."""
    if schedule.__name__ in ("PipelineSchedule", "InterleavedPipelineSchedule"):
        schedule.pre_processing(SimpleNamespace(), SimpleNamespace(model=[]))
    if schedule.__module__.startswith(RPC):
        # Its constructor's first check, for two stages.
        schedule._check_argument(SimpleNamespace(stage_num=2, chunk=1, data_process_func=None))


def first_fault(call: Callable[[], Any]) -> str:
    """The error's class and text in one line, or "" where there is none."""
    try:
        call()
    except Exception as error:
        return f"{type(error).__name__}: {error}".splitlines()[0].partition(" (/")[0]
    return ""


def fill_drain_order(micro_batches: int) -> list[str]:
    """The order that upstream's own worker for GPipe decides on: "F0", "F1" ... "B0" ..."""
    from colossalai.legacy.pipeline.rpc._pipeline_schedule import FillDrainWorker

    done = SimpleNamespace(num_microbatches=micro_batches, forward_times=0, backward_times=0)
    order = []
    for _ in range(2 * micro_batches):
        key = FillDrainWorker._get_work_item_key(done)
        forward = key.phase.name == "FORWARD"
        order.append(f"{'F' if forward else 'B'}{key.microbatch_id}")
        done.forward_times += forward
        done.backward_times += not forward
    return order


if __name__ == "__main__":
    main()
