"""`{handson-lessons} topic`: the contents list of a topic on the landing page, true to what is in the gallery.

One line a lesson: `plot_name: Title` links to a lesson that is there, `Title` alone announces one. A lesson of the
gallery that no list names, or a name without its lesson, is an error: the landing page must not lag. The gallery
shows a topic's lessons in the order of its list.
"""

from __future__ import annotations

from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx import addnodes
from sphinx.application import Sphinx

LANDING = Path(__file__).resolve().parent.parent / "index.md"


class ReadingOrder:
    """Sphinx-Gallery's sort key: a lesson's place on the landing page."""

    def __init__(self, folder: str) -> None:
        self.contents = LANDING.read_text(encoding="utf-8")

    def __call__(self, file: str) -> int:
        """Lessons that the page does not name come last; the directive complains about them."""
        place = self.contents.find(f"{Path(file).stem}: ")
        return place if place >= 0 else len(self.contents)


class Lessons(Directive):
    """The list of one topic."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Make the list; complain about names and lessons that do not match."""
        topic = self.arguments[0]
        env = self.state.document.settings.env
        folder = Path(env.app.confdir) / "gallery" / topic
        there = {path.stem for path in folder.glob("plot_*.py")}
        # A file that appears or goes changes the folder's date: the page is then read again.
        env.note_dependency(folder if folder.is_dir() else folder.parent)
        items, named = nodes.bullet_list(), set()
        for line in filter(None, map(str.strip, self.content)):
            name, _, title = line.partition(": ") if line.startswith("plot_") else ("", "", line)
            text = nodes.inline("", title)
            if name:
                named.add(name)
                target = f"/lessons/{topic}/{name}"
                text = addnodes.pending_xref("", text, refdomain="std", reftype="doc", reftarget=target)
                text.update_all_atts({"refdoc": env.docname, "refexplicit": True, "refwarn": True})
            items += nodes.list_item("", nodes.paragraph("", "", text))
        if missing := there - named:
            raise self.error(f"the contents of {topic} name no {', '.join(sorted(missing))}; add `name: Title`")
        if gone := named - there:
            raise self.error(f"the contents of {topic} name {', '.join(sorted(gone))}, which the gallery does not have")
        return [items]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("handson-lessons", Lessons)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
