"""One trial: does this model train under this strategy within a memory cap, and how fast? A real training, two steps.

On a GPU the cap is torch's own limit on what this process may allocate. On the CPU every tensor is counted from the
first of the model's on, and one too many is refused; with several ranks nothing is refused while they run, since the
others would wait for ever, and the peak of the fullest rank decides.
"""

from __future__ import annotations

import contextlib
import gc
import statistics
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import memory
import models
import strategies
import tokens
import torch
import torch.distributed as dist
from adam import PIECE
from handson import worker
from handson.measure.memory import _LiveStorages
from models import Shape
from train import now, step

PRECISION = "bf16"
LEARNING_RATE = 1e-5
STEPS = 2  # that must fit: states exist from the second on
TIMED = 2  # more of them, where they are quick
QUICK = 4.0  # seconds
GEMINI_FULL = "No enough CUDA memory"  # how Gemini's placement says that the cap is reached


class CapReached(MemoryError):
    """A tensor was refused, since the cap would have been passed."""


@dataclass(frozen=True)
class Result:
    """What came of a trial. `verdict` is trains, out of memory, or not tried; bytes are of the fullest rank.

    `stopped` is "time limit" where only the search's time forbade the trial: what it found is then a lower bound.
    """

    size: str
    parameters: int
    strategy: str
    ranks: int
    cap_bytes: int
    verdict: str
    reason: str = ""
    stopped: str = ""
    peak_bytes: int | None = None
    expected_bytes: int | None = None
    host_bytes: int | None = None
    loss: float | None = None
    seconds_a_step: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0

    def fields(self) -> dict[str, Any]:
        """The result by name, for `worker.record`."""
        return asdict(self)

    @property
    def trains(self) -> bool:
        """Whether it trained under the cap."""
        return self.verdict == "trains"


@dataclass(frozen=True)
class Task:
    """What every trial of a search has in common: sequences of one rank, tokens in each."""

    batch: int
    sequence: int


def run(name: str, shape: Shape, strategy: str, cap: int, task: Task) -> Result:
    """Train two steps under a cap, on every rank, and leave the memory as it was.

    Args:
        name: what the size is called.
        shape: the network.
        strategy: one of `strategies.STRATEGIES`; `strategies.repair()` has been called.
        cap: bytes that each rank may take of its device.
        task: batch and sequence.

    Raises:
        RuntimeError: for any failure that is not the memory's; on CUDA with several ranks, for that too.
    """
    count, ranks, began = models.parameters(shape), dist.get_world_size(), now()
    about = dict(
        size=name,
        parameters=count,
        strategy=strategy,
        ranks=ranks,
        cap_bytes=cap,
        expected_bytes=round(expected(shape, strategy, ranks, task)),
        host_bytes=round(on_host(count, strategy, ranks)),
    )
    with limited(cap, alone=ranks == 1) as limit:
        try:
            found = _train(shape, strategy, task, limit)
        except (CapReached, torch.OutOfMemoryError, RuntimeError) as error:
            if ranks > 1 or not _is_memory(error):
                raise
            reason = str(error).splitlines()[0]
            del error  # its traceback holds the frames, and these the tensors
            found = dict(verdict="out of memory", reason=reason)
        clean_up()
    if "peak_bytes" in found:
        peak = torch.tensor(found["peak_bytes"], device=worker.device())
        dist.all_reduce(peak, op=dist.ReduceOp.MAX)
        found["peak_bytes"] = int(peak)
        if int(peak) > cap:
            found |= dict(verdict="out of memory", reason=f"it takes {int(peak):,} bytes")
    return Result(**about, **found, seconds=now() - began)


def expected(shape: Shape, strategy: str, ranks: int, task: Task) -> float:
    """Bytes on this rank's device, by formula: the states, and beside them the larger of two things that come in turn.

    In forward and backward it is what the layers keep with checkpoints: each its input, one of them besides all that
    it would have kept without (memory.activations), or at the end every token's scores in bf16 and, for the loss,
    three times in fp32. In the update it is the gradients in fp32: a piece at a time (adam.py), but under ZeRO the
    rank's whole share at once, since upstream widens it before it calls the optimizer (low_level_optim.py).
    """
    s, size = shape, 2
    chosen, of = strategies.STRATEGIES[strategy], memory.formula(strategy, PRECISION, ranks)
    on_device = models.parameters(shape) / (ranks if chosen.stage else 1)  # what this rank updates
    if chosen.family == "gemini" and (chosen.offload or chosen.moves):
        # Weights come to the device chunk by chunk, the largest of which holds the word embedding.
        states = 2 * size * max(s.vocabulary * (s.embedding or s.hidden), 12 * s.hidden**2)
        on_device = 0
    else:
        away = ("master", "moments") if chosen.offload else ()
        states = models.parameters(shape) * sum(each for kind, (_, each) in of.items() if kind not in away)
        on_device = 0 if chosen.offload else on_device
    again = size * (8 * s.hidden + s.inner)
    scores = (size + 3 * 4) * s.vocabulary
    kept = task.batch * task.sequence * (size * s.layers * s.hidden + max(again, scores))
    widened = on_device if chosen.family == "zero" else min(on_device, PIECE)
    return states + max(kept, 4 * widened)


def on_host(count: int, strategy: str, ranks: int) -> float:
    """Bytes in the host's memory, of all ranks together, that offloading takes for so many parameters."""
    chosen = strategies.STRATEGIES[strategy]
    if chosen.family == "gemini" and (chosen.offload or chosen.moves):
        return count * (2 + 4 + 8) + count * 2 * ranks  # and the model as it is built, before it is put into chunks
    return count * (4 + 8) if chosen.offload else 0


def _train(shape: Shape, strategy: str, task: Task, limit: Limit) -> dict[str, Any]:
    device = worker.device()
    trained = strategies.prepare(strategy, made(shape, strategy), lr=LEARNING_RATE, precision=PRECISION)
    ids = tokens.synthetic(shape.vocabulary, task.batch, task.sequence, seed=dist.get_rank()).to(device)
    took = []
    for index in range(STEPS + TIMED):
        if index == STEPS:
            peak = limit.most()
            if device.type == "cpu":
                limit.stop()  # counting takes longer than the step itself
            elif took[-1] > QUICK:
                break
        began = now()
        loss = step(trained, ids)
        took.append(now() - began)
    timed = took[STEPS:] or took[-1:]
    whole, last = statistics.median(timed), float(loss)
    trained.close()
    return dict(
        verdict="trains",
        peak_bytes=peak,
        loss=last,
        seconds_a_step=whole,
        tokens_per_second=task.batch * task.sequence * dist.get_world_size() / whole,
    )


def made(shape: Shape, strategy: str) -> torch.nn.Module:
    """A model of random weights in bf16, where its strategy wants it; no weight is ever made in another type.

    For a strategy that keeps the weights in the host's memory it lies there, and each weight is drawn on the device
    and copied: drawing 7 billion numbers on a CPU would take minutes.
    """
    device, chosen = worker.device(), strategies.STRATEGIES[strategy]
    if device.type == "cuda" and chosen.family == "gemini" and (chosen.offload or chosen.moves):
        model = _drawn_by_piece(shape, device)
    else:
        model, _ = models.build(shape, dtype=torch.bfloat16, device=device, attention="sdpa")
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def _drawn_by_piece(shape: Shape, device: torch.device) -> torch.nn.Module:
    with torch.device("meta"):
        model, _ = models.build(shape, dtype=torch.bfloat16, device="meta", attention="sdpa")
    model = model.to_empty(device="cpu")
    model.tie_weights()
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            drawn = torch.empty(weight.shape, dtype=weight.dtype, device=device)
            weight.data.copy_(drawn.normal_(0, model.config.init_std, generator=generator))
        else:
            weight.data.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
    return model


def _is_memory(error: Exception) -> bool:
    return isinstance(error, CapReached | torch.OutOfMemoryError) or GEMINI_FULL in str(error)


def clean_up() -> None:
    """Let go of whatever a trial left: its model, also where it failed half-way, and what Gemini remembers of it."""
    from colossalai.zero.gemini.gemini_mgr import GeminiManager
    from colossalai.zero.gemini.placement_policy import AutoPlacementPolicy

    # Both remember chunks for good, and with them their memory; the first is emptied only where a step ends well.
    GeminiManager._get_layout_info.cache_clear()
    AutoPlacementPolicy._sort_can_evict_chunks.cache_clear()
    gc.collect()
    if worker.device().type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        for home, name in ((torch.accelerator, "empty_host_cache"), (torch._C, "_host_emptyCache")):  # before 2.13
            if hasattr(home, name):
                getattr(home, name)()  # pinned host memory
                break


@dataclass(frozen=True)
class Limit:
    """`most` tells the most bytes that there were at one time; `stop` ends the counting, which takes time."""

    most: Callable[[], int]
    stop: Callable[[], None]


@contextlib.contextmanager
def limited(cap: int, *, alone: bool) -> Iterator[Limit]:
    """A block in which no more than `cap` bytes can be had of this rank's device."""
    if worker.device().type == "cuda":
        strategies.cap_memory(cap / 1e9)
        torch.cuda.reset_peak_memory_stats()
        yield Limit(torch.cuda.max_memory_allocated, lambda: None)
        return
    counter = _Counted(cap if alone else None)
    with contextlib.ExitStack() as block:
        block.enter_context(counter)
        block.callback(counter.stop)
        block.enter_context(_seeing_chunks(counter))
        yield Limit(lambda: counter.peak, block.close)


@contextlib.contextmanager
def _seeing_chunks(counter: _LiveStorages) -> Iterator[None]:
    """Tell the counter when Gemini frees a gathered chunk: it empties the storage, which no operator shows."""
    from colossalai.zero.gemini.chunk import chunk

    free_storage = chunk.free_storage

    def free_and_tell(tensor: torch.Tensor) -> None:
        free_storage(tensor)
        counter.see([tensor])

    chunk.free_storage = free_and_tell
    try:
        yield
    finally:
        chunk.free_storage = free_storage


class _Counted(_LiveStorages):
    """Counts the storages of the tensors, and refuses the one that passes the cap."""

    def __init__(self, cap: int | None) -> None:
        super().__init__()
        self.cap = cap

    def see(self, values: Iterable[object]) -> None:
        super().see(values)
        if self.cap is not None and self.live > self.cap:
            raise CapReached(f"{self.live:,} bytes of tensors, and the cap is {self.cap:,}")
