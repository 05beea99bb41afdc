"""One training step of the BERT at any length, under any way of sharing it, for longest.py and speed.py.

    plain                                  one process
    data                                   each rank takes some of the sequences
    tensor                                 each rank takes some heads and some of each MLP (Megatron-LM's cut)
    ring, ring_recompute, ring_online      each rank takes a piece of every sequence (attention.py)

Data and sequence parallel ranks hold all weights and add their gradients up after the backward pass; nothing overlaps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import tensor_cut
import torch
import torch.distributed as dist
from bert import Bert, BertShape, load_weights
from handson import worker
from mesh import Mesh
from ring import ALONE
from torch import Tensor

RINGS = ("ring", "ring_recompute", "ring_online")
LEARNING_RATE = 1e-4


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The model, but for its length, and how many sequences make a global batch."""

    batch: int
    hidden: int
    heads: int
    layers: int
    vocabulary: int

    def shape(self, length: int) -> BertShape:
        """The BERT that reads sequences of this many tokens."""
        return BertShape(
            vocabulary=self.vocabulary,
            sequence_length=length,
            hidden_size=self.hidden,
            depth=self.layers,
            heads=self.heads,
        )


@dataclass(frozen=True)
class Work:
    """A rank's model, optimizer and part of the batch (tokens, segments, labels), and the step that they take."""

    model: Bert
    optimizer: torch.optim.Optimizer
    batch: tuple[Tensor, Tensor, Tensor]
    step: Callable[[], Tensor]


def prepare(way: str, length: int, sizes: Sizes, mesh: Mesh, *, seed: int | None = None) -> Work:
    """Build the model under one way and the step that trains it.

    Args:
        way: one of the ways in this module's head.
        length: tokens in a sequence, S; the ring must divide it.
        sizes: all other sizes; `data` must divide the batch and `tensor` the heads.
        mesh: the ranks, all of which share the work.
        seed: gives every way the same weights; None leaves them as PyTorch starts them.

    Returns:
        the work; its step gives this rank's part of the loss: the mean over all tokens is the sum over the ranks
        (under `tensor` each rank has all of it).
    """
    device, ranks = worker.device(), dist.get_world_size()
    ring = mesh.ring if way in RINGS else ALONE
    with device:
        model = Bert(sizes.shape(length), way if way in RINGS else "plain", ring)
    if seed is not None:
        load_weights(model, seed)
    if way == "tensor":
        tensor_cut.cut(model)
    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=LEARNING_RATE)
    batch = share(way, length, sizes, mesh)
    tokens_in_all = sizes.batch * length

    def step() -> Tensor:
        optimizer.zero_grad()
        tokens, segments, labels = batch
        losses, _ = model(tokens, segments, None, labels)
        loss = losses.sum() / tokens_in_all
        loss.backward()
        if ranks > 1 and way != "tensor":
            add_up([parameter.grad for parameter in parameters])
        optimizer.step()
        return loss.detach()

    return Work(model, optimizer, batch, step)


def share(way: str, length: int, sizes: Sizes, mesh: Mesh) -> tuple[Tensor, Tensor, Tensor]:
    """This rank's part of one global batch: tokens, segments and labels, each [sequences, tokens]."""
    generator = torch.Generator().manual_seed(length)
    tokens = torch.randint(sizes.vocabulary, (sizes.batch, length), generator=generator)
    segments = (torch.arange(length) >= length // 2).long().expand_as(tokens)
    labels = tokens.roll(
        length // 3, dims=1
    )  # some other token of the sequence, so that attention has something to find
    whole = (tokens, segments, labels)
    if way in RINGS:
        mine = [mesh.ring.cut(part) for part in whole]
    elif way == "data":
        mine = [part.chunk(dist.get_world_size())[dist.get_rank()] for part in whole]
    else:
        mine = whole
    tokens, segments, labels = (part.contiguous().to(worker.device()) for part in mine)
    return tokens, segments, labels


def add_up(gradients: list[Tensor]) -> None:
    """Sum the gradients over all ranks, in one message; the activations are gone by then, so the peak does not grow."""
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for gradient, summed in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))
