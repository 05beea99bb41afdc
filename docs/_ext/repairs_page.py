"""`{handson-repairs}`: every repair of the kit, read from the code that applies it, so that the page cannot lag."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from handson import repairs
from sphinx.application import Sphinx


def prose(text: str) -> list[nodes.Node]:
    """A sentence with `code` in it."""
    parts = re.split(r"`+([^`]+)`+", " ".join(text.split()))
    made = [nodes.literal(text=part) if index % 2 else nodes.Text(part) for index, part in enumerate(parts)]
    return [node for node in made if node.astext()]


def upstream(repair: repairs.Repair) -> list[nodes.Node]:
    """Links to the issues, or that there is none."""
    links: list[nodes.Node] = []
    for url in re.findall(r"https?://[^\s,;]+", repair.upstream):
        repository, _, number = re.sub(r"^https?://github\.com/", "", url).partition("/issues/")
        shown = f"{repository.rpartition('/')[2]} #{number}" if number else url
        links += [nodes.Text(", ")] * bool(links) + [nodes.reference("", shown, refuri=url, internal=False)]
    return links or [nodes.Text("not reported yet")]


class Repairs(Directive):
    """One section for each area, one entry for each repair."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the sections."""
        env = self.state.document.settings.env
        for module in Path(repairs.__file__).parent.glob("*.py"):
            env.note_dependency(module)
        listed = sorted(repairs.all_repairs(), key=lambda repair: repair.area)
        return [self.area(name, list(group)) for name, group in groupby(listed, key=lambda repair: repair.area)]

    def area(self, name: str, group: list[repairs.Repair]) -> nodes.section:
        """The repairs of one area."""
        section = nodes.section(ids=[nodes.make_id(f"area-{name}")], names=[nodes.fully_normalize_name(name)])
        section += nodes.title("", "", *prose(name[0].upper() + name[1:]))
        for repair in group:
            entry = nodes.section(ids=[nodes.make_id(f"repair-{repair.name}")], classes=["handson-repair"])
            entry += nodes.title("", "", nodes.literal(text=repair.name))
            fields = nodes.field_list()
            for label, body in (
                ("Symptom", prose(repair.symptom)),
                ("Cause", prose(repair.cause)),
                ("Where", prose(repair.where)),
                ("Upstream", upstream(repair)),
                ("See the fault", prose(f"`HANDSON_WITHOUT={repair.name}`")),
            ):
                fields += nodes.field(
                    "", nodes.field_name("", label), nodes.field_body("", nodes.paragraph("", "", *body))
                )
            entry += fields
            section += entry
        return section


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.add_directive("handson-repairs", Repairs)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
