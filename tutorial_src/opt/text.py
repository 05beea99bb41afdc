"""The text to learn: the one that ships with the lesson, a file of one's own, or a dataset.

Shipped: python_reference.txt, the reference of the Python language from CPython 3.11.7 (PSF licence, see
python_reference.LICENSE.txt): 370,000 characters of English and of code.
"""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from hub import Unusable, files, offline, together

SHIPPED = Path(__file__).with_name("python_reference.txt")
SOURCE = "the Python language reference, CPython 3.11.7, PSF licence"
SHORTEST = 2000  # characters; less can neither be divided nor learned from
COLUMN = "text"


def get(train_file: str | None = None, dataset: str | None = None, config: str | None = None) -> tuple[str, str]:
    """The text that was asked for, and in a few words where it comes from. Every rank calls this.

    Args:
        train_file: a .txt, .json, .jsonl or .csv file; of the last three, the field `text`.
        dataset: the name of a dataset on the hub, or a folder or file that `datasets` can load.
        config: which configuration of the dataset, where it has several.

    Raises:
        SystemExit: with one sentence and code 2, when there is no such text, or too little.
    """
    if train_file and dataset:
        return together(lambda: _raise("give --train_file or --dataset_name, not both"))
    if dataset:
        text, source = together(lambda: _dataset(dataset, config)), f"the dataset {dataset}"
    elif train_file:
        text, source = together(lambda: _file(Path(train_file))), f"the file {Path(train_file).name}"
    else:
        text, source = SHIPPED.read_text(encoding="utf-8"), SOURCE
    if len(text) < SHORTEST:
        together(lambda: _raise(f"{source} has {len(text)} characters: give at least {SHORTEST:,}"))
    return text, source


def divide(text: str, held_out: float = 0.1) -> tuple[str, str]:
    """The text to learn and the rest, which is never learned, of about this share; cut between two paragraphs."""
    at = int(len(text) * (1 - held_out))
    gap = text.find("\n\n", at)
    at = gap if gap >= 0 else at
    return text[:at], text[at:].lstrip("\n")


def _raise(sentence: str) -> tuple[str, str]:
    raise Unusable(sentence)


def _file(path: Path) -> str:
    if not path.is_file():
        raise Unusable(f"there is no file {path}: --train_file takes a .txt, .json, .jsonl or .csv file")
    try:
        whole = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise Unusable(f"{path} is no text in UTF-8 (byte {error.start:,})") from None
    kind = path.suffix.lower()
    try:
        if kind in (".json", ".jsonl"):
            return "\n\n".join(_texts(whole))
        if kind == ".csv":
            csv.field_size_limit(max(len(whole), csv.field_size_limit()))  # an entry may be a whole book
            return "\n\n".join(row[COLUMN] for row in csv.DictReader(whole.splitlines(keepends=True)))
    except (ValueError, KeyError, TypeError, csv.Error):
        raise Unusable(f"{path} has an entry without the field {COLUMN!r}, or is no {kind[1:]} at all") from None
    return whole


def _texts(whole: str) -> list[str]:
    """The texts of a JSON list of objects, of {"data": [...]}, or of one object a line."""
    try:
        said = json.loads(whole)
    except ValueError:
        said = [json.loads(line) for line in whole.splitlines() if line.strip()]
    if isinstance(said, dict):
        said = said.get("data", [said])
    return [entry[COLUMN] for entry in said]


def _dataset(name: str, config: str | None) -> str:
    try:
        import datasets
    except ImportError as error:
        remedy = 'pip install "datasets<4" pyarrow pandas, or use --train_file'
        raise Unusable(f"--dataset_name needs the package datasets ({error}): {remedy}") from None

    here = Path(name)
    try:
        if (here / "dataset_info.json").is_file() or (here / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(name)
        elif here.is_file():
            kind = {"txt": "text", "jsonl": "json"}.get(here.suffix[1:], here.suffix[1:])
            loaded = datasets.load_dataset(kind, data_files=name)
        else:
            there, why = ([], "") if here.is_dir() or offline() else files(name, "dataset")
            if there is None:
                raise Unusable(f"{name} is no folder, no file, and no dataset to be had from the hub: {why}")
            loaded = datasets.load_dataset(name, config)
    except (OSError, ValueError, RuntimeError) as error:
        said = re.sub(r"\s+", " ", str(error))[:200]
        raise Unusable(f"the dataset {name} cannot be loaded: {said}") from None
    part = loaded["train"] if isinstance(loaded, dict) and "train" in loaded else loaded
    if isinstance(part, dict):
        raise Unusable(f"the dataset {name} has no part called train, only {', '.join(part)}")
    column = COLUMN if COLUMN in part.column_names else part.column_names[0]
    return "\n\n".join(str(value) for value in part[column])
