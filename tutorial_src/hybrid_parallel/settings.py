"""The configuration of a run: a flat file of names, replaced by KEY=value, refused in one sentence when it cannot work.

Standard library alone, so that a mistake is answered before the heavy modules are imported.
"""

from __future__ import annotations

import ast
import math
import runpy
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints

from handson.worker import refuse

MODES = ("1d", "2d", "2.5d", "3d")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The names of `config.py`, in lower case. `tensor_parallel_mode` is None where no tensor is split."""

    tensor_parallel_size: int
    tensor_parallel_mode: str | None
    tensor_parallel_depth: int
    pipeline_size: int
    num_micro_batches: int
    img_size: int
    patch_size: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: int
    num_classes: int
    dropout: float
    checkpoint: bool
    batch_size: int
    steps: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    clip_grad_norm: float
    seed: int
    check_steps: int
    check_learning_rate: float
    warmup_steps: int
    timed_steps: int

    def grid(self) -> int:
        """The side q of the square (2D, 2.5D) or cube (3D) of tensor-parallel ranks."""
        if self.tensor_parallel_mode == "3d":
            return round(self.tensor_parallel_size ** (1 / 3))
        depth = self.tensor_parallel_depth if self.tensor_parallel_mode == "2.5d" else 1
        return math.isqrt(self.tensor_parallel_size // depth)

    def data_parallel_size(self, world_size: int) -> int:
        """How many copies of the divided model there are."""
        return world_size // (self.tensor_parallel_size * self.pipeline_size)

    def title(self, world_size: int) -> str:
        """The division in words: "data 2 x pipeline 2 x tensor 2 (1d)"."""
        tensor = f"tensor {self.tensor_parallel_size} ({self.tensor_parallel_mode})"
        parts = [f"data {self.data_parallel_size(world_size)}", f"pipeline {self.pipeline_size}"]
        return " x ".join([*parts, tensor if self.tensor_parallel_mode else "tensor 1"])


LEAST = {"SEED": 0, "WARMUP_STEPS": 0}  # other whole numbers are 1 or more, other numbers 0 or more
KEYS = {
    field.name.upper(): hint for field, hint in zip(fields(Settings), get_type_hints(Settings).values(), strict=True)
}


def read(config: str, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's names and its GPU preset, both with the command line's KEY=value in their place."""
    here = Path(__file__).resolve().parent
    path = next((p for p in (Path(config), here / config, here.parent / config) if p.is_file()), None)
    if path is None:
        refuse(f"there is no configuration file {config}; the tutorial's own is --config config.py")
    try:
        found = runpy.run_path(str(path)).items()
    except Exception as error:
        refuse(f"{config} cannot be read: {type(error).__name__}: {error}")
    names = {key: value for key, value in found if not key.startswith("_") and not isinstance(value, ModuleType)}
    gpu = names.pop("GPU", {})
    given = dict(_assignment(text) for text in overrides)
    for source, values in ((config, names), (f"GPU in {config}", gpu), ("the command line", given)):
        for key, value in values.items():
            _check_key(source, key, value)
    if missing := sorted(KEYS.keys() - names.keys()):
        refuse(f"{config} does not say {', '.join(missing)}; copy the line from the tutorial's config.py")
    return names | given, gpu | given


def _assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals:
        refuse(f"{text} is no setting; write KEY=value, for example TENSOR_PARALLEL_MODE=2d")
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


def _check_key(source: str, key: str, value: Any) -> None:
    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1)
        hint = f"did you mean {near[0]}?" if near else "the tutorial's config.py names all that it knows"
        refuse(f"{source} says {key}, which train.py does not know; {hint}")
    if key == "TENSOR_PARALLEL_MODE":
        if value not in (*MODES, None):
            refuse(f"TENSOR_PARALLEL_MODE={value} is no mode of tensor parallelism; use {', '.join(MODES)} or None")
        return
    kind, least = KEYS[key], LEAST.get(key, 0 if KEYS[key] is float else 1)
    numbers = (int, float) if kind is float else kind
    if not isinstance(value, numbers) or (isinstance(value, bool) and kind is not bool):
        refuse(f"{source} says {key}={value!r}, which is not of type {kind.__name__}")
    if kind in (int, float) and value < least:
        refuse(f"{source} says {key}={value}, which must be {least} or more")


def check_division(names: dict[str, Any], world_size: int) -> None:
    """Refuse a division of the ranks that cannot be: independent of the model's sizes."""
    tensor, pipeline, depth = (names[key] for key in ("TENSOR_PARALLEL_SIZE", "PIPELINE_SIZE", "TENSOR_PARALLEL_DEPTH"))
    mode = names["TENSOR_PARALLEL_MODE"]
    if mode is None and tensor > 1:
        refuse(f"TENSOR_PARALLEL_SIZE={tensor} needs a TENSOR_PARALLEL_MODE; use {', '.join(MODES)}")
    if tensor > 1 and mode == "2d" and math.isqrt(tensor) ** 2 != tensor:
        refuse(
            f"2D tensor parallelism needs a square of ranks, which TENSOR_PARALLEL_SIZE={tensor} is not; use 4, 9 or 16"
        )
    if tensor > 1 and mode == "2.5d" and (tensor % depth or math.isqrt(tensor // depth) ** 2 * depth != tensor):
        refuse(
            f"2.5D tensor parallelism arranges its ranks in TENSOR_PARALLEL_DEPTH={depth} squares, so "
            f"TENSOR_PARALLEL_SIZE={tensor} cannot be; use {4 * depth} or {9 * depth}, or another depth"
        )
    if tensor > 1 and mode == "3d" and round(tensor ** (1 / 3)) ** 3 != tensor:
        refuse(f"3D tensor parallelism needs a cube of ranks, which TENSOR_PARALLEL_SIZE={tensor} is not; use 8 or 27")
    if world_size % (tensor * pipeline):
        refuse(
            f"{world_size} rank{'s' * (world_size > 1)} cannot be divided into PIPELINE_SIZE={pipeline} x "
            f"TENSOR_PARALLEL_SIZE={tensor}; start a multiple of {tensor * pipeline} ranks, or change these two"
        )


def settle(names: dict[str, Any], world_size: int) -> Settings:
    """The settings of the run; refuses sizes that this division of the ranks cannot split evenly."""
    settings = Settings(**{key.lower(): value for key, value in names.items()} | _no_mode_for_one(names))
    s, mode, q = settings, settings.tensor_parallel_mode, settings.grid()
    copies = s.data_parallel_size(world_size)
    pieces = s.num_micro_batches if s.pipeline_size > 1 else 1
    # By how many ranks each mode divides the heads, the features and the batch.
    heads, features, batch = {
        None: (1, 1, 1),
        "1d": (s.tensor_parallel_size, s.tensor_parallel_size, 1),
        "2d": (q, q * q, q),
        "2.5d": (q, q * q, q * s.tensor_parallel_depth),
        "3d": (q, q * q, q * q),
    }[mode]
    cut = s.title(world_size) + (f" with {pieces} micro-batches" if pieces > 1 else "")
    split = f"{mode} tensor parallelism over {s.tensor_parallel_size} ranks"
    for size, name, divisor, why in (
        (s.img_size, "IMG_SIZE", s.patch_size, f"PATCH_SIZE={s.patch_size}"),
        (s.hidden_size, "HIDDEN_SIZE", s.num_heads, f"NUM_HEADS={s.num_heads}"),
        (s.num_heads, "NUM_HEADS", heads, split),
        (s.hidden_size, "HIDDEN_SIZE", features, split),
        (s.batch_size, "BATCH_SIZE", copies * pieces * batch, cut),
    ):
        if size % divisor:
            refuse(f"{name}={size} is not divisible by {divisor}, as {why} needs; use a multiple of {divisor}")
    if s.pipeline_size > s.depth + 3:
        refuse(
            f"PIPELINE_SIZE={s.pipeline_size} is more than the {s.depth + 3} layers of this model; use a larger DEPTH"
        )
    if s.optimizer not in ("adamw", "sgd"):
        refuse(f"OPTIMIZER={s.optimizer} is not known; use adamw or sgd")
    return settings


def _no_mode_for_one(names: dict[str, Any]) -> dict[str, Any]:
    return {"tensor_parallel_mode": None} if names["TENSOR_PARALLEL_SIZE"] == 1 else {}
