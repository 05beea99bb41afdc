"""At the head of each lesson's page: where its numbers come from, in one line for each kind of host.

Written from the runs themselves, so that no lesson can forget it.
"""

from __future__ import annotations

import html
import re
from itertools import groupby

from docutils import nodes
from handson import sources
from shown_runs import Shown, note_file, shown_runs
from sphinx.application import Sphinx

WAYS = {"live": "made live on", "recorded": "recorded on"}


def group_of(shown: Shown) -> tuple[str, ...]:
    """Runs with the same way, host and versions share a line; a cached run was live on this very host."""
    made = shown.run.provenance
    versions = (f"PyTorch {made['torch']}", f"Colossal-AI {made['colossalai']}", f"Python {made['python']}")
    return ("recorded" if shown.way == "recorded" else "live", made["hardware"], *versions)


def lines(runs: list[Shown], root: str = "") -> list[str]:
    """One paragraph of HTML for each group, and one for each thing that the reader must know.

    `root` leads from the page to the site's.
    """
    made = []
    for (way, hardware, *versions), group in groupby(sorted(runs, key=group_of), key=group_of):
        members = list(group)
        days = sorted({shown.run.provenance["date"][:10] for shown in members})
        earlier = sum(shown.way == "cached" for shown in members)
        words = [
            f"{len(members)} run{'s' * (len(members) != 1)} {WAYS[way]} {hardware}",
            *([f"{earlier} of them for an earlier build"] if earlier else []),
            " to ".join(dict.fromkeys((days[0], days[-1]))),
            *versions,
        ]
        made.append(f'<p data-way="{way}">{html.escape(" · ".join(words))}</p>')
    recorded_files = {name for shown in runs if shown.way == "recorded" for name in shown.run.files}
    if edited := sorted(recorded_files & sources.harmless_edits().keys()):
        names = ", ".join(f"<code>{html.escape(name)}</code>" for name in edited)
        why = f'<a href="{root}how_it_works.html#harmless">why this should change no number</a>'
        made.append(f"<p>edited since the recording: {names} · {why}</p>")
    # A note names its run in backticks; notes that say the same of several runs are said once.
    notes = {re.sub(r"`[^`]*`(?: on \d+ ranks?)?", "such a run", shown.note): None for shown in runs if shown.note}
    return made + [f'<p class="handson-note">{html.escape(note)}</p>' for note in notes]


def add_origin(app: Sphinx, doctree: nodes.document) -> None:
    """Put the lines after the lesson's introduction."""
    docname = app.env.current_document.docname
    if not re.fullmatch(r"lessons/[^/]+/plot_\w+", docname):
        return
    lesson = docname.removeprefix("lessons/")
    if note_file(lesson).is_file():
        app.env.note_dependency(note_file(lesson))
    page = next(doctree.findall(nodes.section))
    if runs := shown_runs(lesson):
        first = next((index for index, node in enumerate(page) if isinstance(node, nodes.section)), len(page))
        said = "".join(lines(runs, root="../../"))
        said = f'<div class="handson-origin" role="note" aria-label="Origin of the numbers">{said}</div>'
        page.insert(first, nodes.raw("", said, format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Add the lines when a page is read."""
    app.connect("doctree-read", add_origin)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
