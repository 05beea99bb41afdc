"""`{handson-papers} topic`: what papers claim beside what the lessons measured, gathered from the lessons' own pages.

A lesson shows such rows by handson.show.paper_table. While a lesson is read, its tables with those columns are kept;
the page is written last, from them, so that there is no second copy of any number.
"""

from __future__ import annotations

import html
import re
from typing import Any

from bs4 import BeautifulSoup, Tag
from docutils import nodes
from handson.show.conditions import hardware
from handson.show.style import listed
from handson.show.tables import Cell, Table, lines, soft
from shown_runs import shown_runs
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util.docutils import SphinxDirective

COLUMNS = ["claim", "paper", "measured", "source"]
PAGE, BIBLIOGRAPHY = "papers", "bibliography"
# A paper by its place: arXiv's number, or the name of a presentation.
PAPER = re.compile(
    r"https?://(?:arxiv\.org/(?:abs|pdf)|www\.usenix\.org/conference)/(\d{4}\.\d{4,5}|\w+/presentation/\w+)"
)


class Claims(nodes.General, nodes.Element):
    """Where the table of one topic goes, once all lessons are read."""


class Papers(SphinxDirective):
    """The place of one topic's table."""

    required_arguments = 1
    has_content = False

    def run(self) -> list[nodes.Node]:
        """Leave a mark."""
        return [Claims(topic=self.arguments[0])]


def claims_in(markup: str) -> list[dict[str, str]]:
    """Return the rows of every paper table in a piece of HTML, each as {column: HTML of its cell}."""
    if "<th" not in markup or "measured" not in markup:
        return []
    found = []
    for table in BeautifulSoup(markup, "html.parser").find_all("table"):
        names = [head.get_text() for head in table.select("thead th")]
        if names[: len(COLUMNS)] == COLUMNS:
            for row in table.select("tbody tr"):
                cells = [cell for cell in row.children if isinstance(cell, Tag)]
                found.append({name: cell.decode_contents() for name, cell in zip(names, cells, strict=True)})
    return found


def gather(app: Sphinx, doctree: nodes.document) -> None:
    """While a lesson is read: keep its claims, with the section they are in, and the papers it links to."""
    docname = app.env.current_document.docname
    if not re.fullmatch(r"lessons/[^/]+/plot_\w+", docname):
        return
    claims, cited = [], set()
    for node in doctree.findall(nodes.raw):
        cited.update(PAPER.findall(node.astext()))
        if found := claims_in(node.astext()):
            holder = node.parent
            while not (isinstance(holder, nodes.section) and holder["ids"]):
                holder = holder.parent
            claims += [{**row, "section": holder["ids"][0]} for row in found]
    for node in doctree.findall(nodes.reference):
        cited.update(PAPER.findall(node.get("refuri", "")))
    _kept(app.env)[docname] = (claims, sorted(cited))


def _kept(env: BuildEnvironment) -> dict[str, tuple[list[dict[str, str]], list[str]]]:
    if not hasattr(env, "handson_papers"):
        env.handson_papers = {}
    return env.handson_papers


def forget(app: Sphinx, env: BuildEnvironment, docname: str) -> None:
    """Before a page is read again, or when it is gone."""
    _kept(env).pop(docname, None)


def merge(app: Sphinx, env: BuildEnvironment, docnames: set[str], other: BuildEnvironment) -> None:
    """Take what another process read."""
    _kept(env).update({name: kept for name, kept in _kept(other).items() if name in docnames})


def write_again(app: Sphinx, env: BuildEnvironment) -> list[str]:
    """Both pages are made of all lessons: they are written at every build."""
    return [name for name in (PAGE, BIBLIOGRAPHY) if name in env.found_docs]


def lesson_link(env: BuildEnvironment, docname: str, section: str = "") -> Cell:
    """A link to a lesson, from a page at the site's root."""
    title = env.titles[docname].astext()
    anchor = f"#{section}" if section else ""
    return Cell(title, f'<a href="{docname}.html{anchor}">{html.escape(title)}</a>')


def claims_table(env: BuildEnvironment, topic: str) -> Table | None:
    """Every claim of a topic's lessons, in the order of the lessons; None where there is none."""
    body, explained = [], False
    ordered = [f"lessons/{name}" for name in _reading_order(env, topic)]
    for docname in [name for name in ordered if name in _kept(env)]:
        runs = [entry.run for entry in shown_runs(docname.removeprefix("lessons/"))]
        used = dict.fromkeys(hardware(run) for run in sorted(runs, key=lambda run: -run.provenance["accelerators"]))
        for row in _kept(env)[docname][0]:
            cells = [Cell(BeautifulSoup(row[name], "html.parser").get_text(), row[name]) for name in COLUMNS]
            why = row.get("why", "")
            explained |= bool(why)
            place = soft(f"runs made on {listed(list(used))}")
            cells[0] = lines(cells[0], lesson_link(env, docname, row["section"]), place)
            body.append([*cells, Cell(BeautifulSoup(why, "html.parser").get_text(), why)])
    if not body:
        return None
    columns = ["claim, and its lesson", *COLUMNS[1:], "why"]
    if not explained:
        columns, body = columns[:-1], [row[:-1] for row in body]
    return Table(columns, body, f"Papers and measurements: {env.titles[f'lessons/{topic}/index'].astext()}")


def wrapping(table: Table) -> str:
    """Return a table's HTML, with cells that wrap: here they hold sentences."""
    return f'<div class="handson-wrapping">{table._repr_html_()}</div>'


def _reading_order(env: BuildEnvironment, topic: str) -> list[str]:
    """The topic's lessons as its own page lists them."""
    listed_there = [name.removeprefix("lessons/") for name in env.toctree_includes.get(f"lessons/{topic}/index", [])]
    return [name for name in listed_there if name.startswith(f"{topic}/plot_")]


def fill(app: Sphinx, doctree: nodes.document, docname: str) -> None:
    """When all is read: put the tables in place; name the lessons that cite a paper; leave out one that none does."""
    for mark in list(doctree.findall(Claims)):
        table = claims_table(app.env, mark["topic"])
        if table is None:
            mark.replace_self(nodes.paragraph("", "No lesson of this topic compares itself with a paper yet."))
        else:
            mark.replace_self(nodes.raw("", wrapping(table), format="html"))
    if docname == BIBLIOGRAPHY:
        citing: dict[str, list[str]] = {}
        for lesson, (_, papers) in sorted(_kept(app.env).items()):
            for paper in papers:
                citing.setdefault(paper, []).append(lesson)
        for citation in list(doctree.findall(nodes.citation)):
            urls = " ".join(link.get("refuri", "") for link in citation.findall(nodes.reference))
            lessons = [lesson for paper in PAPER.findall(urls) for lesson in citing.get(paper, [])]
            if lessons:
                links = ", ".join(lesson_link(app.env, lesson).html for lesson in dict.fromkeys(lessons))
                citation += nodes.raw("", f'<p class="handson-cited">Cited in {links}</p>', format="html")
            else:
                citation.parent.remove(citation)


def plain_list(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Take out the roles that docutils gives a bibliography: ARIA has dropped one, and the list then has no items."""
    if page == BIBLIOGRAPHY and "body" in context:
        context["body"] = re.sub(r' role="(?:doc-biblioentry|list)"', "", context["body"])


def setup(app: Sphinx) -> dict[str, object]:
    """Offer the directive, and gather while lessons are read."""
    app.add_node(Claims)
    app.add_directive("handson-papers", Papers)
    app.connect("doctree-read", gather)
    app.connect("env-purge-doc", forget)
    app.connect("env-merge-info", merge)
    app.connect("env-updated", write_again)
    app.connect("doctree-resolved", fill)
    app.connect("html-page-context", plain_list)
    return {"version": "1", "env_version": 1, "parallel_read_safe": True, "parallel_write_safe": True}
