"""The kit's docstrings as reST: they write code in single backticks, as a person reads it in an editor."""

from __future__ import annotations

import re

from sphinx.application import Sphinx


def double_backticks(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Change the lines in place."""
    lines[:] = [re.sub(r"(?<![`:\w])`([^`]+)`(?!`)", r"``\1``", line) for line in lines]


def setup(app: Sphinx) -> dict[str, bool]:
    """Run before napoleon, which reads `Args:` and `Raises:`."""
    app.connect("autodoc-process-docstring", double_backticks, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
