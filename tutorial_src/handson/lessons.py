"""Which runs a lesson used: noted at each execution, so that a build can tell whether the page is current.

Sphinx-Gallery looks at a lesson's own text alone; a changed training script would leave its page as it was.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from pathlib import Path
from typing import Any

from handson import provenance, sources, store
from handson.run import Run

_used: dict[str, list[dict[str, Any]]] = {}
_recording: list[tuple[store.Request, Run]] | None = None
_made: dict[str, Run] = {}
_resuming = False


def current_lesson() -> str | None:
    """The lesson that is executing, as `topic/name`; none in a notebook or a test."""
    told = os.environ.get("HANDSON_LESSON")
    if told or sources.CHECKOUT is None:
        return told
    gallery = sources.CHECKOUT / "gallery"
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.suffix == ".py" and path.is_relative_to(gallery):
            return path.relative_to(gallery).with_suffix("").as_posix()
        frame = frame.f_back
    return None


def _note_file(lesson: str) -> Path:
    return store.build_folder() / "lessons" / f"{lesson}.json"


def start(lesson: str) -> None:
    """Forget what an earlier execution of this lesson used."""
    _used[lesson] = []


def note_use(request: store.Request, run: Run) -> None:
    """Remember that the lesson being executed showed this run."""
    if _recording is not None:
        _recording.append((request, run))
        _made[request.key] = run
    lesson = current_lesson()
    if lesson is None:
        return
    used = _used.setdefault(lesson, [])
    used.append(
        {
            "script": request.name,
            "argv": list(request.argv),
            "ranks": request.ranks,
            "preset": request.preset,
            "without": list(request.without),
            "key": run.key,
            "way": run.way,
            "date": run.provenance["date"],
            "note": run.note,
        }
    )
    store.write(_note_file(lesson), json.dumps({"gpus": list(provenance.gpus()), "runs": used}, indent=1) + "\n")


def recorded_now(request: store.Request) -> Run | None:
    """The run that `handson record` made of this very request a moment ago, or (resuming) in an earlier attempt."""
    return _made.get(request.key) or (store.cached(request) if _resuming else None)


def is_current(lesson: str) -> bool:
    """Whether executing the lesson again would show the very runs that its page shows now.

    Needs no training: it compares keys. Under the policy `live` nothing is current.
    """
    note = _note_file(lesson)
    if store.policy() == "live" or not note.is_file():
        return False
    try:
        last = json.loads(note.read_text())
    except ValueError:
        return False
    if last["gpus"] != list(provenance.gpus()):
        return False
    return all(_same(entry) for entry in last["runs"])


def _same(entry: dict[str, Any]) -> bool:
    try:
        request = store.Request.again(entry)
        if request.key != entry["key"]:
            return False
        found = store.recorded(request)[0] if entry["way"] == "recorded" else store.cached(request)
    except (FileNotFoundError, store.StoreError, SyntaxError):
        return False
    if found is None or found.provenance["date"] != entry["date"]:
        return False
    # A page of this host's own numbers is out of date as soon as a fresh recording is there to be shown.
    return not (entry["note"] and store.recorded(_gpu(request))[0]) and (
        entry["way"] == "recorded" or store.policy() != "recorded"
    )


def _gpu(request: store.Request) -> store.Request:
    return dataclasses.replace(request, preset="gpu")
