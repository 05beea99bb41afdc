"""What run_clm.py says and records: the job's size, its losses, time and memory."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any, TypeVar

import memory
import torch.distributed as dist
from handson import worker
from hub import Unusable
from settings import Settings
from strategies import Trained

Found = TypeVar("Found")
WARM_UP = 2  # steps before the clock counts: the first allocates, the second is measured


def describe(s: Settings, config: Any, weights: str, source: str, steps: int, parameters: int) -> None:
    """Log what will be trained; record its sizes."""
    ranks = dist.get_world_size()
    worker.log(f"OPT {s.model}: {parameters:,} parameters; {weights}")
    worker.log(f"data: {source}")
    worker.log(
        f"{s.strategy} in {s.precision} on {ranks} rank{'s' * (ranks > 1)} over {dist.get_backend()}; {steps} steps of "
        f"{ranks} x {s.batch_size} sequences of {s.sequence} tokens"
    )
    if worker.device().type == "cpu" and parameters > 50_000_000:
        worker.log("on a CPU a step takes seconds; --sequence, --batch_size and --steps make the job shorter")
    if worker.place().rank == 0:
        worker.record(
            "opt", model=s.model, parameters=parameters, weights=weights, strategy=s.strategy, precision=s.precision,
            batch=s.batch_size, sequence=s.sequence, steps=steps, layers=config.num_hidden_layers,
        )  # fmt: skip


def step(taken: int, steps: int, loss: float, seconds: float, tokens: int) -> None:
    """Log and record one step."""
    worker.log(f"step {taken:>4}/{steps}  loss {loss:8.4f}  {seconds:7.3f} s  {tokens / seconds:9,.0f} tokens/s")
    worker.progress(taken, steps)
    if worker.place().rank == 0:
        worker.record("loss", step=taken, loss=loss)


def memory_of(trained: Trained, measured: memory.Memory, config: Any, batch: int, sequence: int) -> None:
    """Log what rank 0 keeps beside the formula; record it of every rank."""
    parameters = parameters_of(trained)
    expected = memory.formula(trained.strategy, trained.precision, dist.get_world_size())
    worker.record("training_memory", strategy=trained.strategy, precision=trained.precision, **measured.fields())
    for kind, (words, each) in expected.items():
        here, host = getattr(measured, kind), getattr(measured, f"host_{kind}")
        beside = f" and {host / 2**20:,.1f} MiB in the host's memory" if host else ""
        worker.log(
            f"  rank 0 keeps {here / 2**20:10,.1f} MiB of {kind}{beside} "
            f"(formula {words} bytes a parameter: {each * parameters / 2**20:,.1f})"
        )
    formula = memory.activations(config, batch, sequence, trained.precision)
    worker.log(
        f"  rank 0 keeps {measured.activations / 2**20:10,.1f} MiB of activations "
        f"(formula: {formula / 2**20:,.1f}); peak {measured.peak / 2**20:,.1f} MiB"
    )


def parameters_of(trained: Trained) -> int:
    """How many parameters the whole model has."""
    return sum(p.numel() for p in trained.model.unwrap().parameters())


def speed(seconds: list[float], tokens: int) -> None:
    """Log and record the median of the steps after the warm-up; without any of them, say so and record nothing."""
    timed = seconds[WARM_UP:]
    if not timed:
        worker.log(f"no step was timed: of {len(seconds)}, all are warm-up; take {WARM_UP + 1} or more")
        return
    median = statistics.median(timed)
    worker.log(f"median of {len(timed)} steps: {median:.3f} s, {tokens / median:,.0f} tokens/s")
    if worker.place().rank == 0:
        worker.record(
            "step_time", median_ms=1e3 * median, all_ms=[1e3 * t for t in timed], warmup=len(seconds) - len(timed),
            method="wall clock, synchronised", tokens_per_second=tokens / median,
        )  # fmt: skip


def one_sentence(make: Callable[[], Found]) -> Found:
    """What `make` gives, on every rank by itself; a refusal of it ends every rank."""
    try:
        return make()
    except Unusable as error:
        worker.refuse(str(error))
