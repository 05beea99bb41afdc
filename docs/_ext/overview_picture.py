"""`{handson-overview} topic/plot_name ...`: the landing page's picture, drawn from the runs that those lessons show.

So it is what the lessons show, however they got it: live, cached or recorded; the line below it says which.
The same picture is on the card that other sites show for a link to this one.
"""

from __future__ import annotations

from pathlib import Path

import origin
import pictures
from docutils import nodes
from docutils.parsers.rst import Directive
from handson.show import overview
from shown_runs import note_file, shown_runs
from sphinx.application import Sphinx

CARD = "_static/social_card.png"


class Overview(Directive):
    """The picture for the light and the dark page, what it shows in a sentence, and where its runs come from."""

    required_arguments = 1
    optional_arguments = 9
    final_argument_whitespace = False

    def run(self) -> list[nodes.Node]:
        """Draw it; complain about a lesson that measured nothing."""
        env = self.state.document.settings.env
        shown = []
        for lesson in self.arguments:
            env.note_dependency(note_file(lesson))
            found = shown_runs(lesson)
            if not found:
                raise self.error(f"the lesson {lesson} shows no run")
            shown += found
        runs = overview.ways(entry.run for entry in shown)
        made = pictures.both_themes(env.app, overview.overview(runs), "overview")
        env.handson_social_card = overview.social_card(runs, env.config.project, env.config.handson_lead)
        used = {id(run) for run in runs.values()}
        lines = "".join(origin.lines([entry for entry in shown if id(entry.run) in used]))
        caption = nodes.paragraph("", overview.sentence(runs), classes=["handson-caption"])
        said = f'<div class="handson-origin" role="note" aria-label="Origin of the picture">{lines}</div>'
        return [*made, caption, nodes.raw("", said, format="html")]


def write_card(app: Sphinx, exception: Exception | None) -> None:
    """Put the card beside the other static files; it is kept with the pages between builds."""
    card = getattr(app.env, "handson_social_card", None)
    if exception is None and card and app.builder.format == "html":
        (Path(app.outdir) / CARD).write_bytes(card)


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_config_value("handson_lead", "", "env")
    app.add_directive("handson-overview", Overview)
    app.connect("build-finished", write_card, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
