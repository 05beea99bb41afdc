"""What the solver predicted, and what happened: time, memory and communication of one step under several plans.

Each plan is timed twice: as it is, and with its collectives left out, which computes the same amount with wrong
numbers. The difference is what communicating really cost, beside what the cost model charged for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from handson import worker
from handson.batch_norm import synchronise
from handson.measure.communication import CommunicationCounter
from handson.measure.memory import step_memory
from handson.measure.timing import median_step_time
from sharded_run import GAP, TIME_LIMIT, attempt, build, gigabytes, stepper
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from sharded_run import Job
    from solver import Plan, Search
    from torch import Tensor, nn

# Steps that are thrown away, then steps that are timed.
STEPS = {"laptop": (1, 3), "gpu": (3, 10)}


def measure(job: Job, search: Search | None, plan: Plan) -> None:
    """Measure the plan, the two that nobody searched for, and PyTorch's own data parallelism. `search` is rank 0's."""
    forced = [search.forced(kind, label=f"all {kind}") for kind in ("data", "replicated")] if search else []
    plans = share([("solver", plan), *((one.summary["plan"], one) for one in forced)])
    measure_plans(job, plans, total=len(plans) + 2)
    for number, synchronised in enumerate((False, True), len(plans)):
        before = held()
        model = job.model()
        if synchronised:
            synchronise(model, dist.group.WORLD)
        on_gpu = worker.device().type == "cuda"
        model = DistributedDataParallel(model, device_ids=[worker.device()] if on_gpu else None)
        report("DDP, batch norm over all" if synchronised else "DDP", model, job.share(), job.batch, before=before)
        del model
        worker.progress(number + 1, len(plans) + 2)


def measure_budgets(job: Job, search: Search | None, plan: Plan, count: int) -> None:
    """Measure plans under `count` budgets between what the free plan takes and the least that any plan needs.

    One more budget, below that least, is asked for: its answer is a sentence. Times are taken on GPUs alone; what is
    asked of a CPU is the memory.
    """
    plans: list[tuple[str, Plan | str]] = [("solver", plan)]
    if search:
        free, least = plan.summary["memory_bytes"], search.least_memory()
        for number in range(1, count + 1):
            budget = free - (free - least) * number / (count + 1)
            label = f"budget {number}"
            plans.append((label, attempt(search, budget, gap=GAP, time_limit=TIME_LIMIT, label=label)))
            worker.progress(number, 2 * count + 1)
        plans.append(("too small a budget", attempt(search, least * 0.9)))
    timed = worker.device().type == "cuda"
    measure_plans(job, share(plans), total=2 * count + 1, done=count, timed=timed)


def share(plans: list[tuple[str, Plan | str]]) -> dict[str, Plan]:
    """Tell every rank rank 0's plans; log and record those that are not there, with the reason."""
    answer = [plans]
    dist.broadcast_object_list(answer, src=0, device=worker.device())
    for label, one in answer[0]:
        if isinstance(one, str):
            for line in textwrap.wrap(f"{label}: {one}", 84):
                worker.log(line)
            row("no_plan", plan=label, reason=one)
        elif label != "solver":
            row("plan", **one.summary)
    return {label: one for label, one in answer[0] if not isinstance(one, str)}


def measure_plans(job: Job, plans: dict[str, Plan], *, total: int, done: int = 0, timed: bool = True) -> None:
    """Build each plan that is unlike those before it, and measure it."""
    for number, (label, one) in enumerate(plans.items()):
        same = next((other for other in list(plans)[:number] if plans[other].solution == one.solution), None)
        if same is not None:
            worker.log(f"{label}: the same strategies as {same}")
            row("same", plan=label, same_as=same)
            continue
        before = held()
        sharded = build(job, one)
        report(label, sharded.model, job.data(), job.batch, before=before, timed=timed, quiet_too=timed)
        del sharded
        worker.progress(done + number + 1, total)


def held() -> int:
    """Bytes that this rank's GPU holds before a model is built.

    Upstream's graph passes keep earlier models alive, and a plan's peak must not count those. Where tensors are counted
    (on the CPU), only those that the step touches are.
    """
    gc.collect()
    device = worker.device()
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def report(
    label: str,
    model: nn.Module,
    data: tuple[Tensor, Tensor],
    batch: int,
    *,
    before: int,
    timed: bool = True,
    quiet_too: bool = False,
) -> None:
    """Time steps on this batch, count one step's memory (above `before` bytes) and communication; log and record it."""
    device, (warmup, repeats) = worker.device(), STEPS[worker.preset()]
    step, said = stepper(model, *data), ""
    if timed:
        time = median_step_time(step, warmup=warmup, repeats=repeats, device=device)
        said = f"{time.median_ms:.3g} ms a step"
        quiet = None
        if quiet_too:
            with without_collectives():
                quiet = median_step_time(step, warmup=0, repeats=repeats, device=device).median_ms
            said += f" ({quiet:.3g} with its collectives left out)"
        row(
            "step_time",
            plan=label,
            median_ms=time.median_ms,
            all_ms=time.all_ms,
            warmup=time.warmup,
            method=time.method,
            images_per_second=time.per_second(batch),
            compute_ms=quiet,
        )
        said += ", "
    else:
        step()
    counter = CommunicationCounter()

    def counted() -> None:
        with counter:
            step()

    memory = step_memory(counted, model=model, alive=data, device=device)
    memory = dataclasses.replace(memory, peak_bytes=memory.peak_bytes - before)
    worker.record("memory", plan=label, **memory.fields())
    worker.record("communication", plan=label, rows=counter.rows())
    calls = sum(counted_row["calls"] for counted_row in counter.rows())
    worker.log(
        f"{label}: {said}{calls} collectives,\n  {counter.total_wire_bytes() / 1e6:.3g} MB sent; "
        f"peak {gigabytes(memory.peak_bytes)} on rank 0"
    )


@contextlib.contextmanager
def without_collectives() -> Iterator[None]:
    """Inside, collectives move nothing: what they would fill keeps what it holds. Every rank must do the same."""
    names = ("all_reduce", "all_gather", "all_to_all")
    originals: dict[str, Callable[..., Any]] = {name: getattr(dist, name) for name in names}

    def nothing(*arguments: Any, **options: Any) -> None:
        return None

    for name in names:
        setattr(dist, name, nothing)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    # The weights have moved apart meanwhile; a measurement does not mind, as long as they are numbers.
    torch.distributed.barrier()


def row(kind: str, **fields: Any) -> None:
    """A row of rank 0."""
    if dist.get_rank() == 0:
        worker.record(kind, **fields)
