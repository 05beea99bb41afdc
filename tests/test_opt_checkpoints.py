"""Killed and resumed trainings, damaged checkpoints, exports: on live ranks, by the real training script."""

import json
from functools import cache
from pathlib import Path

import pytest
from handson import launch

PROBE = str(Path(__file__).parent / "scripts" / "opt_checkpoint_probe.py")
WAYS = (("ddp", "fp32"), ("zero2", "bf16"), ("gemini-static", "bf16"))
pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def killed(strategy: str, precision: str):
    steps = "--steps 9 --save_every 3 --kill_at 5"
    script = f"opt/kill_and_resume.py --strategy {strategy} --precision {precision} {steps}"
    return launch(script, ranks=2, preset="laptop", quiet=True)


def losses(run, phase: str) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in run.rows("resume_loss", rank=0) if row["phase"] == phase}


def probe(tmp_path, *argv: str, fails: bool = False):
    return launch(PROBE, str(tmp_path / "out"), *argv, preset="laptop", quiet=True, expect_failure=fails)


@pytest.mark.parametrize("strategy, precision", WAYS)
def test_a_run_killed_midway_resumes_with_the_losses_of_one_that_was_not(strategy, precision):
    run = killed(strategy, precision)
    whole, first, second = (losses(run, phase) for phase in ("whole", "killed", "resumed"))
    assert list(whole) == list(range(1, 10)) and whole[1] - whole[9] > 0.1
    assert 5 <= max(first) < 9 and first == {step: whole[step] for step in first}
    went_on = run.value("resume", "resumed_after")
    assert went_on in (3, 6) and second == {step: whole[step] for step in range(went_on + 1, 10)}


@pytest.mark.parametrize("strategy, precision", WAYS)
def test_plain_transformers_has_the_logits_of_the_model_under_its_strategy(strategy, precision):
    run = killed(strategy, precision)
    assert run.value("resume", "logits_apart") == 0.0 and run.value("resume", "logits") == 2 * 64 * 2048
    assert {"config.json", "model.safetensors.index.json"} <= set(run.value("resume", "files"))


@pytest.mark.parametrize("where", ["_save_model", "_states", "write", "flush"])
def test_a_kill_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, where):
    run = probe(tmp_path, "interrupted", where)
    after = run.rows("after")[0]
    assert after["left"] == [".step-00000002.part", "step-00000001"]
    assert (after["step"], after["losses"]) == (1, [3.0])
    assert after["now"] == ["step-00000002", "step-00000003"]


@pytest.mark.parametrize(
    "file, how, says",
    [
        ("model/model-00001.safetensors", "cut", "step-00000001/model/model-00001.safetensors is truncated"),
        ("rank-000.pt", "cut", "step-00000001/rank-000.pt is truncated"),
        ("rank-000.pt", "changed", "step-00000001/rank-000.pt is damaged"),
        ("model/config.json", "removed", "step-00000001/model/config.json is missing"),
        ("manifest.json", "cut", "step-00000001/manifest.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_the_name_of_its_file(tmp_path, file, how, says):
    assert says in probe(tmp_path, "damaged", file, how, fails=True).error


def test_a_checkpoint_of_another_strategy_is_refused_and_says_what_to_do(tmp_path):
    error = probe(tmp_path, "other", "ddp", "zero1", fails=True).error
    assert "was made with strategy ddp, not zero1" in error and "--model_name_or_path" in error


def test_nothing_to_resume_from_is_said(tmp_path):
    assert "there is no checkpoint in" in probe(tmp_path, "absent", fails=True).error


def test_an_export_replaces_an_earlier_one_and_nothing_else(tmp_path):
    run = probe(tmp_path, "exported", "ours")
    files = run.value("exported", "files")
    assert "stale.bin" not in files and "model-00001.safetensors" in files
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["model_type"] == "opt" and config["use_cache"] is True
    error = launch(PROBE, str(tmp_path / "mine"), "exported", "foreign", quiet=True, expect_failure=True).error
    assert "holds something else than an export" in error and (tmp_path / "mine" / "thesis.tex").is_file()


def test_tied_weights_cannot_be_saved_without_the_repair(tmp_path):
    broken = launch(PROBE, str(tmp_path / "a"), "exported", "ours", quiet=True, expect_failure=True,
                    without=("tiedweights",))  # fmt: skip
    assert "Some tensors share memory" in broken.error and "lm_head.weight" in broken.error
