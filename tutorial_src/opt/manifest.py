"""What a saved folder holds, file by file: size and SHA-256, so that a truncated file is refused by its name."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from hub import Unusable

NAME = "manifest.json"


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
