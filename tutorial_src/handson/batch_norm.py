"""Batch normalisation over a batch that is spread over ranks: the statistics of the whole batch, and its gradients.

One all-gather of each channel's mean and variance forward, one all-reduce backward. What backward sums for the input's
gradient is also the gradient of weight and bias over the whole batch, so those come out reduced. `nn.SyncBatchNorm`
does not serve: it refuses tensors on the CPU, and leaves the gradients of weight and bias to be reduced by DDP.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class _Normalise(torch.autograd.Function):
    """Forward returns the output and the whole batch's mean and biased variance of each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, group: dist.ProcessGroup) -> Any:
        ranks, x = dist.get_world_size(group), x.contiguous()
        others = [0, *range(2, x.dim())]
        if x.is_cuda:
            mine, inverse = torch.batch_norm_stats(x, eps)
            local = torch.stack([mine, inverse.pow(-2) - eps])
        else:
            variance, mine = torch.var_mean(x, others, correction=0)
            local = torch.stack([mine, variance])
        gathered = [torch.empty_like(local) for _ in range(ranks)]
        dist.all_gather(gathered, local, group=group)
        means, variances = torch.stack(gathered).unbind(1)
        # Every rank holds equally many images. Summing squares instead would cancel digits.
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.group, ctx.others, ctx.count = group, others, ranks * x.numel() // x.shape[1]
        inverse = torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.mark_non_differentiable(mean, variance)
        if x.is_cuda:
            return torch.batch_norm_elemt(x, weight, bias, mean, inverse, eps), mean, variance
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps), mean, variance

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> Any:
        x, weight, mean, inverse = ctx.saved_tensors
        gradient = gradient.contiguous()
        shape = [1, -1] + [1] * (x.dim() - 2)
        if x.is_cuda:
            arguments = (gradient, x, mean, inverse, weight, True, False, False)
            total, product = torch.batch_norm_backward_reduce(*arguments)[:2]
            sums = torch.stack([total, product])
        else:
            centred = x - mean.view(shape)
            sums = torch.stack([gradient.sum(ctx.others), (gradient * centred).sum(ctx.others)])
        dist.all_reduce(sums, group=ctx.group)
        total, product = sums
        if x.is_cuda:
            counts = torch.full((1,), ctx.count, dtype=torch.int32, device=x.device)
            input_gradient = torch.batch_norm_backward_elemt(gradient, x, mean, inverse, weight, total, product, counts)
        else:
            along = (product * inverse.square() / ctx.count).view(shape)
            input_gradient = gradient - total.view(shape) / ctx.count - centred * along
            input_gradient *= (weight * inverse).view(shape)
        return input_gradient, product * inverse, total, None, None


class SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """nn.BatchNorm1d, 2d or 3d of a batch [batch, channels, ...] that is spread evenly over a process group."""

    process_group: dist.ProcessGroup

    def _check_input_dim(self, x: Tensor) -> None:
        """Any number of dimensions after the channels."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        output, mean, variance = _Normalise.apply(x, self.weight, self.bias, self.eps, self.process_group)
        if self.running_mean is not None:
            count = x.numel() // x.shape[1] * dist.get_world_size(self.process_group)
            self.num_batches_tracked.add_(1)
            kept = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, kept)
            self.running_var.lerp_(variance * (count / (count - 1)), kept)
        return output


def synchronise(module: nn.Module, group: dist.ProcessGroup) -> None:
    """Make this batch norm (or every one inside this module) one over the batch of all ranks of `group`, in place.

    Raises:
        ValueError: for a batch norm without weight and bias.
    """
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            if not norm.affine:
                raise ValueError(f"{type(norm).__name__} without weight and bias cannot be synchronised")
            norm.__class__ = SynchronisedBatchNorm
            norm.process_group = group
