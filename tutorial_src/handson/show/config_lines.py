"""The lines of a configuration file that a lesson asks the reader to change, as a diff made from the file itself."""

from __future__ import annotations

import re
from html import escape

from handson import sources
from handson.show.diff import Code


def changed(config: str, *assignments: str) -> str:
    """Return the text of a configuration file with KEY=value put in the place of the lines that set these keys.

    Raises:
        LookupError: when no line sets the key.
    """
    text = sources.find_script(config).read_text(encoding="utf-8")
    for assignment in assignments:
        key = assignment.partition("=")[0]
        line = re.compile(rf"^{re.escape(key)} = [^#\n]*?(?=  #|$)", re.MULTILINE)
        if not line.search(text):
            raise LookupError(f"{config} has no line that sets {key}")
        text = line.sub(assigned(assignment), text, count=1)
    return text


def assigned(assignment: str) -> str:
    """Return KEY=value, as the command line takes it, as a line of Python: `TENSOR_PARALLEL_MODE = "2d"`."""
    key, _, value = assignment.partition("=")
    return f"{key} = {value}" if re.fullmatch(r"[\d.]+|None|True|False", value) else f'{key} = "{value}"'


def config_change(config: str, *assignments: str) -> Code:
    """Return the lines that these KEY=value change in a configuration file, before and after."""
    before = sources.find_script(config).read_text(encoding="utf-8").splitlines()
    lines, html = [], []
    for number, (old, new) in enumerate(zip(before, changed(config, *assignments).splitlines(), strict=True), 1):
        if old != new:
            lines += [f"@@ line {number} @@", f"-{old}", f"+{new}"]
            html.append(f'<span class="hunk">{lines[-3]}\n</span>')
            html += [f"<del>-{escape(old)}\n</del>", f"<ins>+{escape(new)}\n</ins>"]
    name = config.rpartition("/")[2]
    count = len(lines) // 3
    return Code(f"{name}: {count} line{'s' * (count != 1)} changed", f"Changes to {name}", lines, html)
