"""What a saved folder holds, file by file: size and SHA-256, so that a truncated file is refused by its name.

A folder from elsewhere has no manifest: then config.json and the headers of the weights say what there should be.
Standard library alone, so that a folder is refused before the heavy modules are imported.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

NAME = "manifest.json"
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "max_position_embeddings",
    "ffn_dim",
    "vocab_size",
)
ANEW = "copy the folder again, or export the model anew"


class Unusable(Exception):
    """What was asked for cannot be used; the text is the one sentence that the reader gets."""


def write(folder: Path, **about: object) -> None:
    """Note every file of a folder, and what else is said: the last file written, so that it means a whole folder."""
    held = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != NAME
    }
    partial = folder / f".{NAME}.part"
    partial.write_text(json.dumps({**about, "files": held}, indent=1) + "\n", encoding="utf-8")
    partial.replace(folder / NAME)


def read(folder: Path) -> dict | None:
    """What a folder's manifest says, or None where there is none.

    Raises:
        Unusable: naming the manifest, when it is damaged.
    """
    try:
        said = json.loads((folder / NAME).read_text(encoding="utf-8"))
        if not isinstance(said["files"], dict):
            raise TypeError
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise Unusable(f"{folder / NAME} is damaged: the folder cannot be checked, take an earlier one") from None
    return said


def check(folder: Path) -> dict | None:
    """Compare a folder with its manifest; a folder without one is taken as it is, and None returned.

    Raises:
        Unusable: naming the first file that is absent, truncated or changed.
    """
    said = read(folder)
    for name, had in (said["files"] if said else {}).items():
        path = folder / name
        if not path.is_file():
            raise Unusable(f"{path} is missing: the checkpoint is not whole, take an earlier one")
        size = path.stat().st_size
        if size != had["bytes"]:
            state = "truncated" if size < had["bytes"] else "changed"
            raise Unusable(f"{path} is {state} ({size:,} of {had['bytes']:,} bytes): take an earlier checkpoint")
        if digest(path) != had["sha256"]:
            raise Unusable(f"{path} is damaged (its SHA-256 is not the manifest's): take an earlier checkpoint")
    return said


def digest(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def flush(folder: Path) -> None:
    """Have every file of a folder on the disk, so that no crash of the host leaves an empty one behind the manifest."""
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def sizes(folder: Path) -> dict[str, Any]:
    """What config.json says, with each of SIZES in it.

    Raises:
        Unusable: in a sentence that does not name the folder, when there is none, or it is no OPT's.
    """
    if not (folder / "config.json").is_file():
        raise Unusable("it holds no model: it has no config.json")
    said = _json(folder / "config.json")
    if said.get("model_type") != "opt":
        raise Unusable(f"it holds a model of the kind {said.get('model_type')}, not an OPT")
    for key in SIZES:
        if type(said.get(key)) is not int or said[key] < 1:
            raise Unusable(f"config.json has no whole number {key}, but {said.get(key)!r}; {ANEW}")
    return said


def servable(folder: Path) -> dict[str, Any]:
    """What config.json says of a model that can be served: of the other files it is seen that they are there and whole.

    Raises:
        Unusable: in a sentence that does not name the folder, when one is missing, cut or damaged.
    """
    if not folder.is_dir():
        raise Unusable("there is no such folder")
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise Unusable(f"it has no {name}; give a folder that fine-tuning exported")
    said = sizes(folder)
    tokenizer(folder)
    weights(folder)
    return said


def tokenizer(folder: Path) -> None:
    """Refuse a tokenizer.json that is cut.

    Raises:
        Unusable: in a sentence that does not name the folder.
    """
    _json(folder / "tokenizer.json")


def weights(folder: Path) -> None:
    """Refuse safetensors files that are missing or cut, by their headers and lengths; their content is not read.

    Raises:
        Unusable: in a sentence that names the file, and not the folder.
    """
    for file in _weight_files(folder):
        if fault := _fault(file):
            raise Unusable(f"{file.name} {fault}; {ANEW}")


def _json(file: Path) -> dict[str, Any]:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        said = None
    if not isinstance(said, dict):
        raise Unusable(f"{file.name} is damaged; {ANEW}")
    return said


def _weight_files(folder: Path) -> list[Path]:
    for index in sorted(folder.glob("*.safetensors.index.json")):
        names = _json(index).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise Unusable(f"{index.name} is damaged; {ANEW}")
        return [folder / str(name) for name in sorted(set(names.values()))]
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise Unusable("it has no weights (*.safetensors)")
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
            whole = 8 + length + max(ends, default=0)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            return "is damaged: it has no readable header"
    return "" if size == whole else f"is cut short: it has {size:,} bytes of {whole:,}"
