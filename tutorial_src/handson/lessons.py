"""Which runs a lesson used: noted at each execution, so that a build can tell whether the page is current.

Sphinx-Gallery looks at a lesson's own text alone; a changed training script would leave its page as it was.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from handson import leases, provenance, sources, store
from handson.run import Run
from handson.watching import status

_used: dict[str, list[dict[str, Any]]] = {}
_recording: list[tuple[store.Request, Run, bool]] | None = None
SINCE = "HANDSON_SINCE"  # runs made from this moment on are those of the build, or the recording, that goes on


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


def note_use(request: store.Request, run: Run, any_preset: bool) -> None:
    """Remember that the lesson being executed showed this run, and whether any preset would have done."""
    if _recording is not None:
        _recording.append((request, run, any_preset))
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


def execute(lesson: str) -> list[tuple[store.Request, Run, bool]]:
    """Execute a lesson as plain Python, under the policy that is set; return the runs that it showed, in order.

    With each run comes whether the lesson left its preset open.

    Raises:
        BaseException: what the lesson raised.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    global _recording
    matplotlib.use("Agg")
    path = sources.CHECKOUT / "gallery" / f"{lesson}.py"
    before = Path.cwd()
    status(f"lesson {lesson}")
    _recording = []
    start(lesson)
    os.chdir(path.parent)
    try:
        runpy.run_path(str(path), run_name="__main__")
        return _recording
    finally:
        plt.close("all")
        os.chdir(before)
        _recording = None


def now() -> str:
    """This moment, as a run's provenance dates it."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def made_now(request: store.Request) -> Run | None:
    """The run that the build (or the recording) that goes on has made of this very request, in whichever process."""
    since = os.environ.get(SINCE)
    run = store.cached(request) if since is not None else None
    if run is None or run.provenance["date"] < since:
        return None
    run.way = "live"
    return run


@contextlib.contextmanager
def only_here(request: store.Request) -> Iterator[None]:
    """No other process makes this very run while the block runs: a lesson that waited finds it made.

    Locks are few, and shared: runs that share one by chance only wait for each other.
    """
    if leases.WITHIN in os.environ or (store.policy() == "live" and SINCE not in os.environ):
        yield  # every call makes its own run
        return
    said = f"{request.name} x{request.ranks}: another process makes it, or one like it; waiting"
    with leases.hold(leases.folder() / f"run-{request.key[:2]}", waiting=lambda: status(said)):
        yield


def longest_first(names: list[str]) -> list[str]:
    """Lessons by the seconds that their recorded runs took, so that the last ones to begin are the short ones."""
    seconds = dict.fromkeys(names, 0.0)
    root = store.recordings()
    for path in root.rglob("*.json") if root else ():
        with contextlib.suppress(store.StoreError):
            run, _ = store.load(path)
            for lesson in seconds.keys() & set(run.lessons):
                seconds[lesson] += run.seconds
    return sorted(names, key=lambda name: -seconds[name])


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
