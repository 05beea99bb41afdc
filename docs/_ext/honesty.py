"""After a build, read every page as its reader gets it and fail on what must never be there.

That is: terminal colour codes, progress bars and Python warnings in a lesson's output, a picture without a description,
a path of the machine that built the site, a lesson that ran nothing, and numbers whose code has changed since without
a word about it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from bs4 import BeautifulSoup
from handson import store
from shown_runs import note_file
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)

# What a lesson printed, or the error it shows.
OUTPUT = ".sphx-glr-script-out, .output_subarea"
PICTURE = "article img.sphx-glr-single-img"
LESSON = re.compile(r"lessons/([^/]+/plot_\w+)\.html")
# What a reader may download; its prose and code may speak of /tmp, but not of the places where this site was built.
TAKEN_ALONG = {".css", ".ipynb", ".js", ".json", ".jsonl", ".py", ".txt", ".xml"}
DEBRIS = {
    "a terminal colour code": re.compile(r"\x1b|\[\d{1,2}(;\d{1,3})*m"),
    "a progress bar": re.compile(r"\r(?!\n)|\d+%\|.*\||\d+(\.\d+)?\s*(it/s|s/it)\b|█▏|[▏▎▍▌▋▊▉]"),
    "a Python warning": re.compile(r"\b\w*Warning: |warnings\.warn\("),
}


def places(root: Path) -> re.Pattern[str]:
    """Matches the folders of the building machine that this build knows."""
    named = {str(root), str(Path.home()), sys.prefix, sys.base_prefix} - {"/", "/usr", "/usr/local"}
    longest_first = "|".join(re.escape(place) for place in sorted(named, key=len, reverse=True))
    return re.compile(rf"(?:{longest_first})(?=[/\s\"'<:,)]|$)")


def machine_paths(root: Path) -> re.Pattern[str]:
    """Matches paths that exist on the building machine alone."""
    return re.compile(rf"{places(root).pattern}|/tmp/\w+|site-packages/")


@functools.lru_cache(1)
def read(page: str) -> BeautifulSoup:
    """Return the tree of a page's HTML, which two checks ask for, one after the other."""
    return BeautifulSoup(page, "html.parser")


def problems(page: str, paths: re.Pattern[str]) -> Iterator[str]:
    """What is wrong with one page's HTML, each as one phrase."""
    tree = read(page)
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
    if "\x1b" in page and not any("\x1b" in block.get_text() for block in tree.select(OUTPUT)):
        yield "a terminal colour code outside a lesson's output"
    yield from machine_path(page, paths)


def machine_path(text: str, paths: re.Pattern[str]) -> Iterator[str]:
    """The first path of the building machine, with what is around it."""
    if found := paths.search(text):
        yield f"a path of the building machine: {text[max(0, found.start() - 30) : found.end() + 50]!r}"


def lesson_problems(page: str, lesson: str, source: str) -> Iterator[str]:
    """What is wrong with one lesson's page beside its execution: `source` is the lesson's text.

    Compared are the runs that the kit noted when the lesson ran, the runs that it would be given now, and what the page
    says about them.
    """
    tree = read(page)
    if not tree.select(OUTPUT) and not tree.select(PICTURE):
        yield "the lesson ran nothing: its page has neither output nor picture"
    file = note_file(lesson)
    used = json.loads(file.read_text(encoding="utf-8"))["runs"] if file.is_file() else []
    if not used and "launch(" in source:
        yield "the lesson starts jobs, but no run was noted when it was executed"
    if used and not tree.select(".handson-origin p[data-way]"):
        yield "the page does not say where its runs come from"
    said = " ".join(note.get_text() for note in tree.select(".handson-note"))
    for run in used:
        title = f"`{run['script']} {' '.join(run['argv'])}` on {run['ranks']} ranks"
        if run["note"] and not said:
            yield f"the page does not say of {title}: {run['note']}"
        try:
            now = store.Request.again(run).key
        except (FileNotFoundError, SyntaxError) as error:
            now = str(error)
        if now != run["key"] and "stale" not in said:
            yield f"{title} is shown as current, but what it was made of has changed since"


def check(app: Sphinx, exception: Exception | None) -> None:
    """Fail the build, with one line for each thing found."""
    lesson_failed = app.config.sphinx_gallery_conf.get("failing_examples")
    if exception is not None or lesson_failed or app.builder.format != "html":
        return
    root, out = Path(app.confdir), Path(app.outdir)
    paths, own = machine_paths(root), places(root)
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = file.relative_to(out)
        found: list[str] = []
        if file.suffix == ".html" and "_static" not in name.parts:
            page = file.read_text(encoding="utf-8")
            found += problems(page, paths)
            if lesson := LESSON.fullmatch(name.as_posix()):
                source = root / "gallery" / f"{lesson[1]}.py"
                found += lesson_problems(page, lesson[1], source.read_text(encoding="utf-8"))
        elif file.suffix in TAKEN_ALONG:
            found += machine_path(file.read_text(encoding="utf-8", errors="replace"), own)
        for problem in found:
            logger.warning("%s: %s", name, problem, type="honesty")
            app.statuscode = 1


def setup(app: Sphinx) -> dict[str, bool]:
    """Check last, when all pages are written."""
    app.connect("build-finished", check, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
