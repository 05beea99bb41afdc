"""Today's API on the CPU: each fault shows without its repair, on live ranks, and is gone with it."""

from functools import cache
from pathlib import Path

import pytest
from handson import launch
from handson.repairs import booster_cpu, leaving, noise

FEW_GPUS = str(Path(__file__).parent / "scripts" / "few_gpus.py")
# repair -> the division that meets its fault, and what the error says (a CPU build of torch, a CUDA build)
RAISES = {
    "rngstate": ("TP=2", ("get_rng_state() takes 0 positional arguments but 1 was given",)),
    "manualseed": ("TP=2", ("this method is not supported for cpu accelerator",)),
    "hccl": ("PP=2", ("no attribute 'is_hccl_available'", "type object 'Backend' has no attribute 'HCCL'")),
}

pytestmark = pytest.mark.ranks


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


def booster(division: str, **options: bool):
    return launch("step_by_step/booster.py", division, ranks=2, preset="laptop", quiet=True, **options)


@cache
def repaired(division: str):
    return booster(division)


@pytest.mark.parametrize("name", RAISES)
def test_the_error_shows_without_the_repair_and_is_gone_with_it(name, monkeypatch):
    division, messages = RAISES[name]
    assert name in repaired(division).value("repairs", "names")
    monkeypatch.setenv("HANDSON_WITHOUT", name)
    error = booster(division, expect_failure=True).error
    assert any(message in error for message in messages)
    (repair,) = (repair for repair in booster_cpu.REPAIRS if repair.name == name)
    assert all(message in repair.symptom for message in messages)


def test_with_fewer_gpus_than_ranks_the_cpu_is_used_as_asked(monkeypatch):
    run = launch(FEW_GPUS, ranks=2, preset="laptop", quiet=True)
    assert {(row["name"], "backend" in row["repairs"]) for row in run.rows("backend")} == {("gloo", True)}
    monkeypatch.setenv("HANDSON_WITHOUT", "backend")
    assert "NCCL" in launch(FEW_GPUS, ranks=2, preset="laptop", quiet=True, expect_failure=True).error


def test_every_repair_of_the_area_has_a_test():
    assert {repair.name for repair in booster_cpu.REPAIRS} == RAISES.keys() | {"backend"}


def test_plain_data_parallelism_needs_the_repairs_no_more_than_torch_does(monkeypatch):
    """TorchDDPPlugin meets none of the faults: a repair that it needed would be missing from the list above."""
    monkeypatch.setenv("HANDSON_WITHOUT", ",".join(RAISES))
    run = launch("step_by_step/step4_booster.py", ranks=2, preset="laptop", quiet=True)
    needed = [repair.name for area in (noise, leaving) for repair in area.REPAIRS if repair.needed()]
    assert run.value("repairs", "names") == needed
