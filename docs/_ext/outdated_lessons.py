"""Which lessons Sphinx-Gallery has to execute again, beyond those whose own text changed.

Sphinx-Gallery compares a lesson's MD5 with the one kept beside the generated page, and looks at nothing else. So
before it starts, the kept MD5 is removed for each lesson whose runs would not be the same now (a training script,
a config, a recording, the policy or the host changed), and for all lessons when the kit that draws them changed.
Executing a lesson is cheap: its jobs are read from the cache unless their own key changed.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import handson
from handson import lessons
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.display import progress_message
from sphinx_gallery.utils import get_md5sum

KIT = Path(handson.__file__).parent
logger = logging.getLogger(__name__)


def _kit_digest(app: Sphinx) -> str:
    """The content of everything that decides how a lesson's output looks."""
    digest = hashlib.sha256((Path(app.confdir) / "conf.py").read_bytes())
    for path in sorted(KIT.rglob("*.py")):
        digest.update(path.relative_to(KIT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def forget_outdated(app: Sphinx) -> None:
    """Before Sphinx-Gallery starts: remove the MD5 of outdated lessons, and all that deleted lessons left."""
    gallery, pages = Path(app.confdir) / "gallery", Path(app.srcdir) / "lessons"
    for topic in [path for path in pages.glob("*/") if not (gallery / path.name).is_dir()]:
        if topic.name != "images":
            shutil.rmtree(topic)
    for copy in pages.glob("*/plot_*.py"):
        if not (gallery / copy.relative_to(pages)).is_file():
            for leftover in copy.parent.glob(f"{copy.stem}.*"):
                leftover.unlink()

    stamp, digest = pages / ".kit", _kit_digest(app)
    kit_changed = not stamp.is_file() or stamp.read_text() != digest
    with progress_message("checking which lessons' runs are still the same"):
        for lesson in sorted(gallery.glob("*/plot_*.py")):
            name = lesson.relative_to(gallery).with_suffix("").as_posix()
            kept = pages / f"{name}.py.md5"
            same_text = kept.is_file() and kept.read_text() == get_md5sum(lesson, mode="t")
            starts_jobs = "launch(" in lesson.read_text(encoding="utf-8")
            if kit_changed or not same_text or (starts_jobs and not lessons.is_current(name)):
                kept.unlink(missing_ok=True)
                # A failed execution leaves a PNG that says "BROKEN"; it would be shown before the next one's SVG.
                for thumbnail in kept.parent.glob(f"images/thumb/sphx_glr_{lesson.stem}_thumb.*"):
                    thumbnail.unlink()
    pages.mkdir(exist_ok=True)
    stamp.write_text(digest)


def remove_old_pages(app: Sphinx, exception: Exception | None) -> None:
    """After the build: remove the HTML of lessons that are gone. Sphinx itself never removes a page."""
    outdir = Path(app.outdir)
    for page in (outdir / "lessons").rglob("*.html"):
        if page.relative_to(outdir).with_suffix("").as_posix() not in app.env.found_docs:
            page.unlink()


def say_how_to_repeat(app: Sphinx, exception: Exception | None) -> None:
    """After a lesson failed: the command that runs it alone. Sphinx-Gallery's own summary names the error."""
    for lesson in app.config.sphinx_gallery_conf.get("failing_examples", {}):
        shown = os.path.relpath(lesson, app.confdir)
        logger.error("the lesson %s failed; to run it alone: python %s", shown, shown)


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before Sphinx-Gallery's own handlers, which have priority 500."""
    app.connect("builder-inited", forget_outdated, priority=100)
    app.connect("build-finished", remove_old_pages, priority=100)
    app.connect("build-finished", say_how_to_repeat, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
