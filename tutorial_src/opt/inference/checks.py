"""What can be said before anything heavy is loaded: can the port be had, is the folder whole, do the ranks fit?"""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handson import worker
from options import Options

BACKLOG = 2048


@dataclass(frozen=True)
class Bounds:
    """What the server must know of a model before it is loaded."""

    layers: int
    hidden: int
    heads: int
    positions: int


def check(options: Options) -> Bounds:
    """The sizes of the model that is asked for.

    Raises:
        SystemExit: with code 2 and one sentence, when it cannot be served as asked.
    """
    bounds = _folder(Path(options.checkpoint)) if options.checkpoint else _known(options.model)
    if bounds.heads % options.tp:
        fit = ", ".join(str(ranks) for ranks in range(1, bounds.heads + 1) if bounds.heads % ranks == 0)
        worker.refuse(f"--tp {options.tp} does not divide the model's {bounds.heads} attention heads: use one of {fit}")
    gpus = 0 if options.device == "cpu" else _gpus()
    if gpus < options.tp and (gpus or options.device == "cuda"):
        worker.refuse(f"--tp {options.tp} needs a GPU for each rank, this host has {gpus}: lower --tp, or --device cpu")
    if options.checkpoint:
        _called_right(options, bounds)
    return bounds


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        SystemExit: with code 2 and one sentence, when it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.socket(family)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        worker.refuse(f"--http_host {host} --http_port {port} cannot be had: {error.strerror}")
    listener.setblocking(False)
    return listener


def device_kind(options: Options) -> str:
    """`cuda` or `cpu`: the CPU is taken where it is asked for, and on a host without a GPU."""
    return "cuda" if options.device == "cuda" or (options.device == "auto" and _gpus()) else "cpu"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _known(model: str) -> Bounds:
    from models import SIZES, size_name

    size = size_name(model)
    if size is None:
        names = ", ".join(f"opt-{name}" for name in SIZES)
        worker.refuse(f"{model} is no OPT model: use one of {names}, or a name of your own with --checkpoint DIR")
    shape = SIZES[size]
    return Bounds(shape.layers, shape.hidden, shape.heads, shape.positions)


def _folder(folder: Path) -> Bounds:
    """Read config.json, and of the weights' files what says how long each has to be."""
    if not folder.is_dir():
        worker.refuse(f"--checkpoint {folder}: there is no such folder")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            worker.refuse(f"--checkpoint {folder}: it has no {name}; give a folder that fine-tuning exported")
    said = _json(folder / "config.json", folder)
    if said.get("model_type") != "opt":
        worker.refuse(
            f"--checkpoint {folder}: it holds a model of type {said.get('model_type')}, this server serves OPT"
        )
    keys = ("num_hidden_layers", "hidden_size", "num_attention_heads", "max_position_embeddings")
    for key in keys:
        if not isinstance(said.get(key), int) or said[key] < 1:
            worker.refuse(f"--checkpoint {folder}: config.json has no number {key}")
    for file in _weight_files(folder):
        fault = _fault(file)
        if fault:
            worker.refuse(f"--checkpoint {folder}: {file.name} {fault}")
    return Bounds(*(said[key] for key in keys))


def _called_right(options: Options, found: Bounds) -> None:
    """A folder may be called anything, but not by the name of another size."""
    from models import SIZES, size_name

    size = size_name(options.model)
    if size is None or (found.layers, found.hidden) == (SIZES[size].layers, SIZES[size].hidden):
        return
    right = [f"opt-{name}" for name, s in SIZES.items() if (s.layers, s.hidden) == (found.layers, found.hidden)]
    worker.refuse(
        f"--checkpoint {options.checkpoint}: {found.layers} layers of width {found.hidden} are not {options.model}; "
        f"call it {right[0] if right else 'by a name that is no published size'}"
    )


def _json(file: Path, folder: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        said = None
    if not isinstance(said, dict):
        worker.refuse(f"--checkpoint {folder}: {file.name} is damaged")
    return said


def _weight_files(folder: Path) -> list[Path]:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = _json(index, folder).get("weight_map")
        if not isinstance(names, dict) or not names:
            worker.refuse(f"--checkpoint {folder}: {index.name} is damaged")
        return [folder / str(name) for name in sorted(set(names.values()))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        worker.refuse(f"--checkpoint {folder}: it has no weights (*.safetensors)")
    return files


def _fault(file: Path) -> str:
    """What is wrong with a safetensors file, by its header and its length; empty when nothing is."""
    if not file.is_file():
        return "is missing"
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > size - 8:
            return f"is cut short, or no safetensors file: it has {size:,} bytes"
        try:
            header = json.loads(opened.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "has no readable header"
    whole = 8 + length + max(ends, default=0)
    return "" if size == whole else f"is cut short: it has {size:,} bytes of {whole:,}"
