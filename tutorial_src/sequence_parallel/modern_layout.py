"""How each mode of HybridParallelPlugin divides the ranks, and what cannot be divided, said before anything starts.

Colossal-AI's modes are of two families. split_gather and ring (Megatron-LM's sequence parallelism) cut the sequence
over the ranks that also cut the weights; all_to_all (DeepSpeed-Ulysses) and ring_attn cut the sequence alone. A mode
with +flash is the same with enable_flash_attention=True, without which LLaMA's attention keeps all scores.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from handson import worker
from modern_models import MODELS, SIZES, Sizes

WITH_WEIGHTS, ALONE = ("split_gather", "ring"), ("all_to_all", "ring_attn")
FLASH = "+flash"
# The first two cut no sequence: they are to compare with.
WAYS = {"bert": ("data", "tensor", *WITH_WEIGHTS, *ALONE)}
WAYS["llama"] = (*WAYS["bert"], "split_gather" + FLASH, "all_to_all" + FLASH)


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line asks for."""

    model: str
    ways: tuple[str, ...]
    sizes: Sizes
    pipeline: int
    data: int
    tensor: int
    padding: int
    attention: str
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How many ranks lie along each axis, and how many share a sequence."""

    data: int
    pipeline: int
    tensor: int
    sequence: int


def read(argv: list[str], ranks: int) -> Asked:
    """The settings of this run; what cannot work is refused in one sentence."""
    given = dict(MODEL="", MODES="", PP="1", DATA="1", TP="1", PADDING="0", ATTENTION="sdpa", MEASURE="yes")
    sizes = SIZES[worker.preset()]
    given |= dict(LENGTH=str(sizes.length), HEADS=str(sizes.heads), BATCH=str(sizes.batch))
    for word in argv:
        key, equals, value = word.partition("=")
        if not equals or key not in given:
            worker.refuse(f"{word!r} is no setting of modern.py: use KEY=value with {', '.join(given)}")
        given[key] = value
    if given["MODEL"] not in MODELS:
        worker.refuse(f"MODEL={given['MODEL']} is not known; use MODEL=bert or MODEL=llama")
    for key, values in (("ATTENTION", ("sdpa", "eager")), ("MEASURE", ("yes", "no"))):
        if given[key] not in values:
            worker.refuse(f"{key}={given[key]} is not known; use {' or '.join(values)}")
    if ranks < 2:
        worker.refuse("modern.py shares sequences among ranks, and there is one; start two or more")
    known = WAYS[given["MODEL"]]
    ways = tuple(given["MODES"].split(",")) if given["MODES"] else known
    for way in ways:
        if way not in known:
            worker.refuse(f"MODES names {way!r}, which is not known; use {', '.join(known)}")
    for key in ("PP", "DATA", "TP", "LENGTH", "HEADS", "BATCH"):
        if not given[key].isdecimal() or int(given[key]) < 1:
            worker.refuse(f"{key}={given[key]} must be a whole number from 1 on")
    if not given["PADDING"].isdecimal() or int(given["PADDING"]) > int(given["LENGTH"]) // 2:
        worker.refuse(f"PADDING={given['PADDING']} must be a whole number, at most half of LENGTH={given['LENGTH']}")
    asked = Asked(
        model=given["MODEL"],
        ways=ways,
        sizes=replace(sizes, length=int(given["LENGTH"]), heads=int(given["HEADS"]), batch=int(given["BATCH"])),
        pipeline=int(given["PP"]),
        data=int(given["DATA"]),
        tensor=int(given["TP"]),
        padding=int(given["PADDING"]),
        attention=given["ATTENTION"],
        measured=given["MEASURE"] == "yes",
    )
    for way in ways:
        layout_of(way, asked, ranks)
    return asked


def layout_of(way: str, asked: Asked, ranks: int) -> Layout:
    """The division of the ranks for one mode; refuses what does not divide, in one sentence."""
    way = way.removesuffix(FLASH)
    fixed = asked.pipeline * (1 if way == "data" else asked.data) * (asked.tensor if way in ALONE else 1)
    rest, over = divmod(ranks, fixed)
    if over:
        worker.refuse(f"{ranks} ranks cannot be divided into PP={asked.pipeline}, DATA={asked.data}, TP={asked.tensor}")
    layout = Layout(
        data=rest if way == "data" else asked.data,
        pipeline=asked.pipeline,
        tensor={"tensor": rest, "data": 1}.get(way, rest if way in WITH_WEIGHTS else asked.tensor),
        sequence=1 if way in ("data", "tensor") else rest,
    )
    s, cut = asked.sizes, layout.sequence
    dealt = layout.tensor * (cut if way == "all_to_all" else 1)
    pieces = layout.data * (2 * layout.pipeline if layout.pipeline > 1 else 1)
    for size, what, divisor, why in (
        (s.length, "tokens", cut, f"{way} gives each of {cut} ranks equally many"),
        (s.heads, "attention heads", dealt, f"{way} gives each of {dealt} ranks whole heads"),
        (s.hidden, "hidden features", s.heads, "each head has equally many"),
        (s.batch, "sequences", pieces, "each data-parallel rank takes equally many, and a pipeline cuts them again"),
        (s.layers, "layers", layout.pipeline, "each pipeline stage takes equally many"),
    ):
        if size % divisor:
            worker.refuse(f"{size} {what} cannot be divided by {divisor}: {why}")
    return layout


def plugin_settings(way: str, layout: Layout) -> dict[str, Any]:
    """The arguments of HybridParallelPlugin for one mode."""
    settings: dict[str, Any] = dict(tp_size=layout.tensor, pp_size=layout.pipeline, precision="fp32")
    settings["enable_flash_attention"] = way.endswith(FLASH)
    way = way.removesuffix(FLASH)
    if layout.pipeline > 1:
        settings["num_microbatches"] = 2 * layout.pipeline
    if way in WITH_WEIGHTS + ALONE:
        # Where the sequence is cut with the weights, upstream wants sp_size=1 and takes tp_size for it.
        cut = 1 if way in WITH_WEIGHTS else layout.sequence
        settings |= dict(enable_sequence_parallelism=True, sequence_parallelism_mode=way, sp_size=cut)
    return settings
