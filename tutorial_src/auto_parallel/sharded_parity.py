"""Is the sharded model the same model? Output, every gradient and five steps beside one device, on the same batch.

Batch norm over few values is ill-conditioned: rounding in fp32 is magnified layer by layer, on one device as on many.
So the comparison that decides is made in fp64, and that in fp32 is reported.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from handson import worker
from sharded_run import build, stepper
from torch.nn import functional as F

if TYPE_CHECKING:
    from sharded import Sharded
    from sharded_run import Job
    from solver import Plan
    from torch import Tensor, nn

# Relative, except for the losses: their difference.
TOLERANCE = {"float64": 1e-9, "float32": 1e-2, "loss": 1e-3}
STEPS = 5


def check(job: Job, plan: Plan) -> None:
    """Compare, log and record the differences.

    Raises:
        SystemExit: on every rank, where one is over its tolerance.
    """
    failed = []
    for dtype in (torch.float64, torch.float32):
        name = str(dtype).removeprefix("torch.")
        sharded, reference = build(job, plan, dtype), job.model(dtype) if dist.get_rank() == 0 else None
        images, labels = job.data(dtype)
        output = sharded.model(images)
        F.cross_entropy(output, labels).backward()
        whole = None
        if reference is not None:
            whole = reference(images)
            F.cross_entropy(whole, labels).backward()
        output_error = relative(output, whole)
        gradient_error, worst = gradients(sharded, reference)
        worker.log(
            f"{name}: relative error of the output {output_error:.1e},\n"
            f"  of the gradients at most {gradient_error:.1e} ({worst})"
        )
        record(dtype=name, output=output_error, gradient=gradient_error, worst=worst, tolerance=TOLERANCE[name])
        failed += [name] * (not max(output_error, gradient_error) <= TOLERANCE[name])
    # The weights are still those of the beginning: in fp32 they go on to be trained.
    failed += ["loss"] * (not losses(sharded, reference, images, labels) <= TOLERANCE["loss"])
    if failed:
        sys.exit(f"parity: NOT the same: {', '.join(failed)} over the tolerance" if dist.get_rank() == 0 else 1)


def losses(sharded: Sharded, reference: nn.Module | None, images: Tensor, labels: Tensor) -> float:
    """Five SGD steps beside one device, on one batch; the largest difference of their losses."""
    step = stepper(sharded.model, images, labels)
    mine = [step().item() for _ in range(STEPS)]
    one = [mine]
    if reference is not None:
        step = stepper(reference, images, labels)
        one = [[step().item() for _ in range(STEPS)]]
        for number, (loss, alone) in enumerate(zip(mine, one[0], strict=True), 1):
            worker.log(
                f"step {number}   loss {loss:.6f}   on one device {alone:.6f}   difference {abs(loss - alone):.1e}"
            )
            worker.record("loss", step=number, loss=loss, reference=alone)
    dist.broadcast_object_list(one, src=0, device=worker.device())
    difference = max(abs(a - b) for a, b in zip(mine, one[0], strict=True))
    record(steps=STEPS, max_loss_difference=difference, tolerance=TOLERANCE["loss"])
    return difference


def gradients(sharded: Sharded, reference: nn.Module | None) -> tuple[float, str]:
    """Rank 0 sends each whole gradient round; every rank compares its block. The worst error, and its parameter."""
    blocks = sharded.parameters()
    whole = {} if reference is None else {name: p.grad for name, p in reference.named_parameters()}
    errors = torch.zeros(len(blocks), 1, dtype=torch.float64, device=worker.device())
    for number, (name, block) in enumerate(blocks.items()):
        shape = sharded.specs[name].entire_shape
        full = whole[name].contiguous() if whole else torch.empty(shape, dtype=block.dtype, device=block.device)
        dist.broadcast(full, src=0)
        # Relative to the whole gradient's norm, so that a block of small numbers does not count for more.
        difference = (block.grad - sharded.block(name, full)).norm() / full.norm()
        errors[number] = difference.double()
    dist.all_reduce(errors, op=dist.ReduceOp.MAX)
    number = int(errors.argmax())
    return errors[number].item(), list(blocks)[number]


def relative(mine: Tensor, whole: Tensor | None) -> float:
    """The largest over the ranks of |mine - whole| / |whole|; rank 0 has the whole."""
    whole = torch.empty_like(mine) if whole is None else whole.detach().contiguous()
    dist.broadcast(whole, src=0)
    error = ((mine.detach() - whole).norm() / whole.norm()).double()
    dist.all_reduce(error, op=dist.ReduceOp.MAX)
    return error.item()


def record(**fields: object) -> None:
    """A row `parity`, of rank 0."""
    if dist.get_rank() == 0:
        worker.record("parity", **fields)
