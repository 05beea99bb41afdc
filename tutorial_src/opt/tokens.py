"""From text to tokens and to sequences of equal length; where no tokenizer can be loaded, one is trained on the spot.

It is of OPT's kind, a byte-level BPE (Sennrich et al. 2016, arXiv:1508.07909, over bytes as in GPT-2), with OPT's
special tokens and their numbers: every text begins with </s>, number 2; padding is number 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from hub import Unusable, together
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")  # OPT's numbers 0 to 3
END = "</s>"
LARGEST = 8192  # merges beyond this many tokens would each be learned from a handful of examples
FILES = ("tokenizer.json", "vocab.json")
CAN_BE_MET = ["input_ids", "attention_mask"]  # OPT refuses the token_type_ids that a tokenizer adds otherwise


def get(folder: str | Path | None, text: str, vocabulary: int) -> tuple[PreTrainedTokenizerBase, str]:
    """The tokenizer that lies beside the weights, else one trained on `text`; and which of them it is. On every rank.

    Args:
        folder: where the weights are from, if they are real ones.
        text: what to train on.
        vocabulary: the model's; the tokenizer has at most as many tokens.

    Raises:
        SystemExit: with one sentence and code 2, when the folder's tokenizer cannot be read or is too large.
    """
    if folder is not None and any((Path(folder) / name).is_file() for name in FILES):
        tokenizer = together(lambda: load(folder))
        if len(tokenizer) > vocabulary:
            together(lambda: _raise(f"the tokenizer in {folder} has {len(tokenizer)} tokens, the model {vocabulary}"))
        return tokenizer, f"the tokenizer in {folder}, {len(tokenizer):,} tokens"
    size = min(vocabulary, LARGEST)
    tokenizer = _wrap(Tokenizer.from_str(together(lambda: train(text, size).to_str())))
    return tokenizer, f"a tokenizer trained on this text, {len(tokenizer):,} tokens"


def load(folder: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a folder.

    Raises:
        Unusable: naming the folder, when it cannot be read.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # tokenizers raises nothing narrower for a damaged file
        raise Unusable(f"the tokenizer in {folder} cannot be read ({type(error).__name__})") from None


def train(text: str, vocabulary: int) -> Tokenizer:
    """A byte-level BPE of at most so many tokens; the same text always gives the same one.

    Raises:
        Unusable: when the vocabulary has no room for the bytes and the special tokens.
    """
    least = len(SPECIAL) + 256
    if vocabulary < least:
        raise Unusable(f"a vocabulary of {vocabulary} is too small for bytes and special tokens: take {least} at least")
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.train_from_iterator(
        text.split("\n\n"),
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            min_frequency=2,
            special_tokens=list(SPECIAL),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    made.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", pair=f"{END} $A {END} $B", special_tokens=[(END, SPECIAL.index(END))]
    )
    return made


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The tokens of a text, int64 [tokens]."""
    return torch.tensor(tokenizer(text, verbose=False)["input_ids"], dtype=torch.int64)


def blocks(ids: Tensor, sequence: int) -> Tensor:
    """Cut tokens [tokens] into sequences [n, sequence]; what is left over at the end is dropped.

    Raises:
        Unusable: when there are not enough for one sequence.
    """
    count = len(ids) // sequence
    if count == 0:
        raise Unusable(f"the text has {len(ids)} tokens, too few for one sequence of {sequence}")
    return ids[: count * sequence].view(count, sequence)


def synthetic(vocabulary: int, count: int, sequence: int, seed: int = 0) -> Tensor:
    """Made-up sequences, int64 [count, sequence]: random tokens, none of them special."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(len(SPECIAL), vocabulary, (count, sequence), generator=generator)


def _wrap(made: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        bos_token=END,
        eos_token=END,
        unk_token=END,
        pad_token="<pad>",
        model_input_names=CAN_BE_MET,
    )


def _raise(sentence: str) -> None:
    raise Unusable(sentence)
