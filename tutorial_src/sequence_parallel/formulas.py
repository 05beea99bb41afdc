"""What a step should keep for its backward pass and send, in bytes, worked out from the sizes alone.

b sequences of S tokens, of which a rank holds s = S/P; hidden size h, n heads, MLP r h wide, vocabulary V; fp32.
"""

from __future__ import annotations

from dataclasses import dataclass

FP32, INT64, FP64 = 4, 8, 8


@dataclass(frozen=True)
class Term:
    """A part of the whole: its name, its formula as a reader sees it, and its bytes."""

    what: str
    formula: str
    bytes: float


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of one rank's part of a step: `b` sequences a micro-batch, `layers` of the model in its stage."""

    b: int
    S: int
    P: int
    h: int
    n: int
    r: int
    V: int
    layers: int
    micro_batches: int
    attention: str

    @property
    def bsh(self) -> int:
        """Numbers in one rank's piece of the hidden states of a micro-batch."""
        return self.b * self.S // self.P * self.h

    @property
    def bs(self) -> int:
        """Tokens of a rank's piece of a micro-batch."""
        return self.b * self.S // self.P


# How many pieces [b, s, h] the attention of a layer keeps, its layer norm included.
KEPT_BY_ATTENTION = {
    "plain": (6, "input, norm, q, k, v, context"),
    "ring": (6, "input, norm, q, k, v, context"),
    "ring_recompute": (2, "input, norm"),
    "ring_online": (6, "input, norm, q k v together, context"),
}
# How many numbers [b, s, h] (P - 1) times a layer's attention sends a step: in transfers, and by its all-reduces.
SENT_BY_ATTENTION = {"plain": (0, 0), "ring": (4, 4), "ring_recompute": (6, 4), "ring_online": (6, 0)}


def kept_by_attention(z: Sizes) -> list[Term]:
    """One layer's attention with its layer norm: what it keeps of one micro-batch."""
    pieces, _ = KEPT_BY_ATTENTION[z.attention]
    statistics = 2 * z.bs * FP32 + z.b * z.S  # the norm's mean and deviation; the padding mask, one byte a token
    terms = [Term("hidden states", f"{pieces} b (S/P) h", pieces * z.bsh * FP32)]
    if z.attention in ("plain", "ring"):
        terms.append(Term("scores", "n b (S/P) S", z.n * z.bs * z.S * FP32))
    elif z.attention == "ring_online":
        terms.append(Term("normaliser", "n b (S/P)", z.n * z.bs * FP32))
    return [*terms, Term("norm's statistics, mask", "2 b (S/P) + b S bytes", statistics)]


def kept_by_mlp(z: Sizes) -> list[Term]:
    """One layer's MLP with its layer norm."""
    return [
        Term("hidden states", "(2 + 2 r) b (S/P) h", (2 + 2 * z.r) * z.bsh * FP32),
        Term("norm's statistics", "2 b (S/P)", 2 * z.bs * FP32),
    ]


def kept_by_heads(z: Sizes) -> list[Term]:
    """The masked-language-model head."""
    return [
        Term("hidden states", "5 b (S/P) h", 5 * z.bsh * FP32),
        Term("logits", "b (S/P) V", z.bs * z.V * FP32),
        Term("norms' statistics, labels", "4 b (S/P) + 8-byte labels", 4 * z.bs * FP32 + z.bs * INT64),
    ]


def kept_by_embedding(z: Sizes) -> list[Term]:
    """Token and segment numbers: all else can be looked up again."""
    return [Term("token and segment numbers", "2 b (S/P), 8 bytes each", 2 * z.bs * INT64)]


def sent_by_ring(z: Sizes) -> tuple[Term, Term]:
    """What a rank's rings send in a step: by transfers between neighbours, and by all-reduces over the ring."""
    pieces, reduced = SENT_BY_ATTENTION[z.attention]
    each = (z.P - 1) * z.bsh * FP32 * z.layers * z.micro_batches
    return (
        Term("K, V, gradients", f"{pieces} (P−1)/P bSh a layer", pieces * each),
        Term("K, V all-reduces", f"{reduced} (P−1)/P bSh a layer", reduced * each),
    )


def all_reduced(numbers: int, ranks: int) -> float:
    """What one rank sends to add up so many numbers over so many ranks, in a ring."""
    return 2 * (ranks - 1) / ranks * numbers * FP32
