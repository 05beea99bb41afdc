"""What a build does about its process and its host.

It waits for another build, notes its jobs, names a full disk, and keeps Python from looking for garbage all the time.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
from pathlib import Path

from handson import jobs, leases, lessons, side_by_side, store
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.util import logging

FULL_BYTES = 1 << 20
logger = logging.getLogger(__name__)
_held = contextlib.ExitStack()  # until this process ends, by whatever death


def wait_for_the_other(app: Sphinx, config: Config) -> None:
    """Two builds write the same pages, so the second waits; called before Sphinx reads what an earlier build left."""
    said = "another build of this checkout is running: waiting for it to end"
    lock = Path(app.confdir) / "build" / ".building"
    _held.enter_context(leases.hold(lock, waiting=lambda: logger.info(said)))


def begin(app: Sphinx, config: Config) -> None:
    """From here on the jobs of this build are recorded, whichever process of it starts them.

    A run that two lessons show is made once: the second finds that it was made since the build began.
    """
    jobs.begin(f"nox -s build_docs -- --runs={store.policy()}", side_by_side.workers_here())
    os.environ.setdefault(lessons.SINCE, lessons.now())


def collect_rarely(app: Sphinx) -> None:
    """Look for garbage every 50,000 new objects instead of every 700, and not among what is loaded by now.

    Pages and pictures are large trees that stay, and Sphinx-Gallery looks through everything before each lesson: with
    Python's own settings that is a fifth of a build's time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


def end(app: Sphinx, exception: Exception | None) -> None:
    """The end of the build's record."""
    jobs.note("end")


def name_a_full_disk(app: Sphinx, exception: Exception | None) -> None:
    """A full disk shows itself in a hundred ways, none of which says what to do."""
    left = shutil.disk_usage(app.outdir).free
    if left < FULL_BYTES:
        logger.error("the disk that holds build/ is full (%d KiB are left): make room, and build again", left >> 10)


def let_go(app: Sphinx, exception: Exception | None) -> None:
    """After everything else: a process may build twice."""
    _held.close()


def setup(app: Sphinx) -> dict[str, bool]:
    """Run first and last."""
    app.connect("config-inited", wait_for_the_other, priority=1)
    app.connect("config-inited", begin, priority=2)
    app.connect("builder-inited", collect_rarely, priority=300)
    app.connect("build-finished", end, priority=999)
    app.connect("build-finished", name_a_full_disk, priority=50)
    app.connect("build-finished", let_go, priority=1000)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
