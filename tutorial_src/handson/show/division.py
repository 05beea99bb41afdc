"""How runs divide their ranks, with which lines of the configuration, and what each axis of the mesh then sends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from handson.show import sharding
from handson.show.conditions import RunLike, Runs, largest, last
from handson.show.config_lines import assigned
from handson.show.run_tables import formula_table
from handson.show.style import percent
from handson.show.tables import Table, code, lines


def division_table(runs: Runs) -> Table:
    """How many ranks lie along each axis, the lines of `config.py` that differ, and what the fullest rank holds."""
    body = []
    for label, run in runs.items():
        sizes = run.rows("mesh", rank=0)[0]["sizes"]
        changes = [code(assigned(argument)) for argument in run.argv if "=" in argument]
        axes = [sizes[axis] for axis in ("data", "pipeline", "tensor")]
        whole = sum(sharding.elements(row) for row in run.rows("parameter"))
        held = percent(largest(run, "parameters_total", "count"), whole)
        body.append([label, run.ranks, *axes, lines(*changes) if changes else "as it comes", held])
    return Table(
        ["run", "ranks", "data", "pipeline", "tensor", "config.py", "parameters"],
        body,
        "How the ranks are divided: data × pipeline × tensor",
    )


@dataclass(frozen=True)
class _Sizes:
    """Bytes in fp32 that rank 0's part of one step is made of, read from what the run recorded."""

    parameters: int
    blocks: int
    activation: int
    head: bool
    logits: int
    features: int


def _sizes(run: RunLike) -> _Sizes:
    rows = {row["name"]: row for row in run.rows("parameter")}
    (_, tokens, hidden) = rows["embed.patch_embed.pos_embed"]["global_shape"]
    speed = last(run, "step_time", "images_per_second") * last(run, "step_time", "median_ms") / 1e3
    images = round(speed) // run.rows("mesh", rank=0)[0]["sizes"]["data"]

    def mine(row: dict[str, Any]) -> bool:
        return any(shard["rank"] == 0 for shard in row["shards"])

    blocks = sum(row["count"] for name, row in rows.items() if name.endswith("mlp.dense_1.weight") and mine(row))
    head = rows["head.dense.bias"]
    return _Sizes(
        parameters=last(run, "parameters_total", "bytes"),
        blocks=blocks,
        activation=4 * images * tokens * hidden,
        head=mine(head),
        logits=4 * images * head["global_shape"][0],
        features=4 * images * hidden,
    )


SHAPE_BYTES = 40  # one count, one number of dimensions and three sizes, of eight bytes each


def axis_table(runs: Runs) -> Table:
    """What rank 0 sends along each axis in one step against what the algorithms say; for data, pipeline and 1D."""
    rows = []
    for label, run in runs.items():
        size, sizes = _sizes(run), run.rows("mesh", rank=0)[0]["sizes"]
        ring = 2 * (sizes["tensor"] - 1) / sizes["tensor"]
        logits, features = (size.logits, size.features) if size.head else (0, 0)
        passed = size.activation if sizes["pipeline"] > 1 else 0
        data = 2 * (sizes["data"] - 1) / sizes["data"] * size.parameters
        head = " + logits" if size.head else ""
        rules = {
            ("all_reduce", "data"): ("2 (n − 1)/n × its gradients", data),
            ("send", "pipeline"): ("activation/n + 40 B", passed / sizes["tensor"] + SHAPE_BYTES),
            ("all_reduce", "tensor"): (
                f"2 (n − 1)/n × (4 × {size.blocks} blocks × activation{head})",
                ring * (4 * size.blocks * size.activation + logits),
            ),
            ("all_gather", "tensor"): (
                "(n − 1)/n × activation" if passed else "(n − 1)/n × the head's input",
                ring / 2 * (passed + features),
            ),
        }
        for row in run.rows("communication", rank=0)[-1]["rows"]:
            rule = rules.get((row["collective"], row["group"]))
            if rule and row["wire_bytes"]:
                formula, expected = rule
                what = {
                    "what": label,
                    "axis": f"{row['group']} of {row['group_size']}",
                    "collective": row["collective"],
                }
                rows.append(
                    {**what, "formula": formula, "expected": expected, "counted": row["wire_bytes"], "unit": "B"}
                )
    return formula_table(rows, caption="What rank 0 sends along each axis in one step")
