"""Tables of sequence parallelism: each attention beside plain attention, each fault left in, and what a step costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from handson.repairs import Repair
from handson.show.conditions import RunLike, Runs, communication, conditions, crowded, hardware, largest, last
from handson.show.style import number, quantity, relative
from handson.show.tables import Table, failure, lines

TOLERANCE = 1e-5


def compared_table(runs: Sequence[RunLike]) -> Table:
    """Every kind of attention on every ring beside plain attention on one device: the rows "compared".

    A gradient's difference is relative to that parameter's largest; its ratio is that of the norms in the top layer.
    """
    body = []
    for run in runs:
        for row in run.rows("compared", rank=0):
            good = max(row["output_difference"], row["gradient_difference"]) <= TOLERANCE
            faults = f"without {', '.join(row['faults'])}" if row["faults"] else ""
            body.append(
                [
                    lines(row["attention"], faults),
                    run.ranks,
                    number(row["output_difference"]),
                    number(row["gradient_difference"]),
                    f"{row['top_gradient_ratio']:.3f}×",
                    f"{row['least_cosine']:.3f}",
                    "equal" if good else failure("DIFFERENT"),
                ]
            )
    where = "; ".join(f"{run.ranks} ranks on {hardware(run)}" for run in runs)
    return Table(
        ["attention", "ranks", "a token's loss", "a gradient", "its length", "cosine", "verdict"],
        body,
        "Attention over a ring, beside plain attention on one device",
        [
            f"The largest differences of any token's loss and of any parameter's gradient, the latter relative to its "
            f"largest number; equal means both within {number(TOLERANCE)}. Its length: that of the gradient of q, k "
            "and v in the top layer, beside plain attention's. Cosine: between the two, the least of any parameter's.",
            f"{where}.",
        ],
    )


def faults_table(runs: Mapping[str, RunLike], repairs: tuple[Repair, ...]) -> Table:
    """Runs that leave a repair out, beside the model on one device: the first and last loss, and how far they are."""
    causes = {repair.name: repair.cause for repair in repairs}
    body = []
    for label, run in runs.items():
        rows = run.rows("loss", rank=0)
        worst = last(run, "parity", "max_loss_difference")
        good = worst <= TOLERANCE
        body.append(
            [
                label,
                f"{rows[0]['loss'] / rows[0]['reference']:.4f}×",
                f"{rows[-1]['loss'] / rows[-1]['reference']:.4f}×",
                number(worst) if good else failure(number(worst)),
                number(last(run, "parity", "max_weight_difference")),
            ]
        )
    columns = ["left out", "first loss ÷ one device", "last loss ÷ one device"]
    columns += ["loss difference", "weight difference"]
    first = next(iter(runs.values()))
    return Table(
        columns,
        body,
        f"A repair left out, on {first.ranks} ranks",
        [
            f"{last(first, 'parity', 'steps')} steps of SGD on the same batch, beside one device; {hardware(first)}, "
            f"{first.preset} preset.",
            *[f"{name}: {causes[name]}." for name in runs if name in causes],
        ],
    )


def formula_rows(runs: Runs, about: str) -> Iterable[dict[str, Any]]:
    """Rank 0's rows of {what, formula, expected, counted, unit} about "kept" or "sent" bytes, run by run."""
    for label, run in runs.items():
        for row in run.rows("formula", rank=0):
            if row["about"] == about:
                where = {"run": label} if len(runs) > 1 else {}
                yield {name: row[name] for name in ("what", "formula", "expected", "counted", "unit")} | where


def cost_table(runs: Runs, *, baseline: str, caption: str = "") -> Table:
    """What a training step costs beside the baseline: time, tokens a second, memory, and bytes sent."""
    base = runs[baseline]
    base_time = last(base, "step_time", "median_ms")
    body, other, turns = [], [], []
    for label, run in runs.items():
        time, same = last(run, "step_time", "median_ms"), conditions(run) == conditions(base)
        if not same:
            other.append(label)
        if crowded(run):
            turns.append(label)
        sent: dict[int, float] = {}
        for row in communication(run):
            sent[row["rank"]] = sent.get(row["rank"], 0) + row["wire_bytes"]
        body.append(
            [
                label,
                quantity(time, "ms"),
                relative(time, base_time) if same else "—",
                quantity(last(run, "step_time", "tokens_per_second"), "tokens/s"),
                quantity(largest(run, "memory", "peak_bytes"), "B"),
                quantity(largest(run, "memory", "activation_bytes"), "B"),
                quantity(max(sent.values(), default=0), "B"),
            ]
        )
    notes = [
        "Memory and bytes are those of the fullest or busiest rank: its peak, what it keeps for the backward pass, "
        "what it sends in a step. Time is the median of the timed steps."
    ]
    if other:
        notes.append(f"— where {', '.join(other)} ran on other hardware or at another size than {baseline}.")
    if turns:
        notes.append(f"{', '.join(turns)}: more ranks than cores, so ranks took turns; not a measure of speed.")
    places: dict[str, list[str]] = {}
    for label, run in runs.items():
        places.setdefault(f"{hardware(run)}, {run.preset} preset", []).append(label)
    notes += [f"{place}: {'; '.join(labels)}." for place, labels in places.items()]
    columns = ["run", "step time", f"time ÷ {baseline}", "throughput", "peak memory", "kept", "sent"]
    return Table(columns, body, caption or f"A training step, beside {baseline}", notes)


def division_table(runs: Runs) -> Table:
    """How each run divides its ranks and its sequences, and what its fullest rank holds of the parameters."""
    body = []
    for label, run in runs.items():
        (row, *_) = run.rows("mesh", rank=0)
        changes = [argument for argument in run.argv if "=" in argument]
        sizes = [row["sizes"][axis] for axis in ("data", "pipeline", "sequence")]
        held = quantity(largest(run, "parameters_total", "count"))
        body.append([label, run.ranks, *sizes, lines(*changes) if changes else "as it comes", held])
    columns = ["run", "ranks", "data", "pipeline", "sequence", "config.py", "parameters a rank"]
    return Table(columns, body, "How the ranks are divided: data × pipeline × sequence")


def places_table(run: RunLike) -> Table:
    """What each rank works on: its copy of the model, its stage's layers, its piece of every sequence."""
    body = []
    for row in run.rows("mesh"):
        first, last_layer = row["layers"][0], row["layers"][-1]
        layers = first if first == last_layer else f"{first}–{last_layer}"
        start, stop = row["tokens"]
        body.append(
            [f"rank {row['rank']}", row["data"], row["pipeline"], layers, row["sequence"], f"{start}–{stop - 1}"]
        )
    columns = ["rank", "data", "pipeline", "layers", "sequence", "tokens"]
    return Table(columns, body, f"What each of {run.ranks} ranks works on")
