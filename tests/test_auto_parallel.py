"""ResNets planned, sharded and trained on real ranks, and what is refused: ResNet-18, by the code of ResNet-50."""

import csv
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from handson import launch
from handson.run import Run
from handson.show import sharded_tables

SCRIPT = "auto_parallel/auto_parallel_with_resnet.py"
SMALL = "-s --model resnet18 --speeds 2e9 1e10 1e-4"


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def four() -> Run:
    """Planned, compared with one device, and under a smaller memory budget, on a 2 x 2 mesh."""
    return launch(f"{SCRIPT} {SMALL} --check --budgets 1", ranks=4, preset="laptop", quiet=True)


@cache
def two() -> Run:
    """Measured on a line of two ranks, with speeds that were measured."""
    return launch(f"{SCRIPT} -s --model resnet18 --mesh 1x2 --measure", ranks=2, preset="laptop", quiet=True)


def plans(run: Run) -> dict[str, dict]:
    return {row["plan"]: row for row in run.rows("plan")}


@pytest.mark.ranks
def test_the_log_names_strategies_and_edge_costs_as_the_tutorial_does():
    assert "layer1_0_conv1 S01R = S01R x RR" in four().log
    assert "layer1_0_bn1 S01R = S01R x R WITH SYNC_BN" in four().log
    assert any(line.startswith("Edge cost (x, conv1) : ") for line in four().log)


@pytest.mark.ranks
def test_output_and_gradients_are_those_of_one_device_in_train_mode():
    exact, single, steps = four().rows("parity")
    assert exact["dtype"] == "float64" and max(exact["output"], exact["gradient"]) <= 1e-9
    assert single["dtype"] == "float32" and max(single["output"], single["gradient"]) <= 1e-2
    assert steps["steps"] == 5 and steps["max_loss_difference"] <= 1e-3
    losses = [row["loss"] for row in four().rows("loss")]
    assert losses[-1] < 0.5 * losses[0]
    assert "equal" in str(sharded_tables.parity({"four": four()}))


@pytest.mark.ranks
def test_every_node_has_a_row_and_the_rows_add_up():
    nodes, plan = four().rows("node"), plans(four())["solver"]
    assert len(nodes) == plan["nodes"] and {"x", "conv1", "fc_weight", "output"} <= {row["name"] for row in nodes}
    (conv,) = (row for row in nodes if row["name"] == "layer1_0_conv1")
    assert conv["op"] == "conv2d" and conv["weight"]["shape"] == [64, 64, 3, 3]
    assert conv["input"]["sharding"] == conv["output"]["sharding"] == ["S01", "R", "R", "R"]
    # Forward, the gradient of the input, and that of the weight; a quarter of the 16 images of 8 x 8 on each device.
    assert conv["compute_ms"] == pytest.approx(3 * 4 * 64 * 64 * 9 * 8 * 8 / 2e9 * 1e3, rel=1e-3)
    parts = sum(row["compute_ms"] + row["communication_ms"] for row in nodes)
    assert parts + sum(row["ms"] for row in four().rows("edge")) == pytest.approx(plan["objective_ms"])
    assert plan["objective_ms"] == pytest.approx(plan["solver_objective_ms"])


@pytest.mark.ranks
def test_a_smaller_budget_is_kept_and_what_is_held_stays_below_the_prediction():
    free, tight = plans(four())["solver"], plans(four())["budget 1"]
    assert tight["memory_bytes"] <= tight["budget_bytes"] < free["memory_bytes"]
    assert tight["objective_ms"] >= free["objective_ms"] * 0.97
    for row in four().rows("memory"):
        assert row["parameter_bytes"] < row["peak_bytes"] < plans(four())[row["plan"]]["memory_bytes"]
    assert {row["rank"] for row in four().rows("memory")} == {0, 1, 2, 3}
    (refused,) = four().rows("no_plan")
    assert "every plan needs at least" in refused["reason"]


@pytest.mark.ranks
def test_full_replication_sends_nothing_and_data_parallelism_sends_each_gradient_once():
    sent = {row["plan"]: row["rows"] for row in two().rows("communication", rank=0)}
    assert {"solver", "all data", "all replicated", "DDP"} <= sent.keys()
    assert sent["all replicated"] == []
    held = next(row for row in two().rows("memory", rank=0) if row["plan"] == "DDP")
    reduced = [row for row in sent["DDP"] if row["collective"] == "all_reduce"]
    assert sum(row["wire_bytes"] for row in reduced) == held["parameter_bytes"]  # 2 (P - 1) / P of it, for two ranks
    normalised = {row["collective"]: row["calls"] for row in sent["DDP, batch norm over all"]}
    assert normalised["all_gather"] == 20  # one for each batch norm of ResNet-18


@pytest.mark.ranks
def test_every_plan_is_timed_and_predicted_with_the_measured_speeds():
    (links,) = two().rows("links", rank=0)
    assert links["macs_per_second"] > 1e7 and links["bytes_per_second"][1] > 1e6 and links["latency_s"][0] == 0
    rows = {row["plan"]: row for row in sharded_tables.measured_plans(two())}
    assert rows["all replicated"]["predicted_ms"] > 1.5 * rows["all data"]["compute_ms"]
    assert all(row["measured_ms"] > 0 for row in rows.values())
    assert rows["DDP"]["predicted_ms"] is None
    assert str(sharded_tables.against_truth(two())) and "plain data parallelism (DDP)" in sharded_tables.verdict(two())


def test_the_verdict_says_when_the_plan_loses_and_which_cost_was_wrong():
    class Given:
        def rows(self, kind: str, rank: int | None = None) -> list[dict]:
            parts = {"compute_ms": 90.0, "communication_ms": 8.0, "resharding_ms": 2.0}
            times = [{"plan": "solver", "median_ms": 150.0, "compute_ms": 95.0}, {"plan": "DDP", "median_ms": 100.0}]
            return {
                "plan": [{"plan": "solver", "objective_ms": 100.0, **parts}],
                "step_time": times,
                "communication": [{"plan": row["plan"], "rows": []} for row in times],
            }[kind]

    said = sharded_tables.verdict(Given())
    assert said.startswith("The solver's plan loses to plain data parallelism (DDP): 150 ms a step against 100 ms.")
    assert "wrong most about communication: 10.0 ms predicted, 55.0 ms measured." in said
    assert said.endswith("Fastest of all was DDP, 100 ms.")


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("-s --mesh 2x2", "a 2x2 mesh has 4 devices and this job has 2 ranks; a mesh needs two ranks or more"),
        ("-s --mesh two", "--mesh two is no mesh; write for example --mesh 2x2"),
        ("-s --batch 7", "--batch 7 cannot be shared by 2 ranks; use a multiple of it"),
        ("-s --batch -2", "--batch -2 cannot be; give 1 or more"),
        ("-s --size 16", "--size 16 cannot be; give 32 or more"),
        ("-s --steps 0", "--steps 0 cannot be; give 1 or more"),
        ("-s --memory nan", "--memory nan cannot be; give 0 or more"),
        ("-s --speeds 0 1e9 0", "--speeds 0 1e+09 0 cannot be; give MAC/s and bytes/s above 0 and a latency of 0 s"),
        ("-s --csv nowhere/plan.csv", "--csv nowhere/plan.csv is in a folder that does not exist; make it, or name"),
        ("", "the following arguments are required: -s/--synthetic"),
        (f"{SMALL} --mesh 1x2 --memory 1", "no plan fits within 1.0 MiB a device on a 1x2 mesh: every plan needs"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(arguments, sentence):
    run = launch(f"{SCRIPT} {arguments}", ranks=2, preset="laptop", quiet=True, expect_failure=True)
    assert run.error.startswith(sentence) and "Traceback" not in run.error


@pytest.mark.ranks
def test_torchrun_trains_and_writes_the_plan_as_csv(tmp_path):
    script = Path(__file__).parents[1] / "tutorial_src" / SCRIPT
    table = tmp_path / "plan.csv"
    command = [Path(sys.executable).with_name("torchrun"), "--nproc_per_node", "2", script.name, *SMALL.split()]
    done = subprocess.run(
        [*map(str, command), "--steps", "2", "--csv", str(table)],
        cwd=script.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HANDSON_DEVICE": "cpu", "PYTHONPATH": str(script.parents[1])},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert "step   2/2   loss " in done.stdout
    rows = list(csv.DictReader(table.open()))
    assert len(rows) == 74 and rows[1]["name"] == "conv1" and rows[1]["weight_shape"] == "64 3 7 7"
    edges = list(csv.DictReader(table.with_name("plan.edges.csv").open()))
    assert {"source", "target", "ms"} <= edges[0].keys()
