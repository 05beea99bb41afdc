"""Tables that read well on a page, in a notebook and in a terminal, from the same rows."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from handson.show import script
from handson.show.style import number

# A cell that reads as one number with a unit is set to the right, so that magnitudes can be compared by eye.
_NUMERIC = re.compile(r"[-−<≤~]?\s?[\d.,]+( × 10[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)?( ?(?!×\s)[^\d\s]{1,4})?( [a-z/]+)?|—|not a number|∞")
# A cell with more characters may wrap where there is no room: a phrase into short lines, a sentence into longer ones.
_PHRASE, _LONG = 18, 34


@dataclass(frozen=True)
class Cell:
    """A cell whose HTML is more than its text: a drawing, a link, subscripts."""

    text: str
    html: str

    def __str__(self) -> str:
        return self.text


def code(text: str) -> Cell:
    """Return a name out of the code; on a narrow page it may break after a dot or an underscore."""
    breakable = re.sub(r"([._])", r"\1<wbr>", escape(text))
    return Cell(text, f"<code>{breakable}</code>")


def link(text: str, url: str) -> Cell:
    """Return a link; in a terminal the address follows the text."""
    return Cell(f"{text} <{url}>", f'<a href="{escape(url)}">{escape(text)}</a>')


def failure(text: str) -> Cell:
    """Return a text in the one colour that means a failure."""
    return Cell(text, f'<strong class="failure">{escape(text)}</strong>')


def soft(text: str) -> Cell:
    """Return a lesser text: what belongs to a cell's first line but is not what the eye should find."""
    return Cell(text, f'<span class="soft">{escape(text)}</span>')


def lines(*parts: object) -> Cell:
    """Return a cell of several lines; empty parts are left out."""
    kept = [cell(part) for part in parts if str(part)]
    return Cell("; ".join(part.text for part in kept), "<br>".join(part.html for part in kept))


def cell(value: object) -> Cell:
    """Return any value as a cell: numbers with three significant digits, None as a dash."""
    if isinstance(value, Cell):
        return value
    if isinstance(value, bool):
        return cell("yes" if value else "no")
    text = number(value) if value is None or isinstance(value, int | float) else str(value)
    return Cell(text, escape(text))


@dataclass(frozen=True)
class Table:
    """A table: the first column names the row, `caption` says what it shows, `notes` what to know about it."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str
    notes: Sequence[object] = ()

    def __post_init__(self) -> None:
        """Refuse ragged rows; in a plain script, where nobody displays a last expression, print."""
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"{self.caption}: {len(self.columns)} columns, but a row has {len(row)} cells")
        if script.running():
            print(f"{self}\n")

    def _cells(self) -> list[list[Cell]]:
        return [[cell(value) for value in row] for row in self.rows]

    def _numeric(self, cells: list[list[Cell]]) -> list[bool]:
        return [
            index > 0 and all(_NUMERIC.fullmatch(row[index].text) for row in cells)
            for index in range(len(self.columns))
        ]

    def _repr_html_(self) -> str:
        cells = self._cells()
        numeric = self._numeric(cells)
        head = "".join(
            f'<th scope="col"{" class=number" * right}>{escape(name)}</th>'
            for name, right in zip(self.columns, numeric, strict=True)
        )
        body = []
        for first, *others in cells:
            tds = "".join(
                f"<td{_class(part, right)}>{part.html}</td>" for part, right in zip(others, numeric[1:], strict=True)
            )
            body.append(f'<tr><th scope="row"{_class(first, False)}>{first.html}</th>{tds}</tr>')
        notes = "".join(f"<p>{cell(note).html}</p>" for note in self.notes)
        return (
            f'{_style()}<div class="handson-table">'
            f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(self.caption)}"><table>'
            f"<caption><span>{escape(self.caption)}</span></caption><thead><tr>{head}</tr></thead>\n<tbody>"
            + "\n".join(body)
            + f"</tbody></table></div>{f'<div class=notes>{notes}</div>' if notes else ''}</div>"
        )

    def __str__(self) -> str:
        cells = self._cells()
        numeric = self._numeric(cells)
        texts = [list(self.columns)] + [[part.text for part in row] for row in cells]
        widths = [max(len(row[index]) for row in texts) for index in range(len(self.columns))]
        drawn = [
            "  ".join(
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(row, widths, numeric, strict=True)
            ).rstrip()
            for row in texts
        ]
        drawn.insert(1, "  ".join("─" * width for width in widths))
        notes = [line for note in self.notes for line in textwrap.wrap(str(cell(note)), 100)]
        return "\n".join([self.caption, "", *drawn, *([""] if notes else []), *notes])

    __repr__ = __str__


def _class(part: Cell, right: bool) -> str:
    if right:
        return " class=number"
    if len(part.text) <= _PHRASE:
        return ""
    long = len(part.text) > _LONG
    plain, source = "prose" if long else "phrase", "command" if long else ""
    found = {escape(part.text): plain, code(part.text).html: source}.get(part.html, "")
    return f" class={found}" if found else ""


def _style() -> str:
    """Return the rules for a notebook, which has no stylesheet of ours; the site links show.css itself."""
    shell = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:
        return ""
    return f"<style>{Path(__file__).with_name('show.css').read_text()}</style>"
