"""`{handson-hardware}` and `{handson-times}`: the pages that the recordings themselves make.

Each shows tables of handson.show in sections of its own, so that the page's contents list names them.
"""

from __future__ import annotations

import html

from contents import ReadingOrder
from docutils import nodes
from handson.show import recordings as show
from handson.show.tables import Cell, Table
from papers_page import wrapping
from recorded import lesson_title, names, recordings
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

PAGES = ("hardware", "times")


def shown(*tables: Table) -> list[nodes.Node]:
    """Tables as a page shows them."""
    return [nodes.raw("", wrapping(table), format="html") for table in tables]


def section(name: str, title: str, *body: nodes.Node) -> nodes.section:
    """A section with a heading."""
    made = nodes.section(ids=[nodes.make_id(name)], names=[nodes.fully_normalize_name(title)])
    made += [nodes.title("", title), *body]
    return made


class Hardware(SphinxDirective):
    """One section for each host that made recordings, and what was measured of its links."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        runs = [recording.run for recording in recordings(self.env)]
        if not runs:
            return [nodes.paragraph("", "There are no recordings yet.")]
        made: list[nodes.Node] = [
            section(f"host-{index}", f"The host with {show.title(group)}", *shown(*tables))
            for index, group in enumerate(show.machines(runs), start=1)
            for tables in [(show.machine_table(group), show.use_table(group))]
        ]
        if links := show.link_table(runs):
            text = (
                "Lessons that compare with a model of the machine measure its links first, with messages of their own."
            )
            made.append(section("links", "Links between ranks", nodes.paragraph("", text), *shown(links)))
        return made


class Times(SphinxDirective):
    """The totals, then one section for each lesson."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the sections, in the order of the gallery."""
        found = recordings(self.env)
        stale = {recording.run.key: recording.stale for recording in found if recording.stale}
        lessons = {lesson for recording in found for lesson in recording.run.lessons}
        totals, sections = {}, []
        place = ReadingOrder("")
        for lesson in sorted(lessons, key=lambda name: (place(name), name)):
            runs = [recording.run for recording in found if lesson in recording.run.lessons]
            title = lesson_title(self.env, lesson)
            page = f"lessons/{lesson}.html"
            totals[lesson] = (Cell(title, f'<a href="{html.escape(page)}">{html.escape(title)}</a>'), runs)
            table = show.times_table(runs, caption=f"{title}: its recorded runs", stale=stale)
            sections.append(section(f"times-{lesson}", title, *shown(table)))
        if not totals:
            return [nodes.paragraph("", "There are no recordings yet.")]
        every = [recording.run for recording in found]
        return [*shown(show.totals_table(totals, every)), *sections]


def with_other_recordings(app: Sphinx, env: BuildEnvironment, *changes: set[str]) -> list[str]:
    """Read both pages again when a recording has appeared or gone."""
    now, before = names(), getattr(env, "handson_recordings", None)
    env.handson_recordings = now
    return [page for page in PAGES if page in env.found_docs and now != before]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directives."""
    app.add_directive("handson-hardware", Hardware)
    app.add_directive("handson-times", Times)
    app.connect("env-get-outdated", with_other_recordings)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
