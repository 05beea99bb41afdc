"""Sequences to fill in: two segments with some words masked, made up (-s) or from a book; and a rank's piece of them.

    [start] segment A [separator] segment B [separator] padding ...

15 % of the words are to be predicted: of these 80 % are replaced by the mask, 10 % by another word, 10 % stay
(Devlin et al. 2018). With the sentence-order head, the segments are exchanged in half of the sequences (as in ALBERT,
Lan et al. 2019, arXiv:1909.11942).

Made up: B says the same as A in another language, word by word, so a masked word is found by looking at the other
segment, which lies half a sequence away: on another rank. In the book B is what follows A.

The book is Lewis Carroll's Alice's Adventures in Wonderland (1865), in the public domain: the text of alice29.txt in
the Canterbury Corpus, one paragraph a line.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from bert_settings import Settings
from handson import worker
from mesh import Mesh
from torch import Tensor

PADDING, START, SEPARATOR, MASK, UNKNOWN, FIRST_WORD = range(6)
MASKED_SHARE = 0.15
SHORTEST = 0.5  # of segment B; the rest of the sequence is padding

# tokens [b, s], segments [b, s], keep [b, S], labels [b, s], weights [b, s], order [b], order_weights [b]
Batch = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]
Segments = Callable[[int, torch.Generator], tuple[Tensor, Tensor]]


def synthetic(settings: Settings, mesh: Mesh) -> Iterator[Batch]:
    """Batches of made-up sequences, the same under every division of the ranks."""
    words = settings.vocabulary - FIRST_WORD
    # Some words are common and some rare, as in a language (Zipf).
    frequency = 1 / torch.arange(1, words + 1, dtype=torch.float64)
    other_language = torch.randperm(words, generator=torch.Generator().manual_seed(settings.seed))

    def segments(length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        said = torch.multinomial(frequency, length, replacement=True, generator=generator)
        return FIRST_WORD + said, FIRST_WORD + other_language[said]

    return batches(settings, mesh, segments)


def book(path: Path, settings: Settings, mesh: Mesh) -> Iterator[Batch]:
    """Batches of a book's sentences, the same under every division of the ranks."""
    words = read_words(path)
    if len(words) < 4 * settings.sequence_length:
        worker.refuse(f"{path.name} has {len(words)} words, too few for SEQUENCE_LENGTH={settings.sequence_length}")
    common = [word for word, _ in Counter(words).most_common(settings.vocabulary - FIRST_WORD)]
    number = {word: FIRST_WORD + index for index, word in enumerate(common)}
    text = torch.tensor([number.get(word, UNKNOWN) for word in words])

    def segments(length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        at = int(torch.randint(len(text) - 2 * length, (), generator=generator))
        return text[at : at + length], text[at + length : at + 2 * length]

    return batches(settings, mesh, segments)


def read_words(path: Path) -> list[str]:
    """The words and punctuation marks of a text, in lower case."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        worker.refuse(f"{path.name} is no text in UTF-8; save it so, or name another by --text")
    return re.findall(r"[a-z]+(?:'[a-z]+)?|[.,;:!?()\"'`-]", text.lower())


def batches(settings: Settings, mesh: Mesh, segments: Segments) -> Iterator[Batch]:
    """One batch after the other; each data-parallel rank takes its sequences, each rank of a ring its piece of them."""
    generator = torch.Generator().manual_seed(settings.seed)
    device = worker.device()
    while True:
        tokens, kinds, keep, labels, masked, order = global_batch(settings, segments, generator)
        weights, order_weights = weigh(masked, settings, mesh)
        mine = (pick.chunk(mesh.size["data"])[mesh.index["data"]] for pick in (tokens, kinds, labels, weights))
        tokens, kinds, labels, weights = (mesh.ring.cut(whole).contiguous() for whole in mine)
        keep, order, order_weights = (
            pick.chunk(mesh.size["data"])[mesh.index["data"]] for pick in (keep, order, order_weights)
        )
        yield tuple(t.to(device) for t in (tokens, kinds, keep, labels, weights, order, order_weights))


def global_batch(
    settings: Settings, segments: Segments, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Whole sequences: tokens, segments, keep, labels, masked [B, S], and whether the segments were exchanged [B]."""
    s = settings
    original = torch.full((s.batch_size, s.sequence_length), PADDING)
    kinds, order = torch.zeros_like(original), torch.zeros(s.batch_size, dtype=torch.long)
    longest = (s.sequence_length - 3) // 2
    for row in range(s.batch_size):
        first, second = segments(longest, generator)
        if s.sentence_order and torch.rand((), generator=generator) < 0.5:
            first, second, order[row] = second, first, 1
        shown = int(torch.randint(int(SHORTEST * longest), longest + 1, (), generator=generator))
        line = [torch.tensor([START]), first, torch.tensor([SEPARATOR]), second[:shown], torch.tensor([SEPARATOR])]
        end = longest + shown + 3
        original[row, :end] = torch.cat(line)
        kinds[row, longest + 2 : end] = 1
    keep = original != PADDING
    chance = torch.rand(original.shape, generator=generator)
    masked = (chance < MASKED_SHARE) & (original >= UNKNOWN)
    another = torch.randint(FIRST_WORD, s.vocabulary, original.shape, generator=generator)
    tokens = torch.where(masked & (chance < 0.8 * MASKED_SHARE), MASK, original)
    tokens = torch.where(masked & (chance >= 0.9 * MASKED_SHARE), another, tokens)
    return tokens, kinds, keep, original, masked, order


def weigh(masked: Tensor, settings: Settings, mesh: Mesh) -> tuple[Tensor, Tensor]:
    """How much each token [B, S] and each sequence's order [B] counts, so that Colossal-AI's averages give the mean.

    It will average over the micro-batches and over the ranks that hold the same weights; the sentence order is
    predicted on one rank of a ring alone.
    """
    averaged = settings.micro_batches() * mesh.gradient_ranks()
    weights = masked.double() * (averaged / max(1, int(masked.sum())))
    return weights, torch.full((len(masked),), averaged / len(masked), dtype=torch.float64)
