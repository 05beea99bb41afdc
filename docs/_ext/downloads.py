"""`.. handson-downloads:: hybrid_parallel/train.py ...`: what a lesson's reader can take along.

The training scripts it names, the kit's wheel with the commands that make the lesson run elsewhere, and the raw
data of every run that the page shows. The lesson's own script and notebook follow: Sphinx-Gallery puts them last.
"""

from __future__ import annotations

import os
from pathlib import Path

import kit_wheel
from docutils import nodes
from docutils.parsers.rst import Directive
from shown_runs import shown_runs
from sphinx import addnodes
from sphinx.application import Sphinx

SOURCES = "tutorial_src"


class Downloads(Directive):
    """Links; Sphinx copies the files beside the page, so that what is offered is what was run."""

    required_arguments = 1
    optional_arguments = 99
    has_content = False

    def run(self) -> list[nodes.Node]:
        """Make the list of scripts, the commands, and the folded list of raw data."""
        env = self.state.document.settings.env
        self.docname, self.source, config = env.docname, env.app.srcdir, Path(env.app.confdir)
        scripts = [config / SOURCES / name for name in self.arguments]
        for name, path in zip(self.arguments, scripts, strict=True):
            if not path.is_file():
                raise self.error(f"there is no file {SOURCES}/{name} to download")
        made: list[nodes.Node] = []
        lesson = self.docname.removeprefix("lessons/")
        offered = list(zip(self.arguments, scripts, strict=True))
        if wheel := kit_wheel.wheel(config):
            offered.append((wheel.name, wheel))
            commands = kit_wheel.commands(wheel.name, env.app.config.html_baseurl, Path(lesson).name)
            made += [
                nodes.paragraph("", kit_wheel.where(env.app.config.html_baseurl)),
                nodes.literal_block(commands, commands, language="bash"),
                nodes.paragraph("", kit_wheel.WHY),
            ]
        made.append(self.links(offered, "handson-downloads"))
        if runs := shown_runs(lesson):
            summary = f"Raw data: {len(runs)} run{'s' * (len(runs) != 1)}, one JSON file each"
            made.append(nodes.raw("", f'<details class="handson-data"><summary>{summary}</summary>', format="html"))
            made += [
                self.links([(shown.file.name, shown.file) for shown in runs]),
                nodes.raw("", "</details>", format="html"),
            ]
        return made

    def links(self, offered: list[tuple[str, Path]], *classes: str) -> nodes.bullet_list:
        """One item for each file."""
        items = nodes.bullet_list(classes=list(classes))
        for name, path in offered:
            target = "/" + os.path.relpath(path, self.source)
            link = addnodes.download_reference("", "", nodes.literal(text=name), reftype="download", reftarget=target)
            link.update_all_atts({"refdoc": self.docname, "refexplicit": True})
            items += nodes.list_item("", nodes.paragraph("", "", link))
        return items


def setup(app: Sphinx) -> dict[str, bool]:
    """Offer the directive."""
    app.setup_extension("notebooks")
    app.add_directive("handson-downloads", Downloads)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
