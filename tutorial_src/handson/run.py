"""A run: what one job printed, measured and was made of; the same object whether live, cached or recorded."""

from __future__ import annotations

import html
import re
from dataclasses import dataclass, field
from typing import Any

WAY = {
    "live": "Run live for this page",
    "cached": "Run live on this host earlier (same code, same host)",
    "recorded": "Recorded",
}


@dataclass
class Run:
    """One job of `ranks` processes and everything it reported.

    `way` is how this run was obtained (`live`, `cached` or `recorded`), `note` what the reader must know about it
    (for example that a recording exists but was made by other code), `error` the text of a failure that the
    lesson expected, `seconds` the wall-clock time of the job, `without` the repairs that were left out to show a fault.
    """

    script: str
    argv: list[str]
    ranks: int
    preset: str
    command: str
    key: str
    files: dict[str, str]
    provenance: dict[str, Any]
    log: list[str]
    data: list[dict[str, Any]]
    seconds: float
    error: str | None = None
    lessons: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)
    way: str = "live"
    note: str = ""

    def rows(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        """The rows of one kind, in order of rank and then of arrival; of one rank where `rank` is given."""
        return [row for row in self.data if row["kind"] == kind and rank in (None, row["rank"])]

    def value(self, kind: str, field_name: str, rank: int = 0) -> Any:
        """One field of the last row of `kind` that `rank` recorded.

        Raises:
            LookupError: naming what the run does hold, when there is no such row or field.
        """
        rows = self.rows(kind, rank)
        if not rows or field_name not in rows[-1]:
            held = sorted({row["kind"] for row in self.data if row["rank"] == rank})
            raise LookupError(f"{self.title()}: rank {rank} recorded no {kind}.{field_name}; it recorded {held}")
        return rows[-1][field_name]

    def title(self) -> str:
        """The run in one short line, as status tables and progress lines name it."""
        left_out = f" without the repair {', '.join(self.without)}" if self.without else ""
        return " ".join([self.script, *self.argv]) + f" on {self.ranks} rank{'s' * (self.ranks != 1)}{left_out}"

    def provenance_line(self) -> str:
        """Where, with what and when these numbers were made."""
        made = self.provenance
        parts = [
            f"{WAY[self.way]} on {made['hardware']}",
            f"{self.ranks} rank{'s' * (self.ranks != 1)} over {made['backend']}",
            f"PyTorch {made['torch']}",
            f"Colossal-AI {made['colossalai']}",
            f"Python {made['python']}",
            made["date"][:16].replace("T", " ") + " UTC",
            f"code {self.key[:10]}",
        ]
        return " · ".join(parts)

    def __str__(self) -> str:
        return "\n".join(filter(None, [self.title(), self.provenance_line(), self.note]))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        words = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(self.note))
        note = f'<p class="handson-note">{words}</p>' if words else ""
        return (
            f'<div class="handson-provenance" data-way="{self.way}" data-key="{self.key}">'
            f"<p>{html.escape(self.provenance_line())}</p>"
            f"<p><code>{html.escape(self.command)}</code></p>{note}</div>"
        )
