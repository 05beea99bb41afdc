"""`{handson-bench}`: what `nox -s bench` measured, on a host without GPUs and on one with them, from docs/measured.

Each has a section: where it was measured and whether its jobs are still made of the same code, the picture, the rows.
"""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pictures
from build_page import depend_on_code, download, origin
from docutils import nodes
from handson import measured
from handson.show import bench_report
from handson.show.style import listed
from recordings_page import section, shown
from repairs_page import prose
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

PAGE = "speed"
KINDS = {"cpu": "Starting jobs on a CPU", "gpu": "Starting jobs on GPUs"}
ABSENT = {
    "cpu": "On a host without GPUs this has not been measured yet: `nox -s bench` does it.",
    "gpu": "On a host with GPUs this has not been measured yet: `nox -s bench` does it there.",
}


def file_of(app: Sphinx, kind: str) -> Path:
    """Where the result of one kind of host is kept."""
    return Path(app.srcdir) / "measured" / f"bench-{kind}.json"


class Bench(SphinxDirective):
    """A section for each kind of host, or a sentence where there is no result."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the sections; complain about a damaged file."""
        made: list[nodes.Node] = []
        for kind, title in KINDS.items():
            path = file_of(self.env.app, kind)
            if not path.is_file():
                made.append(section(f"bench-{kind}", title, nodes.paragraph("", "", *prose(ABSENT[kind]))))
                continue
            self.env.note_dependency(path)
            try:
                bench = measured.read(path)
            except ValueError as damage:
                folder = os.path.relpath(path.parent, self.env.app.confdir)
                raise self.error(f"{folder}/{damage}") from None
            depend_on_code(self.env, map(dataclasses.asdict, bench.jobs))
            said = nodes.paragraph("", bench_report.verdict(bench))
            picture = pictures.both_themes(self.env.app, bench_report.chart(bench), f"bench_{kind}")
            tables = shown(bench_report.by_script(bench), bench_report.jobs(bench))
            where = origin("recorded", "Measured", bench.provenance, freshness(bench))
            offered = download(self.env, path, "What was measured, one line a job")
            parts = [where, said, *picture, *tables, offered]
            made.append(section(f"bench-{kind}", title, *parts))
        return made


def freshness(bench: measured.Bench) -> str:
    """Whether the jobs measured are those of today's code, in a sentence."""
    scripts = measured.changed(bench)
    if not scripts:
        return "The code of its jobs is the code that is here now."
    return f"The code of its jobs has changed since: {listed(scripts)}. These are times of the former code."


def with_other_results(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """Read the page again when a result has appeared or gone; that one changed is seen anyway."""
    now = [kind for kind in KINDS if file_of(app, kind).is_file()]
    before, env.handson_bench = getattr(env, "handson_bench", None), now
    return [PAGE] if PAGE in env.found_docs and now != before else []


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("handson-bench", Bench)
    app.connect("env-get-outdated", with_other_results)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
