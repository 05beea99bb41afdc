"""OPT under every strategy: the same losses, the bytes that the formulas say, commands and refusals."""

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from handson import launch
from handson.sources import SCRIPTS

FOLDER = SCRIPTS / "opt"
PROBE = str(Path(__file__).parent / "scripts" / "opt_training_probe.py")
COMPARE = "opt/compare.py --train_file python_reference.txt --steps 5"
KINDS = ("weights", "gradients", "master", "moments")


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")


@cache
def comparison():
    return launch(COMPARE, ranks=2, preset="laptop", quiet=True)


def by_way(kind: str, rank: int = 0) -> dict:
    return {row["way"]: row for row in comparison().rows(kind, rank=rank)}


@pytest.mark.ranks
def test_every_strategy_has_the_losses_of_one_process():
    ways = by_way("way")
    assert len(ways) == 7
    for row in ways.values():
        assert row["gap"] <= (1e-5 if row["precision"] == "fp32" else 2e-3), row["way"]
        assert row["losses"][0] - row["losses"][-1] > 0.05


@pytest.mark.ranks
def test_what_bf16_changes_is_the_same_without_any_strategy():
    rows = list(by_way("way").values())
    (plain,) = {
        max(abs(a - b) for a, b in zip(r["plain"], r["plain_fp32"], strict=True)) for r in rows if r["gap_fp32"] > 1e-4
    }
    for row in rows:
        if row["precision"] == "bf16":
            assert 1e-4 < row["gap_fp32"] < 2e-2 and row["gap_fp32"] == pytest.approx(plain, abs=row["gap"] + 1e-9)


@pytest.mark.ranks
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_keeps_the_bytes_that_the_formula_says(rank):
    parameters = comparison().value("comparison", "parameters")
    for way, row in by_way("training_memory", rank).items():
        for kind in KINDS:
            expected = row["formula"][kind]["bytes"] * parameters
            loose = 0.02 if row["use"] is None else 1 / row["use"] - 1 + 0.02  # chunks are not full
            assert row[kind] == pytest.approx(expected, rel=loose), (way, kind)
            assert row[f"host_{kind}"] == 0
        assert row["activations"] == pytest.approx(row["expected_activations"], rel=0.02)


@pytest.mark.ranks
def test_a_strategy_that_divides_more_keeps_less():
    rows = by_way("training_memory")
    kept = {way: sum(row[kind] for kind in KINDS) for way, row in rows.items()}
    assert kept["gemini-static:bf16"] < kept["zero2:bf16"] < kept["zero1:bf16"] < 0.7 * kept["ddp:bf16"]
    assert kept["zero2:fp32"] < kept["zero1:fp32"] < kept["ddp:fp32"]


@pytest.mark.ranks
def test_bytes_sent():
    """Of bf16: ZeRO-2 as much as data parallelism; upstream's ZeRO-1 all-reduces first, and sends half as much more."""
    sent = {way: row["bytes"] for way, row in by_way("sent").items()}
    assert sent["zero2:bf16"] == pytest.approx(sent["ddp:bf16"], rel=1e-3)
    assert sent["zero1:bf16"] == pytest.approx(1.5 * sent["ddp:bf16"], rel=1e-3)
    assert 1.5 * sent["ddp:bf16"] < sent["gemini-static:bf16"] < 2.5 * sent["ddp:bf16"]


@pytest.mark.ranks
def test_the_page_shows_what_was_measured():
    from handson import show
    from handson.show import opt_claims, opt_training

    run = comparison()
    kept = opt_training.kept(run)
    assert show.quantity(opt_training.on_device(kept["zero2:bf16"]) + kept["zero2:bf16"]["activations"], "B") in (
        opt_training.kept_bars([run]).alt
    )
    table = str(opt_training.byte_table(run))
    assert "4/w = 2.00; 2.00" in table and "9.00; 9.00" in table
    assert str(opt_training.parity_table([run])).count("  equal") == 7
    assert "DIFFERENT" not in str(opt_training.parity_table([run]))
    measured = {row["claim"]: str(row["measured"]) for row in opt_claims.claims(run)}
    assert measured["memory, ZeRO-1"] == "1.60× on 2" and measured["bytes sent, ZeRO-1"] == "1.50×"
    assert "1.50×" in str(opt_training.speed_table([run]))


def test_a_function_of_a_script_is_shown_as_it_is():
    from handson.show.excerpt import excerpt

    shown = excerpt("opt/train.py", "step")
    assert shown.lines[0].startswith("def step(") and "    return loss.detach()" in shown.lines
    with pytest.raises(LookupError, match="has no function walk"):
        excerpt("opt/train.py", "walk")


@pytest.mark.ranks
def test_clipping_holds_back_every_strategy():
    rows = launch(PROBE, "clip", ranks=2, preset="laptop", quiet=True).rows("answer", rank=0)
    assert [row["strategy"] for row in rows] == ["ddp", "zero2", "gemini-static"]
    for row in rows:
        assert row["free"] > 0.05 and abs(row["held"]) < 0.01 * row["free"], row


@pytest.mark.ranks
def test_a_strategy_that_was_closed_leaves_nothing():
    for row in launch(PROBE, "close", preset="laptop", quiet=True).rows("answer"):
        assert (row["left"], row["chunks"]) == (0, 0) and row["of"] > 60, row


@pytest.mark.ranks
def test_the_tutorials_command_trains():
    """`run_clm_synthetic.sh BS MEMCAP MODEL GPUNUM` from any folder, its line a step, its memory beside the formula."""
    folder = Path(sys.executable).parent
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    env |= {"STEPS": "3", "HANDSON_DEVICE": "cpu"}
    done = subprocess.run(
        ["bash", str(FOLDER / "run_clm_synthetic.sh"), "2", "0", "tiny", "2"],
        cwd="/", env=env, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].startswith("OPT tiny: 1,121,280 parameters; random weights, seed 0")
    assert "gemini-static in bf16 on 2 ranks over gloo; 3 steps of 2 x 2 sequences of 16 tokens" in lines
    assert [line.split()[1] for line in lines if line.startswith("step")] == ["1/3", "2/3", "3/3"]
    assert any("MiB of weights (formula 2/w bytes a parameter" in line for line in lines)


@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("run_clm_synthetic.sh", "2 0 tiny 0", "GPUNUM is 0, and must be a number of ranks, from 1 on"),
        ("run_clm.sh", "2 0 tiny two", "GPUNUM is two, and must be a number of ranks, from 1 on"),
        ("run_clm_synthetic.sh", "none 0 tiny 2", "--batch_size: none must be a whole number from 1 on"),
        ("run_clm.sh", "2 8 tiny 2", "this job runs on the CPU; use --mem_cap 0"),
        (
            "run_clm.sh",
            "2 0 tiny 2",
            "--output_dir /dev/null/tuned is no folder that can be written to",
        ),
    ],
)
def test_the_tutorials_commands_refuse_what_makes_no_sense_before_ranks_start(script, words, sentence):
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS), "HANDSON_DEVICE": "cpu"}
    env |= {"OUTPUT": "/dev/null/tuned"} if "output" in sentence else {}
    command = ["bash", str(FOLDER / script), *words.split()]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 2 and said.startswith("error: ") and sentence in said


@pytest.mark.ranks
def test_text_is_learned_and_saved(tmp_path):
    arguments = f"--model_name_or_path tiny --batch_size 8 --sequence 32 --steps 12 --lr 3e-4 --output_dir {tmp_path}"
    run = launch(f"opt/run_clm.py --strategy zero2 {arguments}", preset="laptop", quiet=True)
    losses = [row["loss"] for row in run.rows("loss")]
    assert len(losses) == 12 and sum(losses[-3:]) / 3 < losses[0] - 0.3
    assert any("Python language reference" in line for line in run.log)
    assert (tmp_path / "model" / "config.json").is_file() and (tmp_path / "model" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--strategy zero3", "--strategy zero3 is not known; use one of ddp, zero1"),
        ("--strategy gemini-static --precision fp32", "keeps its weights in 16 bits"),
        ("--strategy gemini-auto", "here is no GPU; use gemini-static"),
        ("--strategy zero2-offload", "here is no GPU; use zero2"),
        ("--strategy gemini-offload", "here is no GPU; use gemini-static"),
        ("-s --mem_cap 8", "this job runs on the CPU; use --mem_cap 0"),
        ("-s --train_file book.txt", "-s makes random tokens"),
        ("--steps 3 --epochs 1", "give --steps or --epochs, not both"),
        ("--save_every 5", "add --output_dir DIR"),
        ("--batch_size 0", "0 must be a whole number from 1 on"),
        ("--lr nan", "nan must be a number above 0"),
        ("--seed -1", "-1 must be a whole number from 0 to 2^32 - 1"),
        ("--seed 4294967296", "4294967296 must be a whole number from 0 to 2^32 - 1"),
        ("--output_dir /dev/null", "/dev/null is no folder that can be written to (File exists); name another"),
        ("--output_dir /dev/null/a", "/dev/null/a is no folder that can be written to (Not a directory)"),
        ("--modell 125m", "--help says what there is"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(arguments, sentence, opt_module, monkeypatch, capsys):
    monkeypatch.setenv("HANDSON_DEVICE", "cpu")
    with pytest.raises(SystemExit) as ended:
        opt_module("settings").read(arguments.split())
    said = capsys.readouterr().err
    assert ended.value.code == 2 and sentence in said and said.count("\n") == 1


def by_hand(script, *words):
    env = {**os.environ, "PYTHONPATH": str(SCRIPTS), "HANDSON_DEVICE": "cpu", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(FOLDER / script), *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("script", "words", "sentence"),
    [
        ("compare.py", "--model nosuch", "there is no OPT of size nosuch: use one of tiny, small"),
        ("compare.py", "--sequence 600", "--sequence 600 is longer than the 512 that OPT tiny can read"),
        ("compare.py", "--ways nosuch:bf16", "--ways nosuch:bf16: nosuch is not known; use one of ddp"),
        ("compare.py", "--ways ddp:fp8", "--ways ddp:fp8: fp8 is not known; use fp32 or bf16"),
        ("compare.py", "--ways ddp", "--ways ddp: each way is a strategy and a precision, such as ddp:fp32"),
        ("compare.py", "--seed -1", "-1 must be a whole number from 0"),
        ("kill_and_resume.py", "--model nosuch", "there is no OPT of size nosuch: use one of tiny, small"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused_in_one_sentence(script, words, sentence):
    done = by_hand(script, *words.split())
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(said) == 1 and sentence in said[0] and "Traceback" not in done.stderr


@pytest.mark.ranks
def test_a_run_that_ended_says_how_to_go_on_and_a_short_one_reports_no_step_time(tmp_path):
    words = "-s --model_name_or_path tiny --batch_size 1 --sequence 8 --strategy ddp --precision fp32 --save_every 1"
    first = by_hand("run_clm.py", *words.split(), "--steps", "1", "--output_dir", str(tmp_path))
    assert first.returncode == 0 and "no step was timed: of 1, all are warm-up; take 3 or more" in first.stdout
    assert "median" not in first.stdout
    kept = sorted(path.name for path in tmp_path.iterdir())
    again = by_hand(
        "run_clm.py", *words.split(), "--steps", "1", "--output_dir", str(tmp_path), "--resume", str(tmp_path)
    )
    assert again.returncode == 2 and "Traceback" not in again.stderr
    sentence = f"error: the run in {tmp_path} has taken 1 step, and this one would end after 1: to go on, give more"
    assert sentence in again.stderr and sorted(path.name for path in tmp_path.iterdir()) == kept


@pytest.mark.ranks
def test_a_folder_that_holds_something_else_is_refused_before_the_training(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "thesis.tex").touch()
    words = "-s --model_name_or_path tiny --batch_size 1 --sequence 8 --strategy ddp --precision fp32 --output_dir"
    done = by_hand("run_clm.py", *words.split(), str(tmp_path))
    assert done.returncode == 2 and "holds something else than an export" in done.stderr and "step" not in done.stdout


def steps_of(kind, dtype, count=5, **how):
    """Two weights after some steps with made-up gradients, and the optimizer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in ((7, 5), (9,))]
    optimizer = kind(weights, lr=0.1, weight_decay=0.1)
    for _ in range(count):
        for weight in weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(torch.bfloat16).to(dtype)
        optimizer.step(**how)
    return weights, optimizer


def test_adamw_takes_torchs_steps_piece_by_piece(opt_module, monkeypatch):
    import torch

    adam = opt_module("adam")
    monkeypatch.setattr(adam, "PIECE", 8)
    (ours, _), (theirs, _) = (steps_of(kind, torch.float32) for kind in (adam.AdamW, torch.optim.AdamW))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-6)


def test_adamw_divides_by_div_scale_and_keeps_narrow_weights_wide(opt_module):
    import torch

    adam = opt_module("adam")
    wide, narrow = steps_of(adam.AdamW, torch.bfloat16, count=20)
    master = narrow.state[wide[0]]["master"]
    assert wide[0].dtype == torch.bfloat16 and master.dtype == torch.float32
    assert torch.equal(wide[0], master.bfloat16()) and not torch.equal(wide[0].float(), master)

    moments = [steps_of(adam.AdamW, torch.float32, 1, div_scale=scale)[1] for scale in (-1, 4.0)]
    plain, divided = (next(iter(optimizer.state.values()))["exp_avg"] for optimizer in moments)
    torch.testing.assert_close(divided, plain / 4)


def test_adamw_loads_the_wide_states_of_narrow_weights(opt_module):
    import torch

    adam = opt_module("adam")
    weights, optimizer = steps_of(adam.AdamW, torch.bfloat16)
    others, fresh = steps_of(adam.AdamW, torch.bfloat16, count=0)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for weight, other in zip(weights, others, strict=True):
        for name, value in optimizer.state[weight].items():
            assert torch.equal(fresh.state[other][name], value) and fresh.state[other][name].dtype == torch.float32
