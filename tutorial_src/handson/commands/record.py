"""`handson record LESSON...`: execute lessons as plain Python, every run live, and write their recordings.

Needs no Sphinx, so that it works on an offline GPU host. Where there are GPUs several lessons run at once. A lesson
that fails leaves its recordings as they were. So do recordings on more GPUs than this host has: it cannot make them
again, and they tell more than a run of as many ranks on the CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from handson import jobs, lessons, provenance, side_by_side, store
from handson.commands.status import lesson_names
from handson.run import Run
from handson.watching import status


def record(names: list[str], *, resume: bool = False) -> int:
    """Record each named lesson (`all` for every one); return 1 where one failed.

    With `resume`, runs that an earlier attempt made with this very code on a host like this one are not made again.
    Recording all lessons in one go also keeps the record of their jobs, which the site draws.
    """
    chosen = resolve(names)
    if chosen is None:
        return 2
    root, gpus = store.recordings(), provenance.gpus()
    workers = min(side_by_side.workers_here(), len(chosen))
    status(f"recording on {f'{len(gpus)} × {gpus[0]}' if gpus else 'a host without GPUs: the laptop preset alone'}")
    failed, began = [], time.monotonic()
    command = f"python -m handson record {' '.join(names)}{' --resume' * resume}"
    with _set(HANDSON_RUNS="live", HANDSON_SINCE="" if resume else lessons.now(), HANDSON_JOBS=None):
        history = jobs.begin(command, workers)
        every = side_by_side.run_each(lessons.execute, lessons.longest_first(chosen), workers)
        for number, (lesson, runs) in enumerate(every, 1):
            if isinstance(runs, BaseException):
                traceback.print_exception(runs)
                print(f"error: {lesson} failed; its recordings are as they were", file=sys.stderr)
                failed.append(lesson)
                continue
            written = _write(lesson, runs, root)
            took = f"{time.monotonic() - began:.0f} s after the start"
            status(f"lesson {number} of {len(chosen)}: {lesson}: {written} runs recorded, {took}")
        jobs.note("end")
    if failed:
        print(f"error: {len(failed)} of {len(chosen)} lessons failed: {', '.join(failed)}", file=sys.stderr)
    elif names == ["all"] and not resume and history.is_file():
        store.write(root.parent / "measured" / "build.jsonl", history.read_text(encoding="utf-8"))
    return int(bool(failed))


@contextlib.contextmanager
def _set(**values: str | None) -> Iterator[None]:
    """Environment variables for this process, and for those that it starts, while the block runs."""
    before = {name: os.environ.pop(name, None) for name in values}
    os.environ.update({name: value for name, value in values.items() if value is not None})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def resolve(names: list[str]) -> list[str] | None:
    """The lessons that these words name: by name, topic or `all`. None where one is unknown, which is said."""
    known = lesson_names()
    if names == ["all"]:
        return known
    chosen = []
    for name in names:
        plain = name.removesuffix(".py").removeprefix("gallery/").strip("/")
        found = [lesson for lesson in known if plain in (lesson, lesson.split("/")[1], lesson.split("/")[0])]
        if not found:
            print(f"error: there is no lesson {name}: the gallery has {', '.join(known)}", file=sys.stderr)
            return None
        chosen += found
    return chosen


def _write(lesson: str, runs: list[tuple[store.Request, Run, bool]], root: Path) -> int:
    gpus = len(provenance.gpus())
    written, needed = set(), set()
    for request, run, any_preset in runs:
        larger = _on_more_gpus(request, gpus) if any_preset else None
        if larger is not None:
            needed.add(root / larger.file)
            status(f"{larger.file.name} was recorded on {request.ranks} GPUs, this host has {gpus}: it stays")
            continue
        path = root / request.file
        others = []
        if path.is_file():
            try:
                others = store.load(path)[0].lessons
            except store.StoreError:
                status(f"{path.name} was unreadable and is replaced")
        run.lessons = sorted({*others, lesson})
        store.write(path, store.dump(run))
        written.add(path)
    # A run that this lesson no longer asks for, at a preset made now, has no page any more.
    presets = {request.preset for request, _, _ in runs}
    for path in sorted(root.rglob("*.json")):
        if path in written | needed:
            continue
        try:
            old = store.load(path)[0]
        except store.StoreError:
            continue
        if old.lessons == [lesson] and old.preset in presets:
            status(f"removing {path.name}: {lesson} no longer uses it")
            path.unlink()
    return len(written)


def _on_more_gpus(request: store.Request, gpus: int) -> store.Request | None:
    """The same request on a GPU a rank, where this host has too few and a fresh recording has it."""
    larger = dataclasses.replace(request, preset="gpu")
    if request.ranks <= gpus:
        return None
    try:
        return larger if store.recorded(larger)[0] else None
    except store.StoreError as unreadable:
        status(str(unreadable))
        return None
