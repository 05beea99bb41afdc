"""`{handson-build}`: how long a build took and what its devices did, drawn from the records of builds themselves.

One is a full build that was kept (docs/measured/build.jsonl), the other the build that makes the page: it has run its
lessons when pages are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pictures
from contents import ReadingOrder
from docutils import nodes
from handson import jobs
from handson.show import build_report
from handson.show.recordings import VERSIONS
from handson.show.tables import Cell
from recorded import lesson_title
from recordings_page import section, shown
from repairs_page import prose
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

PAGE = "speed"
KEPT = Path("measured", "build.jsonl")
ABSENT = ("", "absent")  # how provenance says that a package, or a driver, is not there
NEITHER = (
    "No full build has been recorded, and this build ran no job. `python -m handson record all` records one; after "
    "`nox -s build_docs -- --runs=live` this page shows that build."
)
NOT_KEPT = "No full build has been recorded yet: `python -m handson record all` on the host to be measured records one."


def kept_record(app: Sphinx) -> Path:
    """The record of a full build, as `handson record all` keeps it."""
    return Path(app.srcdir) / KEPT


def own_record() -> Path | None:
    """The record of the build that goes on."""
    told = os.environ.get("HANDSON_JOBS")
    return Path(told) if told else None


class Builds(SphinxDirective):
    """A section for each of the two, or a sentence where there is none."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        kept, own = self.read(kept_record(self.env.app)), self.read(own_record(), until=time.time())
        if kept is None and own is None:
            return [nodes.paragraph("", "", *prose(NEITHER))]
        made: list[nodes.Node] = [] if kept else [nodes.paragraph("", "", *prose(NOT_KEPT))]
        if kept:
            file = kept_record(self.env.app)
            self.env.note_dependency(file)
            depend_on_code(self.env, kept.jobs)
            said = origin("recorded", "Recorded", kept.made, freshness(kept))
            offered = download(self.env, file, "Its record, one line a job")
            made.append(section("full-build", "A full build", said, *self.report(kept, "kept"), offered))
        if own:
            said = origin("live", "Run live for this page", own.made, how_far(own))
            made.append(section("this-build", "The build of this page", said, *self.report(own, "own")))
        return made

    def read(self, path: Path | None, until: float | None = None) -> jobs.Build | None:
        """Read a record; None where there is none, or no job in it."""
        if path is None or not path.is_file():
            return None
        try:
            return jobs.read(path, until)
        except jobs.NoJobs:
            return None
        except ValueError as damage:
            folder = os.path.relpath(path.parent, self.env.app.confdir)
            raise self.error(f"the record of a build, {folder}/{damage}") from None

    def report(self, build: jobs.Build, name: str) -> list[nodes.Node]:
        """Return a build's picture and its tables."""
        names, topics = self.names(build), {}
        for topic in {lesson.partition("/")[0] for lesson in names}:
            header = Path(self.env.app.confdir) / "gallery" / topic / "GALLERY_HEADER.rst"
            if header.is_file():
                self.env.note_dependency(header)
                topics[topic] = header.read_text(encoding="utf-8").partition("\n")[0]
        picture = pictures.both_themes(self.env.app, build_report.timeline(build, names, topics), f"build_{name}")
        tables = shown(build_report.totals(build), build_report.by_lesson(build, names))
        return [*picture, *tables]

    def names(self, build: jobs.Build) -> dict[str, Cell]:
        """Return each lesson's title as a link, in the order of the gallery."""
        place = ReadingOrder("")
        found = {job["lesson"] for job in build.jobs if job["lesson"]}
        names = {}
        for lesson in sorted(found, key=lambda lesson: (place(lesson), lesson)):
            title = lesson_title(self.env, lesson)
            link = f'<a href="lessons/{html.escape(lesson)}.html">{html.escape(title)}</a>'
            names[lesson] = Cell(title, link if title != lesson else html.escape(title))
        return names


def depend_on_code(env: BuildEnvironment, made: Iterable[dict[str, Any]]) -> None:
    """Read the page again when a file changes that jobs are made of: it says whether their code is still the same."""
    for job in made:
        with contextlib.suppress(FileNotFoundError, SyntaxError):
            for name in jobs.request(job).files:
                env.note_dependency(Path(env.app.confdir) / "tutorial_src" / name)


def download(env: BuildEnvironment, path: Path, words: str) -> nodes.paragraph:
    """Return a link to a file of docs/, which Sphinx copies beside the page."""
    link = addnodes.download_reference("", "", nodes.literal(text=path.name), reftype="download")
    target = f"/{path.relative_to(env.app.srcdir).as_posix()}"
    link.update_all_atts({"reftarget": target, "refdoc": env.docname, "refexplicit": True})
    return nodes.paragraph("", "", nodes.Text(f"{words}: "), link)


def origin(way: str, words: str, made: dict[str, Any] | None, note: str) -> nodes.raw:
    """Return where, with what and when something was measured, if that was noted, and what to know of it."""
    said = f"<p>{words}; its record does not say where.</p>"
    if made:
        there = {name: made.get(field, "") for field, name in VERSIONS.items()}
        versions = [f"{name} {version}" for name, version in there.items() if version not in ABSENT]
        when = f"{made['date'][:10]} {made['date'][11:16]} UTC"
        parts = [f"{words} on {made['hardware']}", *versions, when, f"commit {made['commit']}"]
        said = f"<p>{html.escape(' · '.join(parts))}</p><p><code>{html.escape(made['command'])}</code></p>"
    note = f'<p class="handson-note">{html.escape(note)}</p>'
    return nodes.raw("", f'<div class="handson-provenance" data-way="{way}">{said}{note}</div>', format="html")


def freshness(build: jobs.Build) -> str:
    """Return in a sentence how much of a recorded build the code of today would do otherwise."""
    outdated = jobs.outdated(build)
    if outdated is None:
        return "The record keeps no keys of its jobs, so it cannot be told whether their code has changed since."
    if outdated:
        return f"The code of {len(outdated)} of its {len(build.jobs)} jobs has changed since."
    return "The code of its jobs is the code that is here now."


def how_far(build: jobs.Build) -> str:
    """Return in a sentence what the record of a build that goes on can show."""
    count = len(build.jobs)
    many = f"The {count} jobs that this build ran are" if count > 1 else "The one job that this build ran is"
    return f"{many} shown, up to when this page was made. Runs that were read from the cache are no jobs."


def with_other_records(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """Read the page again when a record has appeared, changed or gone; that a build began is no change."""
    now = [_jobs_in(path) for path in (kept_record(app), own_record())]
    before, env.handson_builds = getattr(env, "handson_builds", None), now
    return [PAGE] if PAGE in env.found_docs and now != before else []


def _jobs_in(path: Path | None) -> str:
    if path is None or not path.is_file():
        return ""
    lines = [line for line in path.read_bytes().splitlines() if not line.startswith(b'{"kind": "begin"')]
    return hashlib.sha256(b"\n".join(lines)).hexdigest() if lines else ""


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("handson-build", Builds)
    app.connect("env-get-outdated", with_other_records)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
