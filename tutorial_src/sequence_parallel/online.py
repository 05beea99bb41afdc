"""Attention over a ring that never holds more than one block of scores: the online softmax.

A query needs all keys, and its softmax a sum over all of them. But a sum can be taken up piece by piece: keep the
largest score m so far, the sum l of exp(score - m), and the output o so far; when a block with a larger score comes,
scale l and o down by exp(m_old - m_new). So K and V travel round the ring, each rank takes up one [S/P, S/P] block of
scores at a time and forgets it, and the backward pass computes the blocks again from q, k and m + log l.

    forward    K and V take P-1 hops
    backward   K and V take P-1 hops again, and their gradients follow them one hop behind: P-1 hops, the last one home

so a layer sends 6 (P-1)/P B S h numbers a rank, where upstream's ring sends 8 (P-1)/P B S h and holds [S/P, S] scores.

Sources: online softmax, Milakov & Gimelshein 2018 (arXiv:1805.02867) and FlashAttention, Dao et al. 2022
(arXiv:2205.14135); over a ring, Liu et al. 2023 (arXiv:2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
from ring import Ring
from torch import Tensor

KEYS_AND_VALUES, GRADIENTS = 0, 1  # tags of the two transfers that may be under way together
MASKED = -1e30  # finite: a block whose keys are all masked must leave no NaN; the next real score scales it to 0


class OnlineRingAttention(torch.autograd.Function):
    """softmax(q k^T / sqrt(d)) v over a ring, from the joint projection of q, k and v."""

    @staticmethod
    def forward(ctx: Any, mixed: Tensor, keep: Tensor | None, ring: Ring, heads: int) -> Tensor:
        """Attend to the whole sequence from this rank's piece of it.

        Args:
            ctx: autograd's context.
            mixed: q, k and v of this rank's piece, side by side for each head [b, s, heads * 3 * d], s = S/P.
            keep: which tokens of the whole sequence may be attended to [b, S], bool; None: all of them.
            ring: the ranks that share the sequence.
            heads: the number of heads.

        Returns:
            the context of this rank's piece [b, s, heads * d].
        """
        q, k, v = split_heads(mixed, heads)
        moving = torch.stack([k, v])
        highest = torch.full((*q.shape[:3], 1), MASKED, device=q.device, dtype=torch.float32)
        total = torch.zeros_like(highest)
        output = torch.zeros(q.shape, device=q.device, dtype=torch.float32)
        for hops in range(ring.size):
            passing = ring.pass_on(moving, KEYS_AND_VALUES) if hops + 1 < ring.size else None
            scores = block_of_scores(q, moving[0], keep, ring.owner(hops))
            new = torch.maximum(highest, scores.amax(-1, keepdim=True))
            scores.sub_(new).exp_()
            shrink = highest.sub_(new).exp_()
            total.mul_(shrink).add_(scores.sum(-1, keepdim=True))
            output.mul_(shrink).add_(scores.to(v.dtype) @ moving[1])
            highest = new
            moving = passing.wait() if passing else moving
        output.div_(total)
        context = output.to(mixed.dtype).transpose(1, 2).flatten(2)
        ctx.save_for_backward(mixed, context, highest.add_(total.log_()), keep)
        ctx.ring, ctx.heads = ring, heads
        return context

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of `mixed`; blocks of scores are computed again as K and V come round."""
        mixed, context, normaliser, keep = ctx.saved_tensors
        ring, heads = ctx.ring, ctx.heads
        q, k, v = split_heads(mixed, heads)
        g, o = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (gradient, context))
        delta = (g.float() * o.float()).sum(-1, keepdim=True)
        scale = q.shape[-1] ** -0.5

        result = torch.zeros_like(mixed)
        of_q, of_k, of_v = split_heads(result, heads)
        moving, following = torch.stack([k, v]), None
        for hops in range(ring.size):
            passing = ring.pass_on(moving, KEYS_AND_VALUES) if hops + 1 < ring.size else None
            key, value = moving
            probabilities = block_of_scores(q, key, keep, ring.owner(hops)).sub_(normaliser).exp_()
            slope = (g @ value.transpose(-1, -2)).float().sub_(delta).mul_(probabilities).mul_(scale).to(q.dtype)
            of_q += slope @ key
            grown = torch.stack([slope.transpose(-1, -2) @ q, probabilities.to(g.dtype).transpose(-1, -2) @ g])
            del probabilities, slope
            if hops == 0:  # what this rank adds to its own block stays here
                of_k += grown[0]
                of_v += grown[1]
            else:
                if following is not None:
                    grown += following.wait()
                following = ring.pass_on(grown, GRADIENTS)
            moving = passing.wait() if passing else moving
        if following is not None:
            home = following.wait()
            of_k += home[0]
            of_v += home[1]
        return result, None, None, None


def split_heads(mixed: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v [b, heads, s, d] in the joint projection [b, s, heads * 3 * d]."""
    return mixed.unflatten(2, (heads, -1)).transpose(1, 2).chunk(3, dim=-1)


def block_of_scores(q: Tensor, k: Tensor, keep: Tensor | None, owner: int) -> Tensor:
    """Scaled scores of this rank's queries against one rank's keys [b, heads, s, s], fp32; masked keys very low."""
    scores = (q @ k.transpose(-1, -2)).float().mul_(q.shape[-1] ** -0.5)
    if keep is not None:
        length = k.shape[-2]
        scores.masked_fill_(~keep[:, None, None, owner * length : (owner + 1) * length], MASKED)
    return scores
