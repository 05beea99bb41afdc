"""The tables of the lessons: each takes runs, reads their rows, and says what its numbers are compared with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from handson.show import sharding
from handson.show.conditions import (
    RunLike,
    Runs,
    by_conditions,
    communication,
    conditions,
    crowded,
    hardware,
    largest,
    last,
    machine,
    per_rank,
)
from handson.show.diagram import block_diagram, rank_keys
from handson.show.style import number, percent, quantity, relative, shape
from handson.show.tables import Cell, Table, code, failure, lines, link, soft


def sharding_table(run: RunLike, containing: str = "", *, caption: str = "") -> Table:
    """Every parameter, or those whose name contains a text: shapes, split, and which rank holds which block."""
    every, places = run.rows("parameter"), sharding.coordinates(run)
    rows = [row for row in every if containing in row["name"]]
    columns = ["parameter", "who holds which block", "split", "whole shape", "shape on a rank"]
    body, remarks = [], dict.fromkeys(note for row in rows if (note := _remark(row)))
    marks = dict(zip(remarks, "abcdefghijklmnopqrstuvwxyz", strict=False))
    for row in rows:
        split, count = sharding.split(row, places), row.get("count") or 1
        local = sorted({shape(shard["local_shape"]) for shard in row["shards"]})
        layer = ", ".join(filter(None, [row.get("layer"), f"in {count} blocks" if count > 1 else ""]))
        body.append(
            [
                lines(code(row["name"]), soft(layer)),
                block_diagram(row),
                lines(_marked(split, marks.get(_remark(row), "")), soft(split.where)),
                shape(row["global_shape"]),
                lines(*local),
            ]
        )
    whole = sum(sharding.elements(row) for row in every)
    held = per_rank(run, "parameters_total", "count")
    axes = sorted({name for place in places.values() for name in place}, key=list(_first(places)).index)
    notes: list[object] = [Cell(f"({m}) {note}", f"<sup>{m}</sup> {escape(note)}") for note, m in marks.items()]
    if run.ranks > 1:
        notes.append(rank_keys(list(range(run.ranks))))
        sizes = [f"{name} of {len({p.get(name) for p in places.values()})}" for name in axes]
        notes.append(f"Mesh axes: {', '.join(sizes) or 'none'}. Drawings are not to scale.")
        notes += _notation(places)
    if held:
        notes.append(
            f"The model has {quantity(whole)} parameters; the fullest rank holds {quantity(max(held.values()))} "
            f"({percent(max(held.values()), whole)}), the emptiest {quantity(min(held.values()))}."
        )
    whose = f"the parameters of {containing}" if containing else "every parameter"
    division = next((f": {row['title']}" for row in run.rows("mesh") if row.get("title")), "")
    return Table(
        columns,
        body,
        caption or f"Where {whose} {'are' if containing else 'is'}, on {_ranks(run.ranks)}{division}",
        notes,
    )


def parallel_comparison(runs: Runs, *, baseline: str, caption: str = "") -> Table:
    """Each way of running the same step, beside the baseline: time, throughput, memory, parity."""
    base = runs[baseline]
    base_time = last(base, "step_time", "median_ms")
    (place, _), *others = by_conditions(runs)
    columns = ["run", "ranks", *["hardware"] * bool(others), "step time", f"time ÷\u00a0{baseline}", "images/s"]
    columns += ["peak memory", "parameters", "activations", "loss difference"]
    body, other, elsewhere, turns = [], [], [], []
    for label, run in runs.items():
        time = last(run, "step_time", "median_ms")
        comparable = conditions(run) == conditions(base)
        if not comparable:
            other.append(label)
        elif machine(run) != machine(base):
            elsewhere.append(label)
        if crowded(run):
            turns.append(label)
        body.append(
            [
                label,
                run.ranks,
                *[hardware(run)] * bool(others),
                quantity(time, "ms"),
                relative(time, base_time) if comparable else "—",
                quantity(last(run, "step_time", "images_per_second")),
                quantity(largest(run, "memory", "peak_bytes"), "B"),
                quantity(largest(run, "parameters_total", "count")),
                quantity(largest(run, "memory", "activation_bytes"), "B"),
                number(last(run, "parity", "max_loss_difference")),
            ]
        )
    notes = [] if others else [f"Every run: {place}."]
    notes += [
        "Step time is the median over the timed steps. Memory, parameters and activations (what is saved for the "
        "backward pass) are those of the fullest rank. Loss difference: the largest against one process, same "
        "weights, same batches."
    ]
    if other:
        notes.append(
            f"— in the column time ÷ {baseline}: {', '.join(other)} ran on other hardware or at another size than "
            f"{baseline}, so a ratio would mean nothing."
        )
    if elsewhere:
        notes.append(
            f"{', '.join(elsewhere)} ran on another host than {baseline}, with the same kind of device; what its "
            "own processor does is in the ratio, too."
        )
    if turns:
        notes.append(
            f"{', '.join(turns)}: more ranks than CPU cores, so the ranks took turns; these times show that it "
            "works, not how fast it is."
        )
    return Table(columns, body, caption or f"The same training step, compared with {baseline}", notes)


def communication_table(runs: RunLike | Runs, *, caption: str = "") -> Table:
    """What one training step communicates: per collective and group the calls and the bytes of one rank."""
    several = isinstance(runs, Mapping)
    body, uneven = [], False
    for label, run in (runs if several else {"": runs}).items():
        found: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
        for row in communication(run):
            found.setdefault((row["collective"], row["group"], row["group_size"]), []).append(row)
        for (collective, group, size), rows in found.items():
            top = {name: max(row[name] for row in rows) for name in ("calls", "bytes", "wire_bytes")}
            uneven |= any(row[name] != top[name] for row in rows for name in top) or len(rows) < run.ranks
            cells = [collective, f"{group} of {size}", top["calls"]]
            cells += [quantity(top["bytes"], "B"), quantity(top["wire_bytes"], "B")]
            body.append([label, *cells] if several else cells)
    columns = ["collective", "group", "calls", "payload", "sent over the wire"]
    notes = [
        "Per rank and training step. Payload: the bytes of the local tensors handed to the collective; sent over "
        "the wire: what a rank must send when the collective runs as a ring."
    ]
    if uneven:
        notes.append("Ranks differ; each number is the largest of any rank.")
    default = "What one training step communicates"
    return Table((["run"] if several else []) + columns, body, caption or default, notes)


def formula_table(rows: Iterable[Mapping[str, Any]], *, caption: str = "Formula against count") -> Table:
    """Rows of {what, formula, expected, counted, unit}; further keys become columns after `what`."""
    rows = list(rows)
    extra = [key for key in rows[0] if key not in ("what", "formula", "expected", "counted", "unit")]
    body = [
        [
            row["what"],
            *[row.get(key) for key in extra],
            row["formula"],
            quantity(row["expected"], row.get("unit", "")),
            quantity(row["counted"], row.get("unit", "")),
            relative(row["counted"], row["expected"]),
        ]
        for row in rows
    ]
    return Table(["what", *extra, "formula", "expected", "counted", "counted ÷ expected"], body, caption)


def parity_table(runs: Runs, *, tolerance: float = 1e-5, caption: str = "") -> Table:
    """Whether each mode trains the same model as one process, to within `tolerance` of the loss."""
    body = []
    for label, run in runs.items():
        worst = last(run, "parity", "max_loss_difference")
        good = worst is not None and worst <= tolerance
        body.append(
            [
                label,
                run.ranks,
                last(run, "parity", "steps"),
                number(worst),
                number(last(run, "parity", "max_weight_difference")),
                number(last(run, "parity", "weights_moved")),
                "equal" if good else failure("not checked" if worst is None else "DIFFERENT"),
            ]
        )
    columns = ["run", "ranks", "steps", "loss difference", "weight difference", "weights moved", "verdict"]
    notes = [
        f"Largest difference from the single-process model over all steps; equal means a loss within "
        f"{number(tolerance)}. Weights moved: how far training itself changed a weight, for scale."
    ]
    return Table(columns, body, caption or "Each mode trains the same model", notes)


PROVENANCE = ("hardware", "links", "driver", "cuda", "backend", "cpu", "cores", "python", "torch", "colossalai")
PROVENANCE += ("titans", "transformers", "date", "commit", "command")


def provenance_table(runs: RunLike | Runs, *, caption: str = "Where these numbers come from") -> Table:
    """Hardware, versions, date and command of a run, or of several side by side."""

    def chip(words: str) -> str:
        return words.split(" (")[0]  # the rows cpu and cores follow

    named = runs if isinstance(runs, Mapping) else {"value": runs}
    written = {"hardware": chip, "command": code, "date": lambda date: date[:16].replace("T", " ") + " UTC"}
    body: list[Sequence[Any]] = [["obtained", *[run.way for run in named.values()]]]
    body.append(["preset", *[run.preset for run in named.values()]])
    for field in PROVENANCE:
        values = [run.provenance.get(field) for run in named.values()]
        if any(values):
            shown = written.get(field, str)
            body.append([field, *[shown(value) if value else "—" for value in values]])
    return Table(["property", *named], body, caption)


def paper_table(rows: Iterable[Mapping[str, Any]], *, caption: str = "The paper and this page") -> Table:
    """Rows of {claim, paper, measured, source: (text, url), why}: `why` says what explains a difference."""
    rows = list(rows)
    explained = any(row.get("why") for row in rows)
    body = []
    for row in rows:
        cells = [row["claim"], row["paper"], row["measured"], link(*row["source"])]
        body.append([*cells, row.get("why", "")] if explained else cells)
    return Table(["claim", "paper", "measured", "source", *(["why"] if explained else [])], body, caption)


def _remark(row: Mapping[str, Any]) -> str:
    return (row.get("notes") or "").strip("; ")


def _marked(split: sharding.Split, mark: str) -> Cell:
    """Return the notation with the mark of its remark: many rows share one, so it stands under the table once."""
    return Cell(f"{split} ({mark})", f"{split.html} <sup>{mark}</sup>") if mark else Cell(str(split), split.html)


def _notation(places: dict[int, dict[str, int]]) -> list[Cell]:
    """Return the sentence that explains the split column, with this mesh's own axes; none where nothing is split."""
    axes = [name for name in _first(places) if name not in sharding.COARSE][-2:]
    if not axes:
        return []
    whole = "a dimension without an axis is whole. A block in several colours is held by each of those ranks."
    if len(axes) == 1:
        example = sharding.Split("W", ((), (axes[0],)))
        text = f": dimension J is split over the mesh axis {axes[0]}; {whole}"
    else:
        example = sharding.Split("W", ((axes[0],), (axes[1],)))
        text = f": dimension I is split over the mesh axis {axes[0]} and J over {axes[1]}; {whole}"
    return [Cell(f"{example}{text}", f"{example.html}{escape(text)}")]


def _first(places: dict[int, dict[str, int]]) -> dict[str, int]:
    return next(iter(places.values()), {})


def _ranks(count: int) -> str:
    return f"{count} rank{'s' * (count != 1)}"
