"""From plain PyTorch to the hybrid: five scripts and today's API learn the same, and each rank does its share."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from handson import launch
from handson.run import Run

TUTORIAL = Path(__file__).parents[1] / "tutorial_src"
SCRIPTS = ("step1_plain.py", "step2_launch.py", "step3_ddp.py", "step4_booster.py", "step5_hybrid.py")
# what booster.py is told, and on how many ranks
MODES = {
    "tp2": ("TP=2", 2),
    "tp4": ("TP=4", 4),
    "pp2": ("PP=2", 2),
    "tp2xpp2": ("TP=2 PP=2", 4),
    "dp2xtp2": ("TP=2", 4),
    "dp2xpp2": ("PP=2 MICRO_BATCHES=2", 4),
    "dp2xtp2xpp2": ("TP=2 PP=2", 8),
}

pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def job(script: str, ranks: int, *argv: str) -> Run:
    return launch(f"step_by_step/{script}", *argv, ranks=ranks, preset="laptop", quiet=True)


def step(number: int) -> Run:
    return job(SCRIPTS[number - 1], 1 if number == 1 else 4)


def losses(run: Run) -> list[float]:
    return [row["loss"] for row in run.rows("loss", rank=0)]


def largest_difference(run: Run, other: Run) -> float:
    return max(abs(a - b) for a, b in zip(losses(run), losses(other), strict=True))


def sent(run: Run, rank: int, collective: str) -> list[tuple[str, int, float]]:
    rows = run.value("communication", "rows", rank)
    return [(row["group"], row["calls"], row["wire_bytes"]) for row in rows if row["collective"] == collective]


def test_plain_pytorch_learns():
    found = losses(step(1))
    assert len(found) == 10 and found[0] == pytest.approx(2.08, abs=0.02) and found[-1] < 1.2


@pytest.mark.parametrize("number", (2, 3, 4, 5))
def test_every_step_learns_the_same(number):
    assert largest_difference(step(number), step(1)) <= 1e-5


@pytest.mark.parametrize("number", (1, 2, 3, 4, 5))
def test_a_page_gets_one_line_a_step_and_nothing_else(number):
    assert all(re.fullmatch(rf"step {i}: loss \d\.\d{{6}}", line) for i, line in enumerate(step(number).log))
    assert len(step(number).log) == 10


def test_copies_that_do_not_average_their_gradients_learn_something_else(tmp_path):
    """The comparison can fail: step 3 without its DistributedDataParallel is off by far more than rounding."""
    shutil.copytree(TUTORIAL / "step_by_step", tmp_path / "steps")
    script = tmp_path / "steps" / "step3_ddp.py"
    script.write_text(script.read_text().replace("DistributedDataParallel(build_model().to(device))", "build_model()"))
    assert largest_difference(launch(str(script), ranks=4, preset="laptop", quiet=True), step(1)) > 1e-2


def test_a_launch_alone_gives_every_rank_all_the_work():
    for row in step(2).rows("share"):
        assert row["images"] == list(range(16)) and row["layers"] == [0, 1, 2, 3] and row["features"] == [0, 1]
    assert all(row["rows"] == [] for row in step(2).rows("communication"))


@pytest.mark.parametrize("number", (3, 4))
def test_data_parallel_ranks_share_the_batch_and_all_reduce_each_gradient_once(number):
    run = step(number)
    assert sorted(i for row in run.rows("share") for i in row["images"]) == list(range(16))
    gradients = run.value("parameters_total", "bytes")
    for rank in range(4):
        groups, _, wire = zip(*sent(run, rank, "all_reduce"), strict=True)
        assert set(groups) == {"data"} and sum(wire) == 2 * 3 / 4 * gradients


def test_the_hybrid_cuts_layers_and_features_and_leaves_the_images_whole():
    shares = {row["rank"]: row for row in step(5).rows("share")}
    assert {r: (row["layers"], row["features"]) for r, row in shares.items()} == {
        0: ([0, 1], [0, 0.5]), 1: ([0, 1], [0.5, 1]), 2: ([2, 3], [0, 0.5]), 3: ([2, 3], [0.5, 1])
    }  # fmt: skip
    assert all(row["images"] == list(range(16)) for row in shares.values())


def test_the_hybrid_sends_activations_and_no_gradients():
    run = step(5)
    sizes = run.rows("sizes")[0]
    activation = 4 * sizes["batch"] * sizes["tokens"] * sizes["hidden"]
    assert sent(run, 0, "send") == [("pipeline", 4, activation)]
    # Two layers; in each two all-reduces forward and four backward (query, key, value and the first of the MLP).
    assert sent(run, 0, "all_reduce") == [("tensor", 4 * 2 * 6, 2 * 6 * activation)]


def test_each_step_holds_no_more_than_the_one_before():
    peak = [max(row["peak_bytes"] for row in step(number).rows("memory")) for number in (1, 2, 3, 4, 5)]
    assert peak[0] == peak[1] > peak[2] == peak[3] > peak[4]


@pytest.mark.parametrize("mode", MODES)
def test_todays_api_learns_the_same_in_every_mode(mode):
    settings, ranks = MODES[mode]
    run = job("booster.py", ranks, *settings.split())
    assert largest_difference(run, step(1)) <= 1e-5
    sizes = run.value("mesh", "sizes")
    assert sizes["data"] * sizes["pipeline"] * sizes["tensor"] == ranks
    assert run.log[0] == f"data {sizes['data']} x pipeline {sizes['pipeline']} x tensor {sizes['tensor']}, over gloo"


@pytest.mark.parametrize("mode", ("tp2xpp2", "dp2xtp2xpp2"))
def test_the_blocks_that_ranks_hold_make_up_every_parameter(mode):
    settings, ranks = MODES[mode]
    run = job("booster.py", ranks, *settings.split())
    held = dict.fromkeys(range(ranks), 0)
    whole = 0
    for row in run.rows("parameter"):
        size = 1
        for length in row["global_shape"]:
            size *= length
        whole += size * row["count"]
        blocks = {str(shard["block"]): shard["local_shape"] for shard in row["shards"]}
        covered = 0
        for shape in blocks.values():
            part = 1
            for length in shape:
                part *= length
            covered += part
        assert covered == size, row["name"]
        for shard in row["shards"]:
            part = 1
            for length in shard["local_shape"]:
                part *= length
            held[shard["rank"]] += part * row["count"]
    assert whole == step(1).value("parameters_total", "count")
    assert held == {row["rank"]: row["count"] for row in run.rows("parameters_total")}


@pytest.mark.parametrize(
    "ranks, settings, says",
    [
        (4, "MODE=2d", "HybridParallelPlugin has no 2D, 2.5D or 3D tensor parallelism"),
        (2, "TP=2 PP=2", "2 ranks cannot be divided into PP=2 stages of TP=2 ranks; start 4 or a multiple of it"),
        (3, "TP=3", "3 ranks cannot share a batch of 16 images; start 1, 2, 4 or 8"),
        (8, "TP=8", "4 attention heads cannot be divided by 8"),
        (8, "PP=8 MICRO_BATCHES=8", "PP=8 is more than the 4 layers of this model"),
        (4, "PP=4 MICRO_BATCHES=2", "MICRO_BATCHES=2 is fewer than the PP=4 stages"),
        (2, "PP=2 MICRO_BATCHES=3", "16 images cannot be divided by 3"),
        (2, "TP=two", "TP=two must be a whole number from 1 on"),
        (2, "SP=2", "'SP=2' is no setting of booster.py"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(ranks, settings, says):
    argv = settings.split()
    run = launch("step_by_step/booster.py", *argv, ranks=ranks, preset="laptop", quiet=True, expect_failure=True)
    assert says in run.error and "\n" not in run.error and run.log == []


def test_torchrun_runs_a_script_without_the_kit_and_keeps_its_rows(tmp_path):
    rows = tmp_path / "rows.jsonl"
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29571"]
    done = subprocess.run(
        [*command, "booster.py", "TP=2"], cwd=TUTORIAL / "step_by_step", capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONPATH": str(TUTORIAL), "HANDSON_ROWS": str(rows), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0 and done.stderr == "", done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == f"step 9: loss {losses(job('booster.py', 2, 'TP=2'))[-1]:.6f}"
    assert rows.read_text().count('"kind": "loss"') == 10
