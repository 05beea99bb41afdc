"""Which runs a lesson's page shows, as the kit noted them when the lesson was last executed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from handson import store
from handson.run import Run


@dataclass(frozen=True)
class Shown:
    """One run on a page: how it was obtained, what the reader must know of it, its data and the data's file."""

    way: str
    note: str
    run: Run
    file: Path


def note_file(lesson: str) -> Path:
    """Where the kit notes what `topic/plot_name` used."""
    return store.build_folder() / "lessons" / f"{lesson}.json"


def shown_runs(lesson: str) -> list[Shown]:
    """The runs, each once, in the order in which the lesson asked for them."""
    if not note_file(lesson).is_file():
        return []
    found: dict[Path, Shown] = {}
    for used in json.loads(note_file(lesson).read_text(encoding="utf-8"))["runs"]:
        request = store.Request.again(used)
        root = store.recordings() if used["way"] == "recorded" else store.build_folder() / "runs"
        path = root / request.file
        found[path] = Shown(used["way"], used["note"], store.load(path)[0], path)
    return list(found.values())
