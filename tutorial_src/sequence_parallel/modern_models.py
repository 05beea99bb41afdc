"""The two models of modern.py, from transformers, and their batches: hidden words for BERT, next words for LLaMA.

Every sequence has as many labels as any other, so that a mean over ranks is the mean over the batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from handson import worker


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of a model and of its batch. `batch` is the global batch: every mode sees the same sequences."""

    layers: int
    hidden: int
    heads: int
    mlp: int
    vocabulary: int
    length: int
    batch: int


SIZES = {
    "laptop": Sizes(layers=2, hidden=64, heads=4, mlp=256, vocabulary=256, length=128, batch=4),
    "gpu": Sizes(layers=8, hidden=1024, heads=16, mlp=4096, vocabulary=8192, length=2048, batch=4),
}
MODELS = ("bert", "llama")
IGNORED = -100  # the label that transformers' losses pass over


def build_model(name: str, sizes: Sizes, attention: str) -> torch.nn.Module:
    """`BertForMaskedLM` or `LlamaForCausalLM` on the CPU, the same weights on every rank.

    Args:
        name: "bert" or "llama".
        sizes: of the model; dropout is off, so that every mode trains the same.
        attention: transformers' attn_implementation, "sdpa" (its default) or "eager".
    """
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

    common = dict(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp,
        max_position_embeddings=sizes.length,
    )
    torch.manual_seed(0)
    if name == "bert":
        config = BertConfig(**common, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
        return BertForMaskedLM._from_config(config, attn_implementation=attention)
    config = LlamaConfig(**common, num_key_value_heads=sizes.heads, use_cache=False)
    return LlamaForCausalLM._from_config(config, attn_implementation=attention)


def make_batch(name: str, sizes: Sizes, padding: int) -> dict[str, torch.Tensor]:
    """One global batch: input_ids, attention_mask and labels, each [batch, length].

    A sequence counts upwards from a random word by a random stride, so that its words follow from one another. The
    last `padding` places of each are padding.
    """
    generator = torch.Generator().manual_seed(1)
    start, stride = torch.randint(1, sizes.vocabulary, (2, sizes.batch, 1), generator=generator)
    words = (start + stride * torch.arange(sizes.length)) % sizes.vocabulary
    real = torch.ones_like(words)
    if padding:
        real[:, -padding:] = 0
    labels = words.masked_fill(real == 0, IGNORED)
    if name == "bert":
        seen = torch.arange(sizes.length) % 7 != 0  # every seventh word is hidden behind word 0, and asked for
        labels = labels.masked_fill(seen, IGNORED)
        words = words.masked_fill(~seen, 0)
    device = worker.device()
    batch = {"input_ids": words, "attention_mask": real, "labels": labels}
    return {key: tensor.to(device) for key, tensor in batch.items()}
