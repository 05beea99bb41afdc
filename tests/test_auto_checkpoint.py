"""Auto-checkpoint: the solver's table is upstream's, schedules keep to their budgets, gradients are the plain ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from handson import launch, repairs
from handson.repairs import auto_checkpoint, auto_trace
from handson.run import Run
from handson.show import checkpoint_map, checkpoint_plots, checkpoint_tables

FOLDER = Path(__file__).parents[1] / "tutorial_src" / "auto_parallel"
PROBE = str(Path(__file__).parent / "scripts" / "checkpoint_probe.py")

ranks = pytest.mark.ranks


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


def ask(question: str, **options):
    return launch(PROBE, question, preset="laptop", quiet=True, **options)


@pytest.mark.alone
@ranks
def test_the_table_is_upstreams_entry_for_entry_in_a_fraction_of_the_time():
    answers = {row["model"]: row for row in ask("table").rows("answer")}
    assert answers["resnet50"]["stages"] == 20 and answers["small"]["stages"] == 27
    for answer in answers.values():
        assert answer["wrong"] == 0 and answer["finite"] > 10_000 and answer["same"]
        assert answer["seconds"]["ours"] < answer["seconds"]["theirs"] / 5


@pytest.mark.alone
@ranks
def test_gpt2_medium_is_solved_within_three_seconds():
    run = ask("medium")
    assert run.value("answer", "seconds") <= 3
    assert run.value("answer", "peak") <= 0.5 * run.value("answer", "saved")
    assert 20 < sum(map(bool, run.value("answer", "again"))) <= 51


@ranks
def test_stages_run_again_as_often_as_the_schedule_says_within_its_budget():
    run = ask("rerun")
    (answer,) = run.rows("answer")
    assert answer["again"] == answer["counted"] and max(answer["again"]) >= 2
    assert answer["difference"] == 0
    assert answer["predicted"] <= answer["budget"]
    assert answer["predicted"] == pytest.approx(answer["measured"], rel=0.1)


@ranks
def test_rotor_is_never_behind_blocks_checkpointed_by_hand():
    answers = ask("by_hand").rows("answer")
    assert [(answer["blocks"], answer["skipped"]) for answer in answers] == [
        (n, s) for n in range(1, 13) for s in (0, 0.6)
    ]
    for answer in answers:
        assert answer["kept"] and answer["rotor"] <= answer["by_hand"] + 1e-9


@ranks
def test_a_recomputation_stops_before_a_blocks_last_product_and_the_profile_knows_it():
    shares = ask("skipped").value("answer", "shares")
    halves = [share for name, share in shares.items() if name.endswith("ln_2")]
    # The second product of an MLP is half of its operations; a profile without it would say 0.
    assert halves == pytest.approx([0.5] * len(halves)) and len(halves) > 1


@ranks
def test_the_counted_peak_is_the_one_computed_by_hand():
    run = ask("count")
    activation, weight = run.value("answer", "activation"), run.value("answer", "weight")
    assert (activation, weight) == (512 * 128 * 4, 128 * 128 * 4)
    plain, checkpointed = run.value("answer", "peaks")
    # Plain, four layers of a product and a ReLU, whose output alone is saved. The most is alive when the last product
    # runs backward: three saved outputs, the gradients of its output and input, and that of its weight. Beside them
    # two scalars, the sum and its gradient; what the caller holds (the input) was there before.
    assert plain == (3 + 2) * activation + weight + 8
    # Checkpointed as a whole, the same is built up again while the network's own output is still held by nobody.
    assert checkpointed == plain


@ranks
def test_chens_solver_runs_and_keeps_the_gradients():
    (answer,) = ask("chen").rows("answer")
    assert answer["part"] < 0.3 * answer["whole"] and answer["difference"] == 0


FAULTS = {
    "codegen": ("upstream", "unexpected keyword argument"),
    "getattr": ("upstream", "Could not compute metadata for get_attr target"),
    "flops": ("upstream", "KeyError"),
    "activation": ("upstream", "has no attribute 'activation_checkpoint'"),
    "chen": ("chen", "unsupported operand type(s) for +: 'NoneType' and 'int'"),
}


@ranks
@pytest.mark.parametrize("name", FAULTS)
def test_the_fault_shows_without_the_repair(name):
    question, message = FAULTS[name]
    assert message in ask(question, without=(name,), expect_failure=True).error


@ranks
def test_upstreams_own_calls_work_with_the_repairs_and_start_no_compiler():
    run = ask("upstream")
    assert set(run.value("repairs", "names")) >= {*FAULTS, "rotor"}
    assert run.value("answer", "processes") == 0 and run.value("answer", "checkpoints") > 0
    without = ask("upstream", without=("rotor",))
    assert without.value("answer", "processes") > 0  # a compiler, in vain: its source was not shipped


def test_every_repair_says_what_it_cures():
    for repair in (*auto_trace.REPAIRS, *auto_checkpoint.REPAIRS):
        assert repair.symptom and repair.cause and repair.where
        assert [other.name for other in repairs.all_repairs()].count(repair.name) == 1


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The script started by hand once: its folder, what it printed, and its rows as a run."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = folder / "rows.jsonl"
    command = [sys.executable, str(FOLDER / "auto_ckpt_solver_test.py"), "--model", "gpt2", "--budgets", "4"]
    environment = {**os.environ, "HANDSON_ROWS": str(rows), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    run = Run(
        script="auto_parallel/auto_ckpt_solver_test.py", argv=command[2:], ranks=1, preset="laptop", command="", key="",
        files={}, provenance={"device": "cpu", "cores": 2}, log=done.stdout.splitlines(), seconds=0.0,
        data=[json.loads(line) for line in rows.read_text().splitlines()],
    )  # fmt: skip
    return folder, done, run


@ranks
def test_a_sweep_keeps_every_budget_and_says_which_are_infeasible(by_hand):
    _, _, run = by_hand
    points = run.rows("ckpt_point")
    budgets = [row for row in points if row["method"] == "rotor" and not row["beside"]]
    assert [row["feasible"] for row in budgets] == [False, False, True, True, True, True]
    for row in points:
        if row["method"] == "rotor" and row["feasible"]:
            assert row["peak_bytes"] <= row["budget_bytes"]
            assert row["predicted_bytes"] == pytest.approx(row["peak_bytes"], rel=0.1)
            assert row["difference"] == 0 and row["solve_seconds"] < 3
    assert sum(map(bool, budgets[2]["again"])) > sum(map(bool, budgets[4]["again"])) > 0
    assert not any(budgets[5]["again"])
    assert {row["method"] for row in points} == {"none", "rotor", "blocks", "chen", "compile"}
    beside = {row["beside"]: row for row in points if row["beside"]}
    for row in points:
        if row["method"] in ("blocks", "chen"):
            assert row["difference"] == 0 and beside[row["label"]]["peak_bytes"] <= row["peak_bytes"]


@ranks
def test_the_sweeps_tables_and_pictures_say_what_was_measured(by_hand):
    _, _, run = by_hand
    smallest = min(row["budget_bytes"] for row in checkpoint_map.schedules(run) if row["feasible"])
    assert "infeasible" in checkpoint_map.recompute_map(run).alt
    assert f"{smallest / 2**20:.2f} MiB" in str(checkpoint_tables.budget_table(run, caption="budgets"))
    assert "predicted" not in checkpoint_plots.time_against_peak(run).alt
    assert "budgets below" in checkpoint_plots.peak_against_budget(run).alt
    table = str(checkpoint_tables.baseline_table({"GPT-2": run}, caption="baselines"))
    assert "8 of 8 blocks" in table and "Chen's solver" in table
    assert "h.1 to h.7, each" in str(checkpoint_tables.stage_table(run, caption="stages"))
    assert "the profiler's" in str(checkpoint_tables.compile_table({"GPT-2": run}, caption="compiled"))
    assert "DIFFERENT" not in str(checkpoint_tables.gradient_table({"GPT-2": run}))
    assert "1.73 M" in str(checkpoint_tables.setting_table({"GPT-2": run}))


@ranks
def test_the_largest_batches_are_the_largest_that_fit():
    run = launch("auto_parallel/auto_ckpt_batchsize_test.py --model gpt2 --cap 70", preset="laptop", quiet=True)
    (setting,) = run.rows("ckpt_batch_setting")
    rows, cap = run.rows("ckpt_batch"), 70 * 2**20
    assert all(row["peak_bytes"] <= cap for row in rows)
    plain = [row for row in rows if row["method"] == "none"]
    assert plain[-1]["batch"] == setting["plain_batch"] and rows[-1]["batch"] == setting["rotor_batch"]
    assert setting["rotor_batch"] >= 2 * setting["plain_batch"]
    each = (plain[-1]["peak_bytes"] - setting["fixed_bytes"]) / setting["plain_batch"]  # an upper bound: some is shared
    assert plain[-1]["peak_bytes"] + setting["grain"] * each > cap
    assert [row["difference"] for row in rows if row["difference"] is not None] == [0]
    assert "with Rotor" in checkpoint_plots.throughput_against_batch(run).alt
    assert str(setting["rotor_batch"]) in str(checkpoint_tables.batch_table(run, caption="batches"))
    assert "equal" in str(checkpoint_tables.batch_gradients(run))


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("auto_ckpt_solver_test.py --model vgg", "error: --model vgg is unknown: use one of resnet50, gpt2"),
        ("auto_ckpt_solver_test.py --budgets 1", "error: --budgets 1: a sweep needs at least 2"),
        ("auto_ckpt_solver_test.py --budgets x", "error: argument --budgets: invalid int value: 'x'"),
        ("auto_ckpt_solver_test.py --budgets", "error: argument --budgets: expected one argument"),
        ("auto_ckpt_batchsize_test.py --cap abc", "error: argument --cap: invalid int value: 'abc'"),
        ("auto_ckpt_batchsize_test.py --cap 0", "error: --cap 0 is no memory: give a number of MiB from 1 on"),
        ("auto_ckpt_batchsize_test.py --model vgg", "error: --model vgg is unknown: use one of resnet18"),
        ("auto_ckpt_solver_test.py --nonsense", "error: unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(command, sentence):
    done = subprocess.run([sys.executable, *command.split()], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith(sentence) and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


@ranks
def test_a_cap_below_the_parameters_is_refused():
    run = launch(
        "auto_parallel/auto_ckpt_batchsize_test.py --model gpt2 --cap 5",
        preset="laptop",
        quiet=True,
        expect_failure=True,
    )
    assert run.error.startswith("--cap 5 is too small: gpt2 needs 13 MiB for its parameters and gradients")


@ranks
def test_started_by_hand_it_prints_a_table_and_writes_the_plots(by_hand):
    folder, done, run = by_hand
    assert "measured peak within budget: yes" in done.stdout and max(map(len, run.log)) <= 84
    assert (folder / "auto_ckpt_gpt2.png").read_bytes()[:4] == b"\x89PNG"
    assert "Warning" not in done.stderr
