"""When each rank computes what, on one clock that all ranks of a host share.

On the CPU, where a call returns when its work is done, a mark is a reading of `time.perf_counter`: on Linux that is
the host's monotonic clock, the same for all of its processes. On a GPU, where work is queued, a mark is a CUDA event
in the current stream. Events of two GPUs cannot be compared, so each rank ties its GPU to the host's clock: it lets
an event pass through the empty stream and reads the clock before and after. The narrowest of 20 such windows counts;
half its width is the error of the tie, which the trace records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from handson import worker

Mark = Any  # a reading of the clock in seconds, or a CUDA event
Span = dict[str, Any]  # what was done, start_ms and end_ms
WINDOWS = 20


class Timeline:
    """What this rank did between two marks each, in milliseconds since an instant that is the same for all ranks."""

    def __init__(self) -> None:
        place = worker.place()
        if place.world_size != place.local_world_size:
            worker.refuse("a timeline needs one clock: start all of its ranks on one host")
        self.on_cuda = worker.device().type == "cuda"
        self._spans: list[tuple[dict[str, Any], Mark, Mark]] = []
        origin = [time.perf_counter()]
        dist.broadcast_object_list(origin, src=0, device=worker.device())
        self._origin = origin[0]
        self.error_ms = 0.0
        if self.on_cuda:
            self._tie()

    def mark(self) -> Mark:
        """This instant; on a GPU, the instant at which its stream gets here."""
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    @contextmanager
    def span(self, **fields: Any) -> Iterator[None]:
        """What is done inside is one span with these fields."""
        start = self.mark()
        yield
        self.add(start, self.mark(), **fields)

    def add(self, start: Mark, end: Mark, **fields: Any) -> None:
        """Keep a span between two marks."""
        self._spans.append((fields, start, end))

    def step(self, run: Callable[[], object]) -> list[Span]:
        """What this rank does in one step, which all ranks begin together; in order of time."""
        self._spans = []
        dist.barrier()
        run()
        if self.on_cuda:
            torch.cuda.synchronize()
        spans = [fields | {"start_ms": self._ms(a), "end_ms": self._ms(b)} for fields, a, b in self._spans]
        return sorted(spans, key=lambda span: span["start_ms"])

    def _ms(self, mark: Mark) -> float:
        since = self._tied_ms + self._event.elapsed_time(mark) if self.on_cuda else (mark - self._origin) * 1e3
        return since

    def _tie(self) -> None:
        """Find at which reading of the host's clock an event passed this GPU."""
        narrowest = float("inf")
        for _ in range(WINDOWS):
            torch.cuda.synchronize()
            event = torch.cuda.Event(enable_timing=True)
            before = time.perf_counter()
            event.record()
            event.synchronize()
            after = time.perf_counter()
            if after - before < narrowest:
                narrowest, self._event = after - before, event
                self._tied_ms = ((before + after) / 2 - self._origin) * 1e3
        self.error_ms = narrowest / 2 * 1e3


def record_median_step(steps: Sequence[list[Span]], **about: Any) -> tuple[int, list[float]]:
    """Record the spans of the step of median length as rows `schedule`, from 0 ms on, and return which step it was.

    A step's length is that from the first start to the last end over all ranks; the lengths come second.
    """
    starts = [agreed(min, min(span["start_ms"] for span in spans)) for spans in steps]
    ends = [agreed(max, max(span["end_ms"] for span in spans)) for spans in steps]
    lengths = [end - start for start, end in zip(starts, ends, strict=True)]
    shown = sorted(range(len(steps)), key=lengths.__getitem__)[len(steps) // 2]
    for span in steps[shown]:
        times = {name: round(span[name] - starts[shown], 4) for name in ("start_ms", "end_ms")}
        worker.record("schedule", step=shown, **about, **span | times)
    return shown, lengths


def agreed(choose: Callable[[list[float]], float], value: float) -> float:
    """The least, the largest or the sum of all ranks' values, on every rank."""
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, value)
    return choose(everyone)
