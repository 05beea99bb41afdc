"""One training step under any strategy, the batches that the ranks share, and the loop that fine-tuning is."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from handson import worker
from strategies import Trained
from torch import Tensor


def step(
    trained: Trained, ids: Tensor, *, saving: Any = None, after_backward: Callable[[], None] | None = None
) -> Tensor:
    """Forward, backward, update: the mean loss of this rank's sequences `ids` [batch, sequence], a scalar.

    `saving` is a context for the forward pass, `after_backward` is called while the gradients are there; by these two
    a step can be measured while it is taken.
    """
    with saving or nullcontext():
        loss = trained.model(input_ids=ids, labels=ids).loss
    with torch._C.DisableTorchFunctionSubclass():
        loss = loss.as_subclass(Tensor)  # Gemini's own kind of tensor does not go backward while memory is counted
    trained.booster.backward(loss, trained.optimizer)
    if after_backward:
        after_backward()
    if trained.clip:
        torch.nn.utils.clip_grad_norm_(trained.model.parameters(), trained.clip)
    trained.optimizer.step()
    trained.scheduler.step()
    trained.optimizer.zero_grad()
    return loss.detach()


def mean_over_ranks(losses: list[Tensor]) -> list[float]:
    """The losses of the whole batches, from those of the ranks' parts, which are equally large."""
    together = torch.stack([loss.float() for loss in losses])
    dist.all_reduce(together)
    return (together / dist.get_world_size()).tolist()


def rows(blocks: Tensor, taken: int, whole: int) -> Tensor:
    """The `whole` sequences [whole, sequence] that all ranks together read in the step after `taken` steps.

    Each epoch has an order of its own, which depends on nothing else: a job that resumes reads on where it stopped.

    Raises:
        SystemExit: with one sentence, when `blocks` [n, sequence] has fewer.
    """
    if len(blocks) < whole:
        worker.refuse(
            f"a step of all ranks takes {whole} sequences, and there are {len(blocks)}: use a smaller batch, shorter "
            "sequences, or more text"
        )
    epoch, index = divmod(taken, len(blocks) // whole)
    order = torch.randperm(len(blocks), generator=torch.Generator().manual_seed(epoch))
    return blocks[order[index * whole : (index + 1) * whole]]


def batch(blocks: Tensor, taken: int, size: int) -> Tensor:
    """This rank's part [size, sequence] of those rows, on its device."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    return rows(blocks, taken, size * ranks)[rank * size : (rank + 1) * size].to(worker.device())


def steps_in_epoch(blocks: Tensor, size: int) -> int:
    """How many steps read every sequence once; the last, incomplete batch is left out."""
    return max(1, len(blocks) // (size * dist.get_world_size()))


def now() -> float:
    """Seconds on a clock, read when this rank's device has done everything."""
    if worker.device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()
