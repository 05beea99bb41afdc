"""A solver's plan as raw data: its rows (see plan_tables) as CSV, and a table that offers them to download."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from handson.show.plan_fold import TENSORS, Row, letters
from handson.show.tables import Table

TIMES = ("compute_ms", "communication_ms")
SIZES = ("activation_bytes", "parameter_bytes", "buffer_bytes")


@dataclass(frozen=True)
class DataTable(Table):
    """A table that scrolls in both directions and carries its raw data, `csv`, as a file to download."""

    csv: str = ""
    filename: str = "table.csv"
    about: str = ""

    def _repr_html_(self) -> str:
        html = super()._repr_html_().replace('<div class="scroll"', '<div class="scroll tall"', 1)
        address = f"data:text/csv;charset=utf-8;base64,{base64.b64encode(self.csv.encode()).decode()}"
        link = f'<a href="{address}" download="{escape(self.filename)}">Raw data as CSV</a>'
        offer = f'<div class="notes"><p>{link}{escape(self.about and f": {self.about}")}</p></div>'
        return f"{html.removesuffix('</div>')}{offer}</div>"

    __repr__ = Table.__str__


def plan_csv(nodes: Iterable[Row]) -> str:
    """The rows "node" as CSV text, nothing folded or rounded: times in milliseconds, sizes in bytes."""
    fields = ["plan", "name", "op", "strategy", *(f"{t} {what}" for t in TENSORS for what in ("sharding", "shape"))]
    table = []
    for node in nodes:
        tensors = [node.get(tensor) or {"sharding": (), "shape": ()} for tensor in TENSORS]
        cut = [part for t in tensors for part in (letters(t["sharding"]), "x".join(map(str, t["shape"])))]
        plain = [node.get(field, "") for field in ("plan", "name", "op", "strategy")]
        table.append([*plain, *cut, *[node.get(field, "") for field in (*TIMES, *SIZES)]])
    return _csv([*fields, *TIMES, *SIZES], table)


def edge_csv(edges: Iterable[Row]) -> str:
    """The rows "edge" as CSV text; times in milliseconds."""
    table = [
        [edge.get("plan", ""), edge["source"], edge["target"], letters(edge["before"]), letters(edge["after"]),
         "x".join(map(str, edge["shape"])), edge["ms"]]
        for edge in edges
    ]  # fmt: skip
    return _csv(["plan", "source", "target", "before", "after", "shape", "ms"], table)


def _csv(head: Sequence[str], table: Iterable[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(table)
    return text.getvalue()
