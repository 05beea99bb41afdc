"""The server's interface, as its own OpenAPI document has it: operations, statuses, and the document itself."""

from __future__ import annotations

import json
from html import escape
from typing import Any

from handson.show.conditions import RunLike
from handson.show.folded import Answer
from handson.show.tables import Table, code, lines, soft


def openapi_table(run: RunLike) -> Table:
    """The operations of the server's own OpenAPI document, the fields they take and the statuses they answer with."""
    document = run.rows("openapi")[-1]["document"]
    body = []
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            fields = [soft("nothing")]
            for part in operation.get("requestBody", {}).get("content", {}).values():
                fields = [_field(*pair) for pair in _schema(document, part["schema"])["properties"].items()]
            body.append([code(f"{method.upper()} {path}"), lines(*fields), lines(*operation["responses"])])
    columns = ["operation", "takes", "answers"]
    return Table(columns, body, f"{document['info']['title']}: what /openapi.json says")


def status_table(run: RunLike) -> Table:
    """What each status means, in the document's own words."""
    found: dict[str, str] = {}
    for methods in run.rows("openapi")[-1]["document"]["paths"].values():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                found.setdefault(status, answer["description"])
    return Table(["status", "means"], sorted(found.items()), "Its answers")


def openapi_document(run: RunLike) -> Answer:
    """The whole document, folded."""
    text = json.dumps(run.rows("openapi")[-1]["document"], indent=1, ensure_ascii=False)
    return Document(text)


class Document(Answer):
    """A text that a reader unfolds, in its own layout."""

    def __init__(self, text: str) -> None:
        super().__init__(*text.splitlines(), summary="Show openapi.json")

    def _repr_html_(self) -> str:
        text = escape("\n".join(self.lines))
        return (
            f'<details class="handson-answer"><summary>{escape(self.summary)}</summary>'
            f'<pre tabindex="0" style="max-height: 30rem; overflow: auto">{text}</pre></details>'
        )

    def __str__(self) -> str:
        return f"openapi.json: {len(self.lines)} lines"

    __repr__ = __str__


def _schema(document: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema, followed through its reference."""
    name = schema.get("$ref", "").rpartition("/")[2]
    return document["components"]["schemas"][name] if name else schema


def _field(name: str, schema: dict[str, Any]) -> str:
    options = [part for part in schema.get("anyOf", [schema]) if part.get("type") != "null"]
    part = options[0]
    marks = {"minimum": "≥ ", "exclusiveMinimum": "> ", "maximum": "≤ ", "exclusiveMaximum": "< "}
    marks["minLength"] = "length ≥ "
    bounds = [mark + _whole(part[key]) for key, mark in marks.items() if key in part]
    default = [f"default {schema['default']}"] if schema.get("default") is not None else []
    optional = ["optional"] if "anyOf" in schema else []
    return f"{name}: {', '.join([part.get('type', 'any'), *bounds, *default, *optional])}"


def _whole(value: float) -> str:
    """A bound as a person writes it: 2^31 for a large power of two."""
    power = int(value).bit_length() - 1
    return f"2^{power}" if value > 1e6 and value == 2**power else f"{value:g}"
