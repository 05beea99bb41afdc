"""`{handson-error} path ...`: an error message with what to do about it, checked against the sources.

The first paragraph of the directive is the message as the file writes it, with `…` where it puts a value; the rest
is the advice. A message that the file does not hold any more is an error: readers search for what they see.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from handson import repairs
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

GAP = "…"
QUOTED = re.compile(r"^```\{handson-error\} (\S+)\n(.+?)\n\n", re.M | re.S)

logger = logging.getLogger(__name__)


def sentences(source: str) -> list[str]:
    """Return every text in a piece of Python, with a gap where an f-string or a logger's `%s` puts a value."""
    found, inside = [], set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else GAP for part in node.values]
            found.append(" ".join("".join(parts).split()))
            inside.update(id(part) for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            found.append(" ".join(re.sub(r"%[sd]", GAP, node.value).split()))
    return found


def holds(file: Path, message: str) -> bool:
    """Whether a Python file writes this message."""
    return any(message in text for text in sentences(file.read_text(encoding="utf-8")))


def look_ahead(app: Sphinx) -> None:
    """Check the messages of all pages before the lessons run: pages are read after them, on a GPU host much later.

    Raises:
        SystemExit: after a line that names the page, and the message that its file does not hold.
    """
    for page in sorted(Path(app.srcdir).glob("*.md")):
        for name, written in QUOTED.findall(page.read_text(encoding="utf-8")):
            path, message = Path(app.confdir) / name, " ".join(written.split())
            if not path.is_file() or not holds(path, message):
                logger.error("docs/%s: %s does not say: %s", page.name, name, message)
                raise SystemExit(1)  # anything else would end with a dump of Sphinx


class ErrorMessage(SphinxDirective):
    """One message and the advice."""

    required_arguments = 1
    has_content = True

    def run(self) -> list[nodes.Node]:
        """Check the message, then make an entry of a definition list."""
        path = Path(self.env.app.confdir) / self.arguments[0]
        lines = list(self.content)
        end = lines.index("") if "" in lines else len(lines)
        message = " ".join(" ".join(lines[:end]).split())
        if not path.is_file() or not holds(path, message):
            raise self.error(f"{self.arguments[0]} does not say: {message}")
        self.env.note_dependency(path)
        advice = nodes.definition()
        self.state.nested_parse(StringList(lines[end + 1 :], source=self.env.docname), self.content_offset, advice)
        if not advice.children:
            raise self.error(f"there is no advice for: {message}")
        term = nodes.term("", "", nodes.literal(text=message), ids=[nodes.make_id(message)[:60]])
        return [nodes.definition_list("", nodes.definition_list_item("", term, advice), classes=["handson-errors"])]


class Symptoms(SphinxDirective):
    """The errors of upstream packages that the kit repairs: each repair's symptom, with a link to the repair."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the list, in the order of the repairs page."""
        for module in Path(repairs.__file__).parent.glob("*.py"):
            self.env.note_dependency(module)
        made = nodes.definition_list(classes=["handson-errors"])
        for repair in sorted(repairs.all_repairs(), key=lambda repair: repair.area):
            if not re.search("Error|terminate called", repair.symptom):
                continue
            link = nodes.reference("", "", internal=True, refuri=f"repairs.html#repair-{nodes.make_id(repair.name)}")
            link += nodes.literal(text=repair.name)
            term = nodes.term("", "", nodes.literal(text=" ".join(repair.symptom.replace("`", "").split())))
            body = nodes.paragraph("", "", nodes.Text("Repair "), link, nodes.Text(f", for {repair.area}."))
            made += nodes.definition_list_item("", term, nodes.definition("", body))
        return [made]


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directives."""
    app.add_directive("handson-error", ErrorMessage)
    app.add_directive("handson-symptoms", Symptoms)
    app.connect("builder-inited", look_ahead, priority=90)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
