"""Where there are GPUs, lessons run side by side before Sphinx-Gallery executes them one after another.

Sphinx-Gallery can run the lessons of one folder at once, and waits for the slowest before the next folder; and it
knows nothing of devices. So their jobs run first, in as many processes as the devices can feed, all topics together.
When the gallery then executes a lesson for its page, it finds the runs made.
"""

from __future__ import annotations

import time
from pathlib import Path

from handson import lessons, side_by_side, store
from handson.watching import status
from sphinx.application import Sphinx


def outdated(app: Sphinx) -> list[str]:
    """The lessons that Sphinx-Gallery is about to execute (see outdated_lessons) and that start jobs."""
    found = []
    for path in sorted((Path(app.confdir) / "gallery").glob("*/plot_*.py")):
        name = path.relative_to(path.parents[1]).with_suffix("").as_posix()
        kept = Path(app.srcdir) / "lessons" / f"{name}.py.md5"
        if not kept.is_file() and "launch(" in path.read_text(encoding="utf-8"):
            found.append(name)
    return found


def run_side_by_side(app: Sphinx) -> None:
    """Execute them for their runs alone. One that fails is executed again for its page, which shows the error."""
    names = outdated(app)
    workers = min(side_by_side.workers_here(), len(names))
    if workers < 2 or store.policy() == "recorded":
        return
    began = time.monotonic()
    status(f"{len(names)} lessons, {workers} at once")
    each = side_by_side.run_each(lessons.execute, lessons.longest_first(names), workers)
    for number, (lesson, result) in enumerate(each, 1):
        how = f"failed: {result}" if isinstance(result, BaseException) else "its runs are made"
        status(f"lesson {number} of {len(names)}, {time.monotonic() - began:.0f} s: {lesson}: {how}")


def setup(app: Sphinx) -> dict[str, bool]:
    """Run after outdated_lessons (priority 100) and before Sphinx-Gallery (500)."""
    app.connect("builder-inited", run_side_by_side, priority=200)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
