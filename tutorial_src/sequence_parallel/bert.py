"""A BERT that reads its piece of the sequence: all of it is local, except self-attention.

Embeddings, layer norms, MLPs and heads work token by token, so a rank needs only its own tokens, and every rank holds
all weights. Self-attention alone looks at other tokens; `attention.py` has its kinds.

The order is Megatron-LM's (and upstream's tutorial's): a layer norm before each sub-layer and one at the end.
Source: BERT, Devlin et al. 2018 (arXiv:1810.04805); its masked-language-model head shares the word embedding's weights.

Shapes: b batch, S the whole sequence, s = S/P this rank's piece, h hidden size, V vocabulary.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import torch
from attention import build_attention
from ring import ALONE, Ring, check_length
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True, kw_only=True)
class BertShape:
    """The sizes of a BERT. `sentence_order` adds the head that tells whether two segments come in their order."""

    vocabulary: int
    sequence_length: int
    hidden_size: int
    depth: int
    heads: int
    mlp_ratio: int = 4
    sentence_order: bool = False
    dropout: float = 0.0


class Bert(nn.Module):
    """A BERT for pre-training, or the pipeline stage of it that holds the layers [start, stop).

    Args:
        shape: the sizes of the whole model.
        attention: "plain", "ring", "ring_recompute" or "ring_online".
        ring: the ranks that share the sequence; ALONE is one device. "ring" and "ring_recompute" take their ring from
            Colossal-AI's global context, which must have been launched with the same ranks.
        layers: the half-open range of layers that this pipeline stage holds; None: all. The stage with layer 0 holds
            the embedding, the one with the last layer the heads.

    Raises:
        ValueError: in one sentence, when the ring cannot share the sequence or a size does not fit.
    """

    def __init__(
        self,
        shape: BertShape,
        attention: str = "plain",
        ring: Ring = ALONE,
        layers: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        check_length(shape.sequence_length, ring.size)
        start, stop = layers or (0, shape.depth)
        self.shape, self.ring = shape, ring
        self.first, self.last = start == 0, stop == shape.depth
        self.embedding = Embedding(shape, ring) if self.first else None
        # Keys, not positions: a layer has the same name in a stage as in the whole model.
        self.layers = nn.ModuleDict({str(i): Layer(shape, attention, ring) for i in range(start, stop)})
        self.heads = Heads(shape, ring, tied=self.embedding.word if self.first else None) if self.last else None

    def forward(
        self, tokens: Tensor, segments: Tensor, keep: Tensor | None, labels: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor | None]:
        """Read this rank's piece of each sequence.

        Args:
            tokens: token numbers [b, s]; in a later pipeline stage, the hidden states [b, s, h] of the one before.
            segments: 0 or 1, the segment that each token belongs to [b, s].
            keep: True for tokens, False for padding, of the whole sequence [b, S]; None: no padding.
            labels: the original token numbers [b, s].

        Returns:
            in the last stage (losses [b, s], order): the cross-entropy of each token, or with labels=None the logits
            [b, s, V], and the sentence-order logits [b, 2], which only the ring's first rank has (else None); in
            the other stages the hidden states [b, s, h].
        """
        hidden = self.embedding(tokens, segments) if self.embedding else tokens
        for layer in self.layers.values():
            hidden = layer(hidden, keep)
        return self.heads(hidden, labels) if self.heads else hidden


class Embedding(nn.Module):
    """Word + position + segment; positions count from this rank's first token."""

    def __init__(self, shape: BertShape, ring: Ring) -> None:
        super().__init__()
        self.word = nn.Embedding(shape.vocabulary, shape.hidden_size)
        self.position = nn.Embedding(shape.sequence_length, shape.hidden_size)
        self.segment = nn.Embedding(2, shape.hidden_size)
        self.dropout = nn.Dropout(shape.dropout)
        piece = shape.sequence_length // ring.size
        self.start, self.stop = ring.index * piece, (ring.index + 1) * piece

    def forward(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """tokens, segments [b, s] -> hidden states [b, s, h]."""
        positions = self.position.weight[self.start : self.stop]
        if tokens.shape[1] != len(positions):
            raise ValueError(f"each rank reads {len(positions)} tokens of a sequence, and here are {tokens.shape[1]}")
        return self.dropout(self.word(tokens) + positions + self.segment(segments))


class Layer(nn.Module):
    """Self-attention and an MLP, each behind a layer norm and beside a residual connection."""

    def __init__(self, shape: BertShape, attention: str, ring: Ring) -> None:
        super().__init__()
        h, wide = shape.hidden_size, shape.mlp_ratio * shape.hidden_size
        self.attention_norm = nn.LayerNorm(h)
        self.attention = build_attention(attention, h, shape.heads, ring, shape.dropout)
        self.mlp_norm = nn.LayerNorm(h)
        self.mlp = nn.Sequential(nn.Linear(h, wide), nn.GELU(), nn.Linear(wide, h))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """hidden [b, s, h], keep [b, S] -> [b, s, h]."""
        hidden = hidden + self.dropout(self.attention(self.attention_norm(hidden), keep))
        return hidden + self.dropout(self.mlp(self.mlp_norm(hidden)))


class Heads(nn.Module):
    """The masked-language-model head and, on the ring's first rank, the sentence-order head.

    The word embedding's weights serve as the output's; a last pipeline stage has a copy of its own (`word`), whose
    gradient must be added to the first stage's.
    """

    def __init__(self, shape: BertShape, ring: Ring, tied: nn.Embedding | None) -> None:
        super().__init__()
        h = shape.hidden_size
        self.norm = nn.LayerNorm(h)
        self.transform = nn.Sequential(nn.Linear(h, h), nn.GELU(), nn.LayerNorm(h))
        self.word = tied or nn.Embedding(shape.vocabulary, h)
        self.bias = nn.Parameter(torch.zeros(shape.vocabulary))
        # Every rank holds the head's weights, as it holds all others, though one alone sees the first token.
        self.order = nn.Sequential(nn.Linear(h, h), nn.Tanh(), nn.Linear(h, 2)) if shape.sentence_order else None
        self.sees_first_token = ring.index == 0

    def forward(self, hidden: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """hidden [b, s, h], labels [b, s] -> (losses [b, s], or logits [b, s, V]; order [b, 2] or None)."""
        hidden = self.norm(hidden)
        order = self.order(hidden[:, 0]) if self.order and self.sees_first_token else None
        logits = F.linear(self.transform(hidden), self.word.weight, self.bias)
        if labels is None:
            return logits, order
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels), order


def with_weights(
    shape: BertShape,
    attention: str = "plain",
    ring: Ring = ALONE,
    layers: tuple[int, int] | None = None,
    *,
    seed: int,
) -> Bert:
    """Make a Bert, or a stage of it, with the weights of `load_weights`; the other arguments are those of `Bert`.

    What PyTorch would give the weights first is never drawn: for BERT-base that takes longer than a training step.
    """
    with torch.device("meta"):
        model = Bert(shape, attention, ring, layers)
    model.to_empty(device="cpu")
    load_weights(model, seed)
    return model


def load_weights(model: Bert, seed: int) -> None:
    """Give a model, or a stage of it, its part of one set of weights: the same under every division of the ranks.

    A parameter's numbers follow from its name on one device and the seed alone. None starts at 0 or 1 throughout, so
    that a wrong gradient or a part in the wrong place changes the loss.
    """
    with torch.no_grad():
        for path, module in model.named_modules():
            for key, parameter in module.named_parameters(recurse=False):
                name = "embedding.word.weight" if path == "heads.word" else f"{path}.{key}"
                generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
                numbers = torch.randn(parameter.shape, generator=generator)
                numbers.mul_(parameter.shape[-1] ** -0.5 if parameter.dim() == 2 else 0.02)
                parameter.copy_(numbers.add_(1) if isinstance(module, nn.LayerNorm) and key == "weight" else numbers)
