"""After a build, read every page as its reader gets it and fail on what must never be there.

That is: terminal colour codes and progress bars in a lesson's output, Python warnings in it, a picture without
a description, and a path of the machine that built the site.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# What a lesson printed, or the error it shows.
OUTPUT = ".sphx-glr-script-out, .output_subarea"
DEBRIS = {
    "a terminal colour code": re.compile(r"\x1b|\[\d{1,2}(;\d{1,3})*m"),
    "a progress bar": re.compile(r"\r(?!\n)|\d+%\|.*\||\d+(\.\d+)?\s*(it/s|s/it)\b|█▏|[▏▎▍▌▋▊▉]"),
    "a Python warning": re.compile(r"\b\w*Warning: |warnings\.warn\("),
}


def machine_paths(root: Path) -> re.Pattern[str]:
    """Matches paths that exist on the building machine alone."""
    places = {str(root), str(Path.home()), sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local"}
    named = "|".join(re.escape(place) for place in sorted(places, key=len, reverse=True))
    return re.compile(rf"(?:{named})(?=[/\s\"'<:,)]|$)|/tmp/\w+|site-packages/")


def problems(page: str, paths: re.Pattern[str]) -> Iterator[str]:
    """What is wrong with one page's HTML, each as one phrase."""
    tree = BeautifulSoup(page, "html.parser")
    for block in tree.select(OUTPUT):
        text = block.get_text()
        for name, pattern in DEBRIS.items():
            if found := pattern.search(text):
                line = text[text.rfind("\n", 0, found.start()) + 1 :].partition("\n")[0]
                yield f"{name} in a lesson's output: {line[:120]!r}"
    for image in tree.find_all("img"):
        # An empty alt says "decoration": right for a logo or a thumbnail beside its name, not for a lesson's picture.
        shown = image.find_parent("article") and not image.find_parent(class_="sphx-glr-thumbcontainer")
        if "alt" not in image.attrs or (shown and not image["alt"].strip()):
            yield f"a picture without a description: {image.get('src', '')[-80:]}"
    if found := paths.search(page):
        yield f"a path of the building machine: {page[max(0, found.start() - 30) : found.end() + 50]!r}"


def check(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build, with one line for each thing found."""
    lesson_failed = app.config.sphinx_gallery_conf.get("failing_examples")
    if exception is not None or lesson_failed or app.builder.format != "html":
        return
    paths = machine_paths(Path(app.confdir))
    for page in sorted(Path(app.outdir).rglob("*.html")):
        if "_static" not in page.relative_to(app.outdir).parts:
            for problem in problems(page.read_text(encoding="utf-8"), paths):
                logger.warning("%s: %s", page.relative_to(app.outdir), problem, type="honesty")
                app.statuscode = 1


def setup(app: Sphinx) -> dict[str, bool]:
    """Check last, when all pages are written."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
