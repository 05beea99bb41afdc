"""Self-attention of four kinds with the same parameters, so that the same weights fit all of them.

    plain           the whole sequence on one device: softmax(q k^T / sqrt(d)) v, scores [S, S] kept for the backward
    ring            Colossal-AI's own layer (RingQK, RingAV, repaired): K, then V travel; scores [S/P, S] are kept
    ring_recompute  the same under torch.utils.checkpoint: nothing inside is kept, the forward is run again
    ring_online     K and V travel together past an online softmax; one block [S/P, S/P] of scores at a time

Shapes: b batch, S the whole sequence, s = S/P this rank's piece, h hidden size, n heads, d = h/n.
"""

from __future__ import annotations

import torch
from online import MASKED, OnlineRingAttention, split_heads
from ring import ALONE, Ring
from torch import Tensor, nn

KINDS = ("plain", "ring", "ring_recompute", "ring_online")


def build_attention(kind: str, hidden_size: int, heads: int, ring: Ring = ALONE, dropout: float = 0.0) -> nn.Module:
    """One self-attention layer: forward(hidden [b, s, h], keep [b, S] bool or None) -> [b, s, h].

    Its parameters are `query_key_value.{weight,bias}` [3h, h], each head's q, k and v side by side, and
    `dense.{weight,bias}` [h, h], whatever the kind.

    Raises:
        ValueError: in one sentence, when the kind is unknown, the heads do not divide the hidden size, or plain
            attention is asked for on a ring.
    """
    if kind not in KINDS:
        raise ValueError(f"attention={kind} is not known; use {', '.join(KINDS)}")
    if hidden_size % heads:
        raise ValueError(f"a hidden size of {hidden_size} cannot be divided among {heads} heads; use a multiple of it")
    if kind == "plain" and ring.size > 1:
        raise ValueError(f"plain attention needs the whole sequence on one rank, which {ring.size} share; use ring")
    if kind == "ring_online" and dropout:
        raise ValueError("ring_online has no attention dropout, since it forgets each block of scores; use 0.0 or ring")
    if kind in ("ring", "ring_recompute"):
        from upstream_ring import UpstreamRing  # imports Colossal-AI, which the other kinds do without

        return UpstreamRing(hidden_size, heads, dropout, recompute=kind == "ring_recompute")
    return {"plain": PlainAttention, "ring_online": OnlineAttention}[kind](hidden_size, heads, ring, dropout)


class PlainAttention(nn.Module):
    """The textbook's self-attention, on one device."""

    def __init__(self, hidden_size: int, heads: int, ring: Ring, dropout: float) -> None:
        super().__init__()
        self.heads, self.ring = heads, ring
        self.query_key_value = nn.Linear(hidden_size, 3 * hidden_size)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """Attend: hidden [b, s, h], keep [b, S] -> [b, s, h]."""
        check_mask(hidden, keep, self.ring.size)
        return self.dense(self.attend(self.query_key_value(hidden), keep))

    def attend(self, mixed: Tensor, keep: Tensor | None) -> Tensor:
        """Context [b, s, h] from the joint projection [b, s, 3h]."""
        q, k, v = split_heads(mixed, self.heads)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        if keep is not None:
            scores = scores.masked_fill_(~keep[:, None, None, :], MASKED)
        return (self.dropout(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)


class OnlineAttention(PlainAttention):
    """The same over a ring, one block of scores at a time."""

    def attend(self, mixed: Tensor, keep: Tensor | None) -> Tensor:
        """Context [b, s, h] from the joint projection [b, s, 3h] of this rank's piece."""
        return OnlineRingAttention.apply(mixed, keep, self.ring, self.heads)


def check_mask(hidden: Tensor, keep: Tensor | None, size: int) -> None:
    """Refuse a padding mask that is not over the whole sequence.

    Raises:
        ValueError: in one sentence that says both shapes.
    """
    expected = (hidden.shape[0], hidden.shape[1] * size)
    if keep is not None and (keep.shape != expected or keep.dtype != torch.bool):
        raise ValueError(
            f"the padding mask is {str(keep.dtype).removeprefix('torch.')} {list(keep.shape)}, and {size} "
            f"rank{'s' * (size > 1)} with {hidden.shape[1]} tokens each need bool {list(expected)}: "
            "every rank takes the mask of the whole sequence"
        )
