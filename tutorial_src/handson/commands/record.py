"""`handson record LESSON...`: execute lessons as plain Python, every run live, and write their recordings.

Needs no Sphinx, so that it works on an offline GPU host. A lesson that fails leaves its recordings as they were.
"""

from __future__ import annotations

import os
import runpy
import sys
import time
import traceback
from pathlib import Path

from handson import lessons, provenance, sources, store
from handson.commands.status import lesson_names
from handson.ranks import status


def record(names: list[str], *, resume: bool = False) -> int:
    """Record each named lesson (`all` for every one); return 1 where one failed.

    With `resume`, runs that an earlier attempt made with this very code on a host like this one are not made again.
    """
    lessons._resuming = resume
    chosen = _resolve(names)
    if chosen is None:
        return 2
    root = store.recordings()
    gpus = provenance.gpus()
    status(f"recording on {f'{len(gpus)} × {gpus[0]}' if gpus else 'a host without GPUs: the laptop preset alone'}")
    failed = []
    for number, lesson in enumerate(chosen, 1):
        status(f"lesson {number} of {len(chosen)}: {lesson}")
        began = time.monotonic()
        runs = _execute(lesson)
        if runs is None:
            failed.append(lesson)
            continue
        written = _write(lesson, runs, root)
        status(f"{lesson}: {written} runs recorded in {time.monotonic() - began:.0f} s")
    if failed:
        print(f"error: {len(failed)} of {len(chosen)} lessons failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


def _resolve(names: list[str]) -> list[str] | None:
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


def _execute(lesson: str) -> list | None:
    import matplotlib

    matplotlib.use("Agg")
    path = sources.CHECKOUT / "gallery" / f"{lesson}.py"
    before, policy = Path.cwd(), os.environ.get("HANDSON_RUNS")
    os.environ["HANDSON_RUNS"] = "live"
    lessons._recording = []
    lessons.start(lesson)
    os.chdir(path.parent)
    try:
        runpy.run_path(str(path), run_name="__main__")
        return lessons._recording
    except (Exception, SystemExit):
        traceback.print_exc()
        print(f"error: {lesson} failed; its recordings are as they were", file=sys.stderr)
        return None
    finally:
        import matplotlib.pyplot as plt

        plt.close("all")
        os.chdir(before)
        lessons._recording = None
        if policy is None:
            del os.environ["HANDSON_RUNS"]
        else:
            os.environ["HANDSON_RUNS"] = policy


def _write(lesson: str, runs: list, root: Path) -> int:
    written = {}
    for request, run in runs:
        path = root / request.file
        others = []
        if path.is_file():
            try:
                others = store.load(path)[0].lessons
            except store.StoreError:
                status(f"{path.name} was unreadable and is replaced")
        run.lessons = sorted({*others, lesson})
        store.write(path, store.dump(run))
        written[path] = run.preset
    # A run that this lesson no longer asks for, at a preset made now, has no page any more.
    for path in sorted(root.rglob("*.json")):
        if path in written:
            continue
        try:
            old = store.load(path)[0]
        except store.StoreError:
            continue
        if old.lessons == [lesson] and old.preset in written.values():
            status(f"removing {path.name}: {lesson} no longer uses it")
            path.unlink()
    return len(written)
