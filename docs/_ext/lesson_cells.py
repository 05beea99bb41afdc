"""A lesson as the cells of a notebook: Sphinx-Gallery's blocks, with the text as Markdown that needs no Sphinx.

Sphinx-Gallery's own notebooks keep `:doc:` and directives as they are, and leave out the blocks that a page hides,
although later blocks use what they compute. Here a hidden block is a cell whose source is folded.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from sphinx_gallery.notebook import rst2md
from sphinx_gallery.py_source_parser import remove_config_comments, split_code_and_text_blocks

HIDDEN = re.compile(r"^# ?sphinx_gallery_start_ignore\n(.*?)^# ?sphinx_gallery_end_ignore[ \t]*\n?", re.M | re.S)
DOWNLOADS = re.compile(r"^\.\. handson-downloads::((?: +\S+)+(?:\n +\S.*)*)", re.M)
DOC = re.compile(r":doc:`(?:([^`<]+?)\s*<([^`>]+)>|([^`]+))`")
ROLE = re.compile(r"(?<![:\w]):[a-z][a-z:]*:`(?:([^`<]+?)\s*<[^`>]+>|([^`]+))`")
Link = Callable[[str], tuple[str, str | None]]
Cell = dict[str, Any]


def text_cell(text: str) -> Cell:
    """A Markdown cell."""
    return {"cell_type": "markdown", "metadata": {}, "source": text.strip().splitlines(keepends=True)}


def code_cell(code: str, *, folded: bool = False) -> Cell:
    """A code cell that has not run; `folded` hides its source until the reader unfolds it."""
    metadata = {"jupyter": {"source_hidden": True}, "tags": ["hide-input"]} if folded else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": code.strip("\n").splitlines(keepends=True),
    }


def title_of(page: Path) -> str:
    """The first heading of a lesson (a Python file) or of a hand-written page (Markdown)."""
    text = page.read_text(encoding="utf-8")
    found = re.search(r'"""\n?(.+)\n[=#]{3,}' if page.suffix == ".py" else r"^# (.+)$", text, re.M)
    if found is None:
        raise ValueError(f"{page.name} has no heading")
    return found[1].strip()


def scripts_of(lesson: Path) -> list[str]:
    """The training scripts that a lesson offers, relative to tutorial_src/, in its order."""
    text = re.sub(r"^# ?", "", lesson.read_text(encoding="utf-8"), flags=re.M)
    return [name for found in DOWNLOADS.finditer(text) for name in found[1].split()]


def markdown(rst: str, lesson: str, link: Link, levels: dict[tuple[str | None, str], int]) -> str:
    """Translate a lesson's text; `link` says what a page is called and where it is, if anywhere.

    `lesson` is `topic/plot_name`: what its relative links start from.
    """

    def page(match: re.Match[str]) -> str:
        label, target = match[1], match[2] or match[3]
        absolute = target.removeprefix("/") if target.startswith("/") else _joined(f"lessons/{lesson}", target)
        title, address = link(absolute)
        return f"[{label or title}]({address})" if address else f"*{label or title}*"

    text = rst2md(rst + "\n", {"notebook_images": False}, "", levels)
    text = DOWNLOADS.sub(lambda found: f"The scripts: {', '.join(f'`{name}`' for name in found[1].split())}.", text)
    text = DOC.sub(page, text)
    return ROLE.sub(lambda found: found[1] or f"`{found[2]}`", text)


def _joined(start: str, target: str) -> str:
    """A relative page name, seen from another page."""
    parts = start.split("/")[:-1]
    for part in target.split("/"):
        parts = parts[:-1] if part == ".." else [*parts, part]
    return "/".join(parts)


def cells(lesson: Path, link: Link, *, below: int = 0) -> list[Cell]:
    """The cells of one lesson; its headings are `below` levels lower than they are on its own page."""
    name = f"{lesson.parent.name}/{lesson.stem}"
    numbers = count(1 + below)
    levels: dict[tuple[str | None, str], int] = defaultdict(lambda: next(numbers))
    made = []
    for kind, content, _ in split_code_and_text_blocks(lesson)[1]:
        if kind == "text":
            made.append(text_cell(markdown(content, name, link, levels)))
            continue
        for index, part in enumerate(HIDDEN.split(content)):
            if code := remove_config_comments(part).strip("\n"):
                made.append(code_cell(code, folded=index % 2 == 1))
    return made


def numbered(cells_: list[Cell]) -> dict[str, Any]:
    """A notebook (format 4.5) of these cells. Their ids say where they stand, so that a rebuild changes no byte."""
    return {
        "cells": [{"id": f"cell-{index}", **cell} for index, cell in enumerate(cells_)],
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python", "file_extension": ".py", "mimetype": "text/x-python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
