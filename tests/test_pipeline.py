"""Pipelines, data parallelism and hybrids: schedules in order and on one clock, and what the lessons draw of them."""

from __future__ import annotations

from dataclasses import dataclass

import matplotlib

matplotlib.use("agg")

import pytest
from handson import launch, show
from handson.run import Run
from handson.show import config_lines, schedule_plots
from handson.sources import SCRIPTS

TRAIN = "hybrid_parallel/train.py --config config.py -s "
STAGES, PIECES = 4, 4


@pytest.fixture(scope="module", autouse=True)
def live_runs(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HANDSON_BUILD", str(tmp_path_factory.mktemp("build")))
        patch.setenv("HANDSON_RUNS", "live")
        yield


@pytest.fixture(scope="module")
def pipeline(live_runs) -> Run:
    """Four stages, traced with 1, 2 and 4 micro-batches in both orders."""
    argv = f"--trace PIPELINE_SIZE={STAGES} TENSOR_PARALLEL_SIZE=1 NUM_MICRO_BATCHES={PIECES} TIMED_STEPS=1"
    return launch(TRAIN + argv, ranks=STAGES, preset="laptop", quiet=True)


def spans(run: Run, order: str, pieces: int, rank: int | None = None) -> list[dict]:
    rows = [row for row in run.rows("schedule", rank) if (row["order"], row["micro_batches"]) == (order, pieces)]
    return sorted(rows, key=lambda row: row["start_ms"])


def in_words(rows: list[dict]) -> list[str]:
    return [f"{row['phase'][0].upper()}{row['micro_batch']}" for row in rows]


def one_f_one_b(stage: int, pieces: int) -> list[str]:
    """What the PipeDream paper's order says: as many forwards as stages are below, then in turn, then the rest."""
    ahead = min(STAGES - 1 - stage, pieces)
    order = [f"F{i}" for i in range(ahead)]
    for i in range(pieces - ahead):
        order += [f"F{ahead + i}", f"B{i}"]
    return order + [f"B{i}" for i in range(pieces - ahead, pieces)]


@pytest.mark.ranks
@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_every_stage_works_in_the_order_1f1b(pipeline, pieces):
    done = [in_words(spans(pipeline, "1f1b", pieces, rank)) for rank in range(STAGES)]
    assert done == [one_f_one_b(stage, pieces) for stage in range(STAGES)]


@pytest.mark.ranks
def test_gpipe_works_in_the_order_of_upstreams_own_worker(pipeline):
    upstream = launch("hybrid_parallel/upstream_schedules.py", preset="laptop", quiet=True)
    order = upstream.value("fill_drain", "order")
    assert order == ["F0", "F1", "F2", "F3", "B0", "B1", "B2", "B3"]
    assert [in_words(spans(pipeline, "gpipe", PIECES, rank)) for rank in range(STAGES)] == [order] * STAGES


@pytest.mark.ranks
def test_upstreams_interleaved_schedule_is_reported_as_broken_and_todays_as_whole():
    faults = {
        row["name"]: row["fault"]
        for row in launch("hybrid_parallel/upstream_schedules.py", preset="laptop", quiet=True).rows("upstream")
    }
    assert faults["InterleavedPipelineSchedule"].startswith("ModuleNotFoundError: No module named 'colossalai.zero")
    assert faults["PipelineSchedule"] == faults["OneForwardOneBackwardSchedule"] == faults["InterleavedSchedule"] == ""


@pytest.mark.ranks
@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
def test_the_ranks_clocks_agree(pipeline, order):
    """A stage can only start on what the one before it, or in the backward pass after it, has finished."""
    times = {(row["phase"], row["rank"], row["micro_batch"]): row for row in spans(pipeline, order, PIECES)}
    assert len(times) == 2 * STAGES * PIECES
    for piece in range(PIECES):
        for stage in range(1, STAGES):
            before, after = (times["forward", rank, piece] for rank in (stage - 1, stage))
            assert before["end_ms"] < after["start_ms"]
            before, after = (times["backward", rank, piece] for rank in (stage, stage - 1))
            assert before["end_ms"] < after["start_ms"]


@pytest.mark.ranks
def test_the_bubble_is_what_the_spans_leave(pipeline):
    rows = {(row["order"], row["micro_batches"]): row for row in pipeline.rows("bubble")}
    assert set(rows) == {(order, pieces) for order in ("1f1b", "gpipe") for pieces in (1, 2, 4)}
    for (order, pieces), row in rows.items():
        drawn = schedule_plots.idle_share(spans(pipeline, order, pieces))
        assert row["bubbles"][row["shown"]] == pytest.approx(drawn, abs=1e-3)
        assert row["expected"] == pytest.approx((STAGES - 1) / (pieces + STAGES - 1))
        assert 0 < drawn < 1
        if pieces == 1:  # one micro-batch is on one rank at a time, however busy the host
            assert drawn >= 1 - 1 / STAGES


@pytest.mark.ranks
def test_a_stage_keeps_as_many_micro_batches_as_its_order_says(pipeline):
    for row in pipeline.rows("stage"):
        kept = row["saved_bytes"] / row["micro_batch_bytes"]
        below = min(row["micro_batches"], STAGES - row["stage"])
        assert kept == pytest.approx(row["micro_batches"] if row["order"] == "gpipe" else below, rel=0.01)


@pytest.mark.ranks
def test_every_order_finds_the_same_loss_and_gradients(pipeline):
    rows = pipeline.rows("bubble")
    assert max(row["loss"] for row in rows) - min(row["loss"] for row in rows) < 1e-6
    assert max(row["gradient_difference"] for row in rows) < 1e-6


@pytest.mark.ranks
def test_stages_hold_equally_many_blocks(pipeline):
    blocks = [0] * STAGES
    for row in pipeline.rows("parameter"):
        if row["name"].endswith("mlp.dense_1.weight"):
            for shard in row["shards"]:
                blocks[shard["rank"]] += row["count"]
    assert blocks == [1] * STAGES


@pytest.mark.ranks
def test_all_reduces_are_traced_within_the_backward_pass():
    argv = "--trace PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=1 TIMED_STEPS=2"
    run = launch(TRAIN + argv, ranks=2, preset="laptop", quiet=True)
    (overlap,) = run.rows("overlap")
    assert overlap["bytes"] == run.value("parameters_total", "bytes")
    assert overlap["step_ms"] > 0 and overlap["without_ms"] > 0 and overlap["all_reduce_ms"] > 0
    for rank in range(2):
        phases = {row["phase"]: row for row in run.rows("schedule", rank)}
        assert phases["forward"]["end_ms"] <= phases["backward"]["start_ms"] < phases["all_reduce"]["start_ms"]
        assert phases["all_reduce"]["end_ms"] <= phases["backward"]["end_ms"]
    assert [row[0] for row in show.overlap_table(run).rows][-1] == "alone they take, in 1 bucket"
    picture = show.gantt(run)
    assert "data parallel" in picture.alt and "idle" not in picture.alt


@pytest.mark.ranks
def test_there_is_nothing_to_trace_on_one_rank():
    argv = "--trace PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=1"
    run = launch(TRAIN + argv, ranks=1, preset="laptop", quiet=True, expect_failure=True)
    assert run.error.startswith("--trace draws a pipeline or data-parallel ranks, and here is neither")


@pytest.mark.ranks
def test_rank_0_sends_along_each_axis_what_the_formulas_say():
    run = launch(TRAIN + "--measure TIMED_STEPS=1", ranks=4, preset="laptop", quiet=True)
    table = show.axis_table({"pp2 × 1d2": run})
    assert [row[1:3] for row in table.rows] == [
        ["tensor of 2", "all_gather"],
        ["tensor of 2", "all_reduce"],
        ["pipeline of 2", "send"],
    ]
    assert [row[-1] for row in table.rows] == ["1.00×"] * 3
    (row,) = show.division_table({"default": run}).rows
    assert [*row[:5], row[5].text, row[6]] == ["default", 4, 1, 2, 2, "TIMED_STEPS = 1", "32.0 %"]


@pytest.mark.ranks
def test_two_copies_of_a_2d_square_train_the_same_model():
    argv = "--check PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=4 TENSOR_PARALLEL_MODE=2d"
    run = launch(TRAIN + argv, ranks=8, preset="laptop", quiet=True)
    assert run.value("parity", "max_loss_difference") <= 1e-5
    assert run.rows("mesh", rank=0)[0]["sizes"] == {"data": 2, "pipeline": 1, "tensor": 4, "row": 2, "col": 2}


def test_a_changed_line_of_the_config_is_the_same_as_an_argument(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS / "hybrid_parallel"))
    import settings

    changes = ["TENSOR_PARALLEL_SIZE=4", "TENSOR_PARALLEL_MODE=2d"]
    edited = tmp_path / "edited.py"
    edited.write_text(config_lines.changed("hybrid_parallel/config.py", *changes))
    names, gpu = settings.read(str(edited), [])
    given, gpu_given = settings.read("config.py", changes)
    assert names == given
    assert names | gpu == given | gpu_given
    shown = show.config_change("hybrid_parallel/config.py", *changes)
    assert [line.partition("  #")[0] for line in shown.lines if line[0] == "+"] == [
        "+TENSOR_PARALLEL_SIZE = 4",
        '+TENSOR_PARALLEL_MODE = "2d"',
    ]
    with pytest.raises(LookupError, match="no line that sets TENSOR_SIZE"):
        show.config_change("hybrid_parallel/config.py", "TENSOR_SIZE=4")


@dataclass
class Recorded:
    """The part of a Run that the pictures read."""

    ranks: int
    data: list[dict]
    speed: float = 0.0
    preset: str = "gpu"
    way: str = "recorded"
    command: str = "torchrun"
    chip: str = "NVIDIA H200"

    @property
    def provenance(self) -> dict:
        return {"device": "cuda", "accelerator": self.chip, "accelerators": self.ranks}

    def rows(self, kind: str, rank: int | None = None) -> list[dict]:
        if kind == "step_time":
            return [{"rank": 0, "kind": kind, "images_per_second": self.speed}]
        return [row for row in self.data if row["kind"] == kind and rank in (None, row["rank"])]


def ideal(order: str, pieces: int) -> list[dict]:
    """The spans of a pipeline without messages: a forward takes 1 ms, a backward 2."""
    sequence = {
        stage: one_f_one_b(stage, pieces)
        if order == "1f1b"
        else [f"{phase}{i}" for phase in "FB" for i in range(pieces)]
        for stage in range(STAGES)
    }
    ended: dict[tuple[int, str], float] = {}
    free, rows = [0.0] * STAGES, []
    while any(sequence.values()):
        for stage, left in sequence.items():
            if not left:
                continue
            phase, piece = left[0][0], left[0][1:]
            edge = 0 if phase == "F" else STAGES - 1
            first = (stage, f"F{piece}") if phase == "B" else None
            needed = first if stage == edge else (stage + (1 if phase == "B" else -1), left[0])
            if needed and needed not in ended:
                continue
            start = max(free[stage], ended.get(needed, 0.0))
            free[stage] = ended[stage, left[0]] = start + (1 if phase == "F" else 2)
            span = {"rank": stage, "kind": "schedule", "order": order, "micro_batches": pieces, "start_ms": start}
            span |= {"phase": "forward" if phase == "F" else "backward", "micro_batch": int(piece)}
            rows.append(span | {"end_ms": free[stage]})
            left.pop(0)
    return rows


@pytest.mark.parametrize("order", ["1f1b", "gpipe"])
@pytest.mark.parametrize("pieces", [1, 2, 4, 8])
def test_the_idle_share_of_an_ideal_pipeline_is_the_formula(order, pieces):
    assert schedule_plots.idle_share(ideal(order, pieces)) == pytest.approx((STAGES - 1) / (pieces + STAGES - 1))
    assert schedule_plots.length_ms(ideal(order, pieces)) == 3 * (pieces + STAGES - 1)


def test_the_gantt_chart_draws_each_span_in_its_ranks_colour():
    picture = show.gantt(Recorded(STAGES, ideal("1f1b", 4) + ideal("gpipe", 4)), ("1f1b", 4))
    (ax,) = picture.axes
    filled = [patch for patch in ax.patches if patch.get_fill()]
    assert len(filled) == 2 * 4 * STAGES
    backward = [patch for patch in filled if patch.get_alpha() < 1]
    assert len(backward) == 4 * STAGES and all(patch.get_width() == 2 for patch in backward)
    colours = {matplotlib.colors.to_hex(patch.get_facecolor()) for patch in filled if patch.get_y() < 0.5}
    assert colours == {show.schedule_plots.style.rank_colour(0)}
    assert picture.alt == (
        "When each rank computes in one step, on 4 × NVIDIA H200: 1F1B, 4 micro-batches: 42.9 % idle, 21.0 ms long."
    )
    with pytest.raises(LookupError, match=r"no schedule \('1f1b', 3\); it recorded \[\('1f1b', 4\)\]"):
        show.gantt(Recorded(STAGES, ideal("1f1b", 4)), ("1f1b", 3))


def test_bubbles_and_memory_say_formula_and_measurement():
    data = [
        {"kind": "bubble", "rank": 0, "order": order, "micro_batches": m, "stages": 4, "expected": 3 / (m + 3),
         "bubbles": [0.5, 0.4, 0.45], "shown": 2, "lengths_ms": [1, 1, 1], "loss": 1.0, "gradient_difference": 0.0}
        for order in ("1f1b", "gpipe") for m in (1, 8)
    ]  # fmt: skip
    for stage in range(4):
        row = {"kind": "stage", "rank": stage, "order": "1f1b", "micro_batches": 8, "stages": 4, "stage": stage}
        data.append(row | {"saved_bytes": (4 - stage) * 2**20, "micro_batch_bytes": 2**20})
    run = Recorded(4, data)
    assert show.bubbles(run).alt == (
        "Idle share by micro-batches. Formula: 1 75.0 %, 8 27.3 %. Measured: 1F1B with 1 45.0 %, 1F1B with 8 45.0 %, "
        "GPipe with 1 45.0 %, GPipe with 8 45.0 %."
    )
    assert show.bubble_table(run).rows[1][:5] == ["1F1B", 8, "27.3 %", "45.0 %", "1.00 ms"]
    assert "1F1B stage 0 4.00 MiB" in show.stage_memory(run, 8).alt
    assert show.in_flight_table(run, 8).rows[0][2:] == ["4", "4.00", "1.00×"]


def test_scaling_leaves_out_what_was_measured_elsewhere():
    runs = {1: Recorded(1, [], 100.0), 2: Recorded(2, [], 180.0), 4: Recorded(4, [], 320.0, chip="other")}
    picture = show.scaling(runs)
    assert picture.alt == (
        "Throughput of the same global batch: "
        "1 rank 100 images/s, 100 % of ideal; 2 ranks 180 images/s, 90.0 % of ideal."
    )
    assert picture.axes[0].get_title(loc="left").splitlines() == [
        "NVIDIA H200, gpu preset",
        "left out, measured on other hardware: 4 ranks",
    ]
