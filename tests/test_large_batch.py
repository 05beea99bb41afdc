"""`large_batch_optimizer/train.py`: ranks train as one process, mistakes are answered in a sentence, -s only times."""

import re
import subprocess
import sys
from functools import cache
from itertools import pairwise

import pytest
from handson import launch
from handson.run import Run
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "large_batch_optimizer"
TRAIN = "large_batch_optimizer/train.py --config config.py "


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")


@cache
def job(arguments: str, ranks: int, without: tuple[str, ...] = (), fails: bool = False) -> Run:
    return launch(
        TRAIN + arguments, ranks=ranks, preset="laptop", quiet=True, without=without, expect_failure=fails
    )  # fmt: skip


CHECKS = {
    "sgd on 4": ("--check --optimizer sgd", 4),
    "lars on 4": ("--check --optimizer lars", 4),
    "lamb on 4": ("--check --optimizer lamb", 4),
    "adamw on 4": ("--check --optimizer adamw BATCH_SIZE=256", 4),
    "lars with batch norm": ("--check --optimizer lars NETWORK=batchnorm", 2),
    "lamb with batch norm": ("--check --optimizer lamb NETWORK=batchnorm", 2),
    "lamb under ZeRO": ("--check --optimizer lamb PLUGIN=zero", 2),
}


@pytest.mark.ranks
@pytest.mark.parametrize("name", CHECKS)
def test_ranks_take_the_steps_of_one_process(name):
    run = job(*CHECKS[name])
    losses = run.rows("loss")
    assert len(losses) == 5 and max(abs(row["loss"] - row["reference"]) for row in losses) <= 1e-6
    (parity,) = run.rows("parity")
    assert parity["max_weight_difference"] <= 1e-6 < 1e-2 < parity["weights_moved"]


@pytest.mark.ranks
def test_lars_under_zero_is_refused_in_one_sentence():
    error = job("--optimizer lars PLUGIN=zero", 2, fails=True).error
    assert error == (
        "PLUGIN=zero gives each rank a part of every tensor: LARS would take its norms from that part, and train "
        "something else without a word; use PLUGIN=ddp, or LAMB, whose distributed form adds the parts' squares up"
    )


@pytest.mark.ranks
def test_lars_under_zero_when_forced_trains_something_else():
    run = job("--check --optimizer lars PLUGIN=zero", 2, ("larsparts",), fails=True)
    assert "parity: NOT the same" in run.error
    assert run.value("parity", "max_weight_difference") > 1e-3


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("repair", "arguments", "says"),
    [
        ("syncbn", "--check NETWORK=batchnorm", "SyncBatchNorm layers only work with GPU modules"),
        ("zerodevice", "--check --optimizer lamb PLUGIN=zero", "device is required"),
        ("zerostreams", "--check --optimizer lamb PLUGIN=zero", "this method is not supported for cpu accelerator"),
    ],
)
def test_the_error_shows_without_the_repair(repair, arguments, says):
    assert says in job(arguments, 2, (repair,), fails=True).error


@pytest.mark.ranks
def test_training_on_real_digits_learns_them():
    run = job("--optimizer adamw", 2)
    assert [row["step"] for row in run.rows("loss")] == list(range(1, 21))
    assert run.value("accuracy", "test") > 0.9
    assert re.fullmatch(r"test accuracy 9\d\.\d % after 20 steps", run.log[-1])


@pytest.mark.ranks
def test_synthetic_images_only_time_steps_and_the_log_says_so():
    run = job("-s", 2)
    assert "random labels: this measures speed, nothing can be learned" in run.log
    assert not run.rows("accuracy") and not run.rows("loss")
    row = run.rows("throughput")[0]
    assert (row["images_per_rank"], row["global_batch"]) == (32, 64)
    assert row["images_per_second"] == pytest.approx(64e3 / row["median_ms"])


@pytest.mark.ranks
def test_a_sweep_doubles_the_batch_and_finds_where_it_is_full():
    run = job("-s --sweep SWEEP=[2,16] TIMED_STEPS=2 WARMUP_STEPS=1", 2)
    rows = run.rows("throughput")
    assert [row["images_per_rank"] for row in rows] == [2, 4, 8, 16]
    assert all(later["peak_bytes"] > earlier["peak_bytes"] for earlier, later in pairwise(rows))
    full = run.rows("full")[0]
    best = max(row["images_per_second"] for row in rows)
    enough = [row["images_per_rank"] for row in rows if row["images_per_second"] >= 0.9 * best]
    assert (full["best"], full["images_per_rank"], full["stopped"]) == (best, min(enough), "cap")
    assert [row["method"] for row in run.rows("update")] == ["sgd", "lars-upstream", "lars", "lamb", "adamw"]
    # What a rank sends does not grow with the batch, and is the gradients' ring and little more.
    sent = [
        sum(part["wire_bytes"] for part in row["rows"] if part["collective"] == "all_reduce")
        for row in run.rows("communication", 0)
    ]
    assert len(set(sent)) == 1 and 1 <= sent[0] / (4 * full["parameters"]) < 1.2


@pytest.mark.ranks
def test_colossalai_run_starts_it_as_the_tutorial_says():
    done = subprocess.run(
        ["colossalai", "run", "--nproc_per_node", "2", "--master_port", "29583", "train.py", "--config", "config.py",
         "-s", "TIMED_STEPS=1", "WARMUP_STEPS=0"],
        cwd=FOLDER, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 x   32 images" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("BATCH_SISE=64", "says BATCH_SISE, which is no setting; did you mean BATCH_SIZE?"),
        ("BATCH_SIZE=100", "BATCH_SIZE=100 does not divide the 1024 training images; use a power of 2 up to them"),
        ("BATCH_SIZE=2.5", "BATCH_SIZE=2.5, which is not of type int"),
        ("EPOCHS=0", "EPOCHS=0, which must be 1 or more"),
        ("NETWORK=resnet", "NETWORK=resnet, which is not known; use plain, batchnorm"),
        ("LEARNING_RATE=fast", "LEARNING_RATE='fast', which is not of type float"),
        ("LOWEST={'sgd':0.1}", "LOWEST gives no positive learning rate for lars, lamb, adamw; give one for each"),
        ("LEARNING_RATES={'sgd':'fast'}", "LEARNING_RATES gives no positive learning rate for sgd, lars, lamb, adamw"),
        ("SWEEP=[8,4]", "SWEEP=[8, 4] must be two numbers of images, the first not above the second"),
        ("WARMUP=1", "WARMUP=1 must be a share of the steps, from 0 to below 1"),
        ("BATCHES=[64,96]", "a batch of BATCHES=96 does not divide the 1024 training images"),
        ("BATCHES=[1,64]", "BATCHES names 1, and batch norm takes its statistics over two images or more"),
        ("TRUST_COEFFICIENT=2", "TRUST_COEFFICIENT=2 must be above 0 and up to 1"),
        ("frob", "frob is no setting; write KEY=value, for example BATCH_SIZE=256"),
        ("--optimizer adam", "argument --optimizer: invalid choice: 'adam'"),
        ("--sweep", "--sweep times steps on synthetic images; add -s"),
        ("-s --check", "--check compares training on the digits, and -s only times steps; leave one out"),
        ("--check --optimizer lamb NETWORK=batchnorm PLUGIN=zero", "ZeRO's plugin leaves batch norm to each rank's"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(arguments, sentence, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", ["train.py", "--config", "config.py", *arguments.split()])
    import train

    with pytest.raises(SystemExit) as stop:
        train.main()
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_definitions_takes_no_arguments_and_says_so():
    command = [sys.executable, "definitions.py", "--nonsense"]
    done = subprocess.run(command, cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "error: definitions.py takes no arguments; leave out --nonsense\n"
