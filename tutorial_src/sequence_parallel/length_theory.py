"""What one step at a given length should keep and compute on a rank, worked out from the sizes alone.

B sequences of S tokens on P ranks, hidden size h, n heads, L layers with an MLP 4 h wide, vocabulary V; fp32.
"""

from __future__ import annotations

from dataclasses import replace

import formulas
from length_step import RINGS, Sizes


def kept(way: str, length: int, sizes: Sizes, ranks: int) -> float:
    """The most bytes that a rank should keep for its backward pass at one time, by the formulas of formulas.py.

    Under `tensor` a bound from below: the part of attention and MLP that is divided.
    """
    ring = way in RINGS
    z = formulas.Sizes(
        b=sizes.batch // (ranks if way == "data" else 1),
        S=length,
        P=ranks if ring else 1,
        h=sizes.hidden,
        n=sizes.heads // (ranks if way == "tensor" else 1),
        r=4,
        V=sizes.vocabulary,
        layers=sizes.layers,
        micro_batches=1,
        attention=way if ring else "plain",
    )
    of_attention, mlp, heads = formulas.kept_by_attention(z), formulas.kept_by_mlp(z), formulas.kept_by_heads(z)
    at_first = sizes.layers * _sum(of_attention + mlp) + _sum(formulas.kept_by_embedding(z) + heads)
    if way != "ring_recompute":
        return at_first
    # The last layer's attention, run again: by then the backward is past the heads and that layer's MLP.
    again = _sum(formulas.kept_by_attention(replace(z, attention="ring"))) - _sum(of_attention)
    return max(at_first, at_first - _sum(heads + mlp) + again)


def flops(way: str, length: int, sizes: Sizes, ranks: int) -> float:
    """Floating-point operations of a rank in one step: matrix products alone, two for each multiply and add.

    A product in the forward is two in the backward. ring_online computes q k^T once more, ring_recompute the whole
    attention; under `tensor` embedding and heads are not divided.
    """
    tokens, h = sizes.batch * length, sizes.hidden
    weights, scores = 2 * tokens * 12 * h * h, 2 * 2 * tokens * length * h
    layer = 3 * (weights + scores) + {
        "ring_online": scores / 2,
        "ring_recompute": scores + weights / 3,
    }.get(way, 0)
    ends = 3 * 2 * tokens * h * (h + sizes.vocabulary)
    return sizes.layers * layer / ranks + ends / (1 if way == "tensor" else ranks)


def _sum(terms: list[formulas.Term]) -> float:
    return sum(term.bytes for term in terms)
