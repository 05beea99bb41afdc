"""OPT in its published sizes, from 125 million to 66 billion parameters, with real weights or random ones.

The sizes are those of the paper (Zhang et al. 2022, arXiv:2205.01068) and of the published configurations
`facebook/opt-*`; `tiny` and `small` are this tutorial's own, for a laptop. The network is transformers' OPT.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import manifest
import torch
from handson import worker
from hub import Unusable, has_weights, snapshot, together
from transformers import AutoModelForCausalLM, OPTConfig, OPTForCausalLM

VOCABULARY = 50272  # of every published OPT
POSITIONS = 2048
OFFSET = 2  # OPT's table of positions has two rows more than there are positions


@dataclass(frozen=True)
class Shape:
    """The sizes that tell one OPT from another."""

    layers: int
    hidden: int
    heads: int
    embedding: int | None = None  # width of the word embedding, where it is not `hidden`
    norm_first: bool = True  # layer norm before attention and MLP, and once more at the end; 350m has it after them
    vocabulary: int = VOCABULARY
    positions: int = POSITIONS

    @property
    def inner(self) -> int:
        """Width of the MLP's inner layer."""
        return 4 * self.hidden


SIZES = {
    "tiny": Shape(4, 128, 4, vocabulary=2048, positions=512),
    "small": Shape(5, 384, 6, vocabulary=4096, positions=512),
    "125m": Shape(12, 768, 12),
    "350m": Shape(24, 1024, 16, embedding=512, norm_first=False),
    "1.3b": Shape(24, 2048, 32),
    "2.7b": Shape(32, 2560, 32),
    "6.7b": Shape(32, 4096, 32),
    "13b": Shape(40, 5120, 40),
    "30b": Shape(48, 7168, 56),
    "66b": Shape(64, 9216, 72),
}
OWN = ("tiny", "small")  # no hub has weights of these
PUBLISHED = tuple(name for name in SIZES if name not in OWN)
NO_DROPOUT = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}  # else no two runs could be compared


def size_name(name: str) -> str | None:
    """The size that `125m`, `opt-125m` or `facebook/opt-125m` means, or None where it is no size."""
    short = name.removeprefix("facebook/").removeprefix("opt-").lower()
    return short if short in SIZES else None


def config(name: str | Shape, *, vocab_size: int | None = None) -> OPTConfig:
    """The configuration of a size, without dropout.

    Args:
        name: a size's name, or a shape of one's own.
        vocab_size: another vocabulary than the size's own.

    Raises:
        Unusable: naming the sizes, when there is none of this name.
    """
    shape = _shape(name)
    return OPTConfig(
        vocab_size=vocab_size or shape.vocabulary,
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        ffn_dim=shape.inner,
        max_position_embeddings=shape.positions,
        word_embed_proj_dim=shape.embedding,
        do_layer_norm_before=shape.norm_first,
        use_cache=False,
        **NO_DROPOUT,
    )


def parameters(name: str | Shape, *, vocab_size: int | None = None) -> int:
    """How many parameters a size has, by formula; the output head shares the word embedding's."""
    s = _shape(name)
    h, e, f = s.hidden, s.embedding or s.hidden, s.inner
    attention, mlp, norm = 4 * (h * h + h), 2 * h * f + f + h, 2 * h
    projections = 2 * e * h if e != h else 0
    tables = (vocab_size or s.vocabulary) * e + (s.positions + OFFSET) * h
    return tables + projections + s.layers * (attention + mlp + 2 * norm) + norm * s.norm_first


def _shape(name: str | Shape) -> Shape:
    if isinstance(name, Shape):
        return name
    known = size_name(name)
    if known is None:
        raise Unusable(f"there is no OPT of size {name}: use one of {', '.join(SIZES)}")
    return SIZES[known]


def build(
    name_or_path: str | Shape,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    seed: int = 0,
    attention: str = "eager",
    vocab_size: int | None = None,
    pretrained: bool = True,
) -> tuple[OPTForCausalLM, str]:
    """An OPT with its weights, and one sentence that says which weights these are. Every rank calls this.

    Args:
        name_or_path: a folder that holds a model, a size (`125m`, `facebook/opt-125m`), or another name on the hub.
        dtype: the type that the weights are made in or converted to; nothing is made in fp32 first.
        device: where random weights are made; the CPU by default.
        seed: of random weights: the same on every rank.
        attention: `eager` or `sdpa`.
        vocab_size: the vocabulary, where the weights are random.
        pretrained: look for real weights; a folder's are always real.

    Raises:
        SystemExit: with one sentence and code 2, when there is no such model, or its files are damaged.
    """
    if isinstance(name_or_path, Shape):
        folder, why = None, "the shape is this tutorial's own"
    else:
        folder, why = together(lambda: find(name_or_path, pretrained))
    if folder is None:
        made = config(name_or_path, vocab_size=vocab_size)
        return _random(made, dtype, device, seed, attention), f"random weights, seed {seed}: {why}"
    model = together(lambda: _check(folder)) or _load(folder, dtype, attention)
    return model.to(device or "cpu"), f"weights of {folder if Path(name_or_path).is_dir() else name_or_path}"


def find(name_or_path: str, pretrained: bool = True) -> tuple[Path | None, str]:
    """The folder with the weights that are meant, or None and why they have to be random.

    Raises:
        Unusable: when neither is possible.
    """
    size = size_name(name_or_path)
    if Path(name_or_path).is_dir():
        return Path(name_or_path).resolve(), ""
    if size in OWN:
        return None, f"{size} is a size of this tutorial's own"
    if size and not pretrained:
        return None, "real ones were not asked for"
    hub_name = f"facebook/opt-{size}" if size else name_or_path
    if not size and (hub_name.count("/") > 1 or hub_name.startswith((".", "/", "~"))):
        raise Unusable(f"there is no folder {name_or_path}")
    folder, why = snapshot(hub_name)
    if folder is None and not size:
        sizes = ", ".join(SIZES)
        raise Unusable(f"{name_or_path} is no folder, no size ({sizes}), and not to be had from the hub: {why}")
    return folder, "" if folder else f"no folder of this name, and {why}"


def _random(
    made: OPTConfig, dtype: torch.dtype, device: torch.device | str | None, seed: int, attention: str
) -> OPTForCausalLM:
    device = torch.device(device or "cpu")
    cards = [device.index or torch.cuda.current_device()] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cards), device:
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(made, torch_dtype=dtype, attn_implementation=attention)


def _check(folder: Path) -> None:
    """Refuse a folder that cannot be loaded, before any rank begins.

    Raises:
        Unusable: naming the file.
    """
    try:
        manifest.sizes(folder)
        if not has_weights(folder):
            raise Unusable("it has no weights (*.safetensors)")
        if not (folder / manifest.NAME).is_file() and any(folder.glob("*.safetensors*")):
            manifest.weights(folder)
    except Unusable as fault:
        raise Unusable(f"{folder}: {fault}") from None
    manifest.check(folder)


def _load(folder: Path, dtype: torch.dtype, attention: str) -> OPTForCausalLM:
    from safetensors import SafetensorError

    try:
        model, found = OPTForCausalLM.from_pretrained(
            folder,
            torch_dtype=dtype,
            attn_implementation=attention,
            local_files_only=True,
            output_loading_info=True,
            **NO_DROPOUT,
        )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
        lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
        apart = [line for line in lines if line.startswith("size mismatch")]
        if apart:
            worker.refuse(
                f"the weights in {folder} do not fit its config.json ({apart[0].rstrip('.')}): take both from one model"
            )
        worker.refuse(f"the model in {folder} cannot be read ({lines[0].rstrip('.')}); {manifest.ANEW}")
    missing = sorted(set(found["missing_keys"]) - {"lm_head.weight"})  # the head shares the word embedding
    if missing:
        worker.refuse(f"the weights in {folder} lack {missing[0]} and {len(missing) - 1} more")
    return model
