"""The repairs of Gemini: each fault shows without its repair, on live ranks, and is gone with it."""

from functools import cache
from pathlib import Path

import pytest
from handson import launch, provenance
from handson.repairs import gemini

PROBE = str(Path(__file__).parent / "scripts" / "opt_training_probe.py")

pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def ask(question: str, *without: str, fails: bool = False):
    return launch(PROBE, question, preset="laptop", quiet=True, without=without, expect_failure=fails)


@cache
def trained():
    run = ask("gemini")
    first, second = run.value("answer", "losses")
    assert second < first
    return run


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("geminitier", "assert self.cuda_shard is not None"),
        ("geminioptimizers", "You should use an optimizer in the available list"),
    ],
)
def test_gemini_without_it_ends_with_the_fault(name, message):
    assert name in trained().value("repairs", "names")
    error = ask("gemini", name, fails=True).error
    assert "AssertionError" in error and message in error


def test_geminiprint_without_it_something_is_printed():
    assert ask("prints", "geminiprint").value("answer", "printed") == "finish_collection 0\n"
    assert ask("prints").value("answer", "printed") == ""


def test_adamclip_without_it_the_gradients_are_not_divided():
    without, repaired = (
        {row["optimizer"]: row for row in run.rows("answer")} for run in (ask("adams", "adamclip"), ask("adams"))
    )
    assert without.keys() == repaired.keys() == {"CPUAdam", "HybridAdam"}
    for name in without:
        assert without[name]["scaled"] == without[name]["large"]
        assert repaired[name]["scaled"] == pytest.approx(repaired[name]["small"], rel=1e-4)
        assert abs(repaired[name]["large"] - repaired[name]["small"]) > 1e-3


@pytest.mark.skipif(len(provenance.gpus()) < 2, reason="a race of two CUDA streams: it needs two GPUs")
def test_geminireduce_without_it_offloaded_gradients_are_wrong():
    way, gaps = "gemini-offload:bf16", []
    for without in ((), ("geminireduce",)):
        command = f"opt/compare.py --train_file python_reference.txt --ways {way}"
        gaps.append(launch(command, ranks=2, preset="gpu", quiet=True, without=without).value("way", "gap"))
    repaired, faulty = gaps
    assert repaired < 5e-3 < 2e-2 < faulty


def test_every_repair_of_this_area_has_a_test():
    tested = {"geminitier", "geminioptimizers", "geminiprint", "geminireduce", "adamclip"}
    assert {repair.name for repair in gemini.REPAIRS} == tested
