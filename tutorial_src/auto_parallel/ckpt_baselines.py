"""What one would do without a solver: checkpoint blocks by hand, or leave the choice to torch.compile.

By hand: the first k blocks run under `torch.utils.checkpoint`, for several k up to all of them.

torch.compile: every block is compiled by itself, and the compiler's partitioner decides which of its intermediate
results to save under `activation_memory_budget`, a share of what it would save by itself (1) down to the block's
inputs alone (0). On a GPU the backend is inductor, which also fuses kernels. On the CPU it is
`aot_eager_decomp_partition`, which partitions just so but runs the operators one by one: nothing to build.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch._dynamo
import torch._functorch.config
from ckpt_tasks import Task
from torch.utils.checkpoint import checkpoint


@contextmanager
def checkpointed_blocks(task: Task, count: int) -> Iterator[None]:
    """Inside, the first `count` blocks save their inputs alone and run again in the backward pass."""
    blocks = [module for _, module in task.blocks[:count]]
    for block in blocks:
        block.forward = functools.partial(checkpoint, type(block).forward.__get__(block), use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@contextmanager
def compiled_blocks(task: Task, budget: float) -> Iterator[None]:
    """Inside, every block is compiled under this activation memory budget, at its first call."""
    backend = "inductor" if task.device.type == "cuda" else "aot_eager_decomp_partition"
    torch._dynamo.reset()
    blocks = [module for _, module in task.blocks]
    # A ResNet's blocks have eight shapes, each a graph of its own, and the cache must not mix up two budgets' graphs.
    with (
        torch._dynamo.config.patch(recompile_limit=len(blocks) + 1),
        torch._functorch.config.patch(activation_memory_budget=budget, enable_autograd_cache=False),
    ):
        for block in blocks:
            block.compile(backend=backend, dynamic=False)
        try:
            yield
        finally:
            for block in blocks:
                block._compiled_call_impl = None
    torch._dynamo.reset()
