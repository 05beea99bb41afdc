"""Each repair of auto-parallel: the fault shows without it, and is gone with it."""

from functools import cache
from pathlib import Path

import pytest
from handson import launch, repairs
from handson.repairs import auto_parallel, auto_parallel_run
from handson.watching import RunFailed

PROBE = str(Path(__file__).parent / "scripts" / "auto_parallel_probe.py")
EXACT = 1e-9

# repair -> the question that meets its fault, on how many ranks, and what the error says
RAISES = {
    "cbc": ("search", 1, ("Please install ILP solvers by 'sudo apt install coinor-cbc'",)),
    "mesh_shape": ("upstream", 2, ("cannot unpack non-iterable NoneType object",)),
    "mesh_device": ("upstream", 2, ("Distributed package doesn't have NCCL built in", "only supported with GPUs")),
    "stream": ("upstream", 2, ("torch.cuda.Stream requires CUDA support", "No CUDA GPUs", "no NVIDIA driver")),
    "solution": ("upstream", 2, ("Weights only load failed",)),
    "profiler": ("profiler", 2, ("Torch not compiled with CUDA enabled", "No CUDA GPUs", "no NVIDIA driver")),
    "flatten": ("profiler", 2, ("Distributed package doesn't have NCCL built in", "only supported with GPUs")),
}
# These make no error: each has a test of its own below.
SILENT = {"difference", "paths", "infinity", "addmm", "hook", "sync_bn", "gather_dim", "trace"}


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


def ask(question: str, ranks: int, *without: str) -> list[dict]:
    run = launch(PROBE, question, ranks=ranks, preset="laptop", quiet=True, without=without)
    return run.rows("answer", rank=0)


@cache
def repaired(question: str, ranks: int) -> list[dict]:
    return ask(question, ranks)


def models(answers: list[dict]) -> dict[str, dict]:
    return {answer["model"]: answer for answer in answers}


@pytest.mark.ranks
@pytest.mark.parametrize("name", RAISES)
def test_the_error_shows_without_the_repair_and_is_gone_with_it(name):
    question, ranks, texts = RAISES[name]
    assert repaired(question, ranks)
    with pytest.raises(RunFailed) as failed:
        ask(question, ranks, name)
    assert any(text in str(failed.value) for text in texts), failed.value


@pytest.mark.ranks
def test_upstreams_own_entrance_works_on_a_mesh_of_a_given_shape_and_keeps_its_solution():
    (answer,) = repaired("upstream", 2)
    solved, loaded = answer["differences"]
    assert solved <= 1e-5 and loaded <= 1e-5


@pytest.mark.ranks
def test_the_profiler_times_a_link_of_the_cpu_and_a_flattened_mesh_is_made_once():
    (answer,) = repaired("profiler", 2)
    latency, seconds_a_byte = answer["links"]
    assert 0 < latency < 1 and 0 < seconds_a_byte < 1e-3
    assert answer["same"]


@pytest.mark.ranks
def test_difference_and_paths_without_them_the_same_work_is_done_again_and_again():
    (cured,) = repaired("search", 1)
    assert cured["tables"] == 0  # built before the count, once
    (slow,) = ask("search", 1, "difference", "paths")
    assert slow["tables"] > 1000
    assert slow["paths"] > 2 * cured["paths"]
    assert slow["ours"] == pytest.approx(cured["ours"])


@pytest.mark.ranks
def test_infinity_without_it_a_cost_that_is_only_large_counts_as_impossible():
    assert repaired("search", 1)[0]["said"] == []
    (broken,) = ask("search", 1, "infinity")
    assert broken["said"] == ["Detect unexpected behaviors in the auto-sharding pass."]


@pytest.mark.ranks
def test_a_models_rows_add_up_to_what_the_solver_minimised():
    (answer,) = repaired("search", 1)
    assert answer["ours"] == pytest.approx(answer["solvers"], rel=1e-9) and answer["ours"] > 0


@pytest.mark.ranks
def test_trace_without_it_a_failed_trace_leaves_torch_patched():
    (cured,) = ask("trace", 1)
    assert cured["same"] == [True, True]
    assert cured["sentence"].startswith("Undecided cannot be traced: TraceError")
    (broken,) = ask("trace", 1, "trace")
    assert broken["same"] == [False, False]


@pytest.mark.ranks
def test_small_models_are_the_same_on_two_ranks_and_on_one():
    answers = models(repaired("parity", 2))
    assert answers.keys() == {"addmm", "hook", "sync_bn", "gather_dim"}
    for name, answer in answers.items():
        assert answer["error"] == "", name
        assert max(answer["output"], answer["gradient"]) <= EXACT, name
    assert answers["sync_bn"]["strategies"]["_1"] == "S01R = S01R x R WITH SYNC_BN"


@pytest.mark.ranks
@pytest.mark.parametrize("name", ["addmm", "hook", "sync_bn"])
def test_without_the_repair_the_gradient_is_wrong_and_no_error_says_so(name):
    broken = models(ask("parity", 2, name))[name]
    assert broken["error"] == "" and broken["gradient"] > 0.1
    assert (broken["output"] > 1e-3) == (name == "sync_bn")


@pytest.mark.ranks
def test_gather_dim_without_it_a_pooled_tensor_is_put_together_along_the_wrong_dimension():
    broken = models(ask("parity", 2, "gather_dim"))["gather_dim"]
    assert "a and b must have same reduction dim" in broken["error"]


def test_every_repair_of_these_areas_has_a_test():
    known = {repair.name for area in (auto_parallel, auto_parallel_run) for repair in area.REPAIRS}
    assert known == RAISES.keys() | SILENT
    assert known <= {repair.name for repair in repairs.all_repairs()}
