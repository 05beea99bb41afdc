"""Every division of the ranks trains the same model: live on the CPU, five SGD steps in fp32, through the kit."""

import math
from functools import cache
from itertools import groupby

import pytest
from handson import launch
from handson.run import Run

TOLERANCE = 1e-5


def division(ranks: int, pipeline: int = 1, tensor: int = 1, mode: str = "1d", depth: int = 1) -> tuple[int, list[str]]:
    return ranks, [
        "NUM_MICRO_BATCHES=2",
        f"PIPELINE_SIZE={pipeline}",
        f"TENSOR_PARALLEL_SIZE={tensor}",
        f"TENSOR_PARALLEL_MODE={mode}",
        f"TENSOR_PARALLEL_DEPTH={depth}",
    ]


# name -> the division, and how many parameters each rank of it holds
DIVISIONS = {
    "dp2": (division(2), {148170}),
    "dp4": (division(4), {148170}),
    "1d2": (division(2, tensor=2), {81674}),
    "1d4": (division(4, tensor=4), {48426}),
    "2d4": (division(4, tensor=4, mode="2d"), {37050}),
    "2.5d4": (division(4, tensor=4, mode="2.5d"), {37786}),
    "2.5d8": (division(8, tensor=8, mode="2.5d", depth=2), {37786}),
    "3d8": (division(8, tensor=8, mode="3d"), {24938}),
    "pp2": (division(2, pipeline=2), {80448, 67722}),
    "pp2x1d2": (division(4, pipeline=2, tensor=2), {47360, 34314}),
    "pp2x2d4": (division(8, pipeline=2, tensor=4, mode="2d"), {20112, 16938}),
    "dp2x1d2": (division(4, tensor=2), {81674}),
    "dp2xpp2": (division(4, pipeline=2), {80448, 67722}),
    "dp2xpp2x1d2": (division(8, pipeline=2, tensor=2), {47360, 34314}),
}


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def checked(name: str) -> Run:
    (ranks, overrides), _ = DIVISIONS[name]
    return launch(
        "hybrid_parallel/train.py",
        "--config",
        "config.py",
        "-s",
        "--check",
        *overrides,
        ranks=ranks,
        preset="laptop",
        quiet=True,
    )


@pytest.mark.ranks
@pytest.mark.parametrize("name", DIVISIONS)
def test_losses_and_weights_follow_the_single_process_model(name):
    run = checked(name)
    losses = run.rows("loss")
    assert [row["step"] for row in losses] == [1, 2, 3, 4, 5]
    assert max(abs(row["loss"] - row["reference"]) for row in losses) <= TOLERANCE
    assert (
        losses[-1]["reference"] < losses[0]["reference"] / 2
    )  # the model learned: a model that stands still also agrees
    (parity,) = run.rows("parity")
    assert parity["max_weight_difference"] <= TOLERANCE < 0.01 < parity["weights_moved"]


@pytest.mark.ranks
@pytest.mark.parametrize("name", DIVISIONS)
def test_the_sharding_table_accounts_for_every_element(name):
    run, (_, held) = checked(name), DIVISIONS[name]
    assert {row["count"] for row in run.rows("parameters_total")} == held
    per_rank = dict.fromkeys(range(run.ranks), 0)
    for row in run.rows("parameter"):
        blocks = {tuple(map(tuple, shard["block"])) for shard in row["shards"]}
        covered = sum(math.prod(stop - start for start, stop in block) for block in blocks)
        assert covered == math.prod(row["global_shape"]), f"{row['name']}: its blocks overlap or leave a gap"
        for shard in row["shards"]:
            extent = [stop - start for start, stop in shard["block"]]
            assert sorted(extent) == sorted(shard["local_shape"]), row["name"]
            per_rank[shard["rank"]] += row["count"] * math.prod(extent)
    assert per_rank == {row["rank"]: row["count"] for row in run.rows("parameters_total")}


@pytest.mark.ranks
def test_alike_transformer_blocks_share_a_row_of_the_table():
    names = [row["name"] for row in checked("2d4").rows("parameter")]
    assert len(names) == len(set(names)) == 20
    assert "blocks.*.attn.query_key_value.weight" in names
    (qkv,) = (row for row in checked("2d4").rows("parameter") if row["name"] == "blocks.*.attn.query_key_value.weight")
    assert (qkv["layer"], qkv["count"], qkv["global_shape"]) == ("Linear2D", 4, [192, 64])
    # W[out_col, in_row], and each rank stores its block as [in, out]
    assert [shard["block"] for shard in qkv["shards"]] == [
        [[0, 96], [0, 32]],
        [[96, 192], [0, 32]],
        [[0, 96], [32, 64]],
        [[96, 192], [32, 64]],
    ]
    assert {tuple(shard["local_shape"]) for shard in qkv["shards"]} == {(32, 96)}


@pytest.mark.ranks
def test_pipeline_stages_hold_different_blocks():
    rows = {row["name"]: row for row in checked("pp2x1d2").rows("parameter")}
    first, second = rows["blocks.0-1.mlp.dense_2.weight"], rows["blocks.2-3.mlp.dense_2.weight"]
    assert [shard["rank"] for shard in first["shards"]] == [0, 1]
    assert [shard["rank"] for shard in second["shards"]] == [2, 3]
    assert [shard["rank"] for shard in rows["head.dense.weight"]["shards"]] == [2, 3]


@pytest.mark.ranks
def test_mesh_rows_say_where_each_rank_stands():
    def axes(name: str, *wanted: str) -> list[tuple[int, ...]]:
        return [tuple(row[axis] for axis in wanted) for row in checked(name).rows("mesh")]

    assert axes("dp2xpp2x1d2", "data", "pipeline", "tensor") == [
        (data, stage, tensor) for data in (0, 1) for stage in (0, 1) for tensor in (0, 1)
    ]
    assert axes("2d4", "row", "col") == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert axes("2.5d8", "dep", "row", "col") == [(d, r, c) for d in (0, 1) for r in (0, 1) for c in (0, 1)]
    assert axes("3d8", "output", "input", "weight") == [(o, i, w) for o in (0, 1) for i in (0, 1) for w in (0, 1)]


@pytest.mark.ranks
def test_a_failed_check_exits_with_the_numbers(monkeypatch):
    # Without this repair no weight ever moves, and nothing else says so.
    monkeypatch.setenv("HANDSON_WITHOUT", "clip")
    run = launch(
        "hybrid_parallel/train.py",
        "--config",
        "config.py",
        "-s",
        "--check",
        *division(2)[1],
        ranks=2,
        preset="laptop",
        quiet=True,
        expect_failure=True,
    )
    assert "parity: NOT the same: over 5 SGD steps the loss differs by at most" in run.error
    (parity,) = run.rows("parity")
    assert parity["max_loss_difference"] > 1
    assert f"{parity['max_loss_difference']:.1e}" in run.error
    assert len(list(groupby(row["loss"] for row in run.rows("loss")))) == 1  # one loss, five times
