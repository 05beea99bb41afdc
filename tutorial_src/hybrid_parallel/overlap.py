"""Data parallelism in one step: the backward pass fills buckets of gradients, and each is averaged while it goes on.

Traced are the forward, the backward, and each bucket's all-reduce. Beside that three times: of the step as it is, of
the step without its all-reduces, and of the all-reduces alone; what the first is longer than the second is not hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from colossalai.legacy.context import ParallelMode
from colossalai.legacy.core import global_context as gpc
from colossalai.legacy.engine import Engine
from handson import worker
from handson.measure.timing import median_step_time
from images import Batch
from settings import Settings
from timeline import Span, Timeline, record_median_step
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

WARMUP = 3  # at least: DDP sorts its buckets anew in the second step


def trace_data_parallel(settings: Settings, engine: Engine, batch: Batch) -> None:
    """Record rows `schedule` (forward, backward and all-reduces of a median step) and rank 0's row `overlap`."""
    model, device, group = engine.model, worker.device(), gpc.get_group(ParallelMode.DATA)
    timeline = Timeline()

    def step(block: Callable[[], AbstractContextManager] = nullcontext) -> None:
        engine.zero_grad()
        with block():
            with timeline.span(phase="forward"):
                loss = engine.criterion(model(batch[0]), batch[1])
            with timeline.span(phase="backward"):
                engine.backward(loss)

    repeats = {"warmup": max(WARMUP, settings.warmup_steps), "repeats": settings.timed_steps, "device": device}
    together = median_step_time(step, **repeats)
    without = median_step_time(lambda: step(model.no_sync), **repeats)

    note_all_reduces(model, group, timeline)
    step()  # the first through the hook
    steps = [one_after_another(timeline.step(step)) for _ in range(settings.timed_steps)]
    shown, _ = record_median_step(steps, order="data", micro_batches=1, micro_batch=0)

    sizes = [span["bytes"] for span in steps[shown] if span["phase"] == "all_reduce"]
    buckets = [torch.zeros(size // 4, device=device) for size in sizes]  # of fp32

    def reduce_alone() -> None:
        for bucket in buckets:
            dist.all_reduce(bucket, group=group)

    alone = median_step_time(reduce_alone, **repeats)
    if worker.place().rank == 0:
        worker.record(
            "overlap",
            step_ms=together.median_ms,
            without_ms=without.median_ms,
            all_reduce_ms=alone.median_ms,
            buckets=len(sizes),
            bytes=sum(sizes),
            clock_error_ms=timeline.error_ms,
            method=together.method,
        )
    worker.log(
        f"forward and backward {together.median_ms:.3g} ms, without all-reduce {without.median_ms:.3g} ms, "
        f"{len(sizes)} all-reduce{'s' * (len(sizes) > 1)} of {sum(sizes) / 1e6:.3g} MB alone {alone.median_ms:.3g} ms"
    )


def note_all_reduces(model: DistributedDataParallel, group: dist.ProcessGroup, timeline: Timeline) -> None:
    """Let DDP average each full bucket as it does by itself, and note when the bucket is full and when it is back."""

    def hook(state, bucket):  # DDP reads annotations, and wants the classes themselves or none
        full, number, tensor = timeline.mark(), bucket.index(), bucket.buffer().div_(group.size())

        def back(future: torch.futures.Future[Any]) -> Tensor:
            # On a GPU this runs at once, in a stream that waits for the all-reduce.
            payload = tensor.numel() * tensor.element_size()
            timeline.add(full, timeline.mark(), phase="all_reduce", bucket=number, bytes=payload)
            return future.value()[0]

        return dist.all_reduce(tensor, group=group, async_op=True).get_future().then(back)

    model.register_comm_hook(None, hook)


def one_after_another(spans: list[Span]) -> list[Span]:
    """The spans, where an all-reduce starts when its bucket is full and the one before is back: they go in turn."""
    free = 0.0
    for span in sorted((s for s in spans if s["phase"] == "all_reduce"), key=lambda s: s["end_ms"]):
        span["start_ms"] = max(span["start_ms"], free)
        free = span["end_ms"]
    return spans
