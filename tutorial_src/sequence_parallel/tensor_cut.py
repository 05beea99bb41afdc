"""Megatron-LM's tensor parallelism for the BERT: heads and MLPs are shared out among all ranks, all else is whole.

A layer's first matrix is cut by columns and its second by rows, so between them a rank works on its own heads, or its
own part of the MLP's width, without a word to the others. Then the ranks' sums are added up; and in the backward pass,
the gradients of what every rank had read. Source: Shoeybi et al. 2019 (arXiv:1909.08053).
"""

from __future__ import annotations

from typing import Any

import torch.distributed as dist
from bert import Bert
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F


class ReadByAll(Function):
    """Every rank reads the same input [..., features]; its gradient is the sum over the ranks."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor) -> Tensor:
        return hidden.view_as(hidden)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient


class SumOfAll(Function):
    """Add up what the ranks have [..., features], in place; each rank's gradient is that of the sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        ctx.mark_dirty(part)
        dist.all_reduce(part)
        return part

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class ByColumns(nn.Module):
    """This rank's share of a linear layer's outputs."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(_own(whole.weight, dim=0))
        self.bias = nn.Parameter(_own(whole.bias, dim=0))

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in] -> [..., out / ranks]."""
        return F.linear(ReadByAll.apply(hidden), self.weight, self.bias)


class ByRows(nn.Module):
    """All outputs of a linear layer, from this rank's share of its inputs and the other ranks'."""

    def __init__(self, whole: nn.Linear) -> None:
        super().__init__()
        self.weight = nn.Parameter(_own(whole.weight, dim=1))
        self.bias = nn.Parameter(whole.bias.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        """[..., in / ranks] -> [..., out]."""
        return SumOfAll.apply(F.linear(hidden, self.weight)) + self.bias


def cut(model: Bert) -> None:
    """Leave in each layer of a BERT with plain attention, the same on all ranks, only this rank's share."""
    for layer in model.layers.values():
        attention, mlp = layer.attention, layer.mlp
        attention.query_key_value, attention.dense = ByColumns(attention.query_key_value), ByRows(attention.dense)
        attention.heads //= dist.get_world_size()
        mlp[0], mlp[2] = ByColumns(mlp[0]), ByRows(mlp[2])


def _own(whole: Tensor, dim: int) -> Tensor:
    return whole.detach().chunk(dist.get_world_size(), dim)[dist.get_rank()].clone()
