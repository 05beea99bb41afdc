"""One function of a training script on the page, read from the file that was run."""

from __future__ import annotations

import ast

from handson import sources
from handson.show.diff import Code, _file, _highlighted


def excerpt(name: str, function: str) -> Code:
    """Return a function of a training script as it is, for example `opt/train.py`, `step`.

    Raises:
        LookupError: when the script has no such function.
    """
    text = sources.find_script(name).read_text(encoding="utf-8")
    found = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef) and node.name == function]
    if not found:
        raise LookupError(f"{name} has no function {function}")
    first, last = found[0].lineno - 1, found[0].end_lineno
    caption = f"{_file(name)}, {function}(), from line {first + 1}"
    lines = text.splitlines()[first:last]
    return Code(caption, caption, lines, [f"{line}\n" for line in _highlighted("\n".join(lines) + "\n")])
