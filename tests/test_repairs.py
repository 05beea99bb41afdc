"""Each repair: the fault shows without it, on live ranks, and is gone with it."""

import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from handson import launch, repairs
from handson.repairs import legacy_cpu, legacy_engine, legacy_launch, legacy_layers, noise, titans_imports
from handson.run import Run

PROJECTS = ("hpcaitech/ColossalAI", "hpcaitech/ColossalAI-Examples", "pytorch/pytorch")
UPSTREAM = tuple(f"https://github.com/{project}/issues/" for project in PROJECTS)

AREAS = (noise, titans_imports, legacy_launch, legacy_cpu, legacy_engine, legacy_layers)
PROBE = str(Path(__file__).parent / "scripts" / "repairs_probe.py")
NO_CUDA = ("Torch not compiled with CUDA enabled", "No CUDA GPUs are available", "no NVIDIA driver")

SINGLE = (1, "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=1")
DATA = (2, *SINGLE[1:])
PIPELINE = (2, "PIPELINE_SIZE=2", "TENSOR_PARALLEL_SIZE=1", "NUM_MICRO_BATCHES=2")
ONE_D = (2, "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=2")
DEFAULT = (4, "NUM_MICRO_BATCHES=2")
TWO_AND_A_HALF_D = (4, "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=4", "TENSOR_PARALLEL_MODE=2.5d")
THREE_D = (8, "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=8", "TENSOR_PARALLEL_MODE=3d")
DEEP = (8, "PIPELINE_SIZE=1", "TENSOR_PARALLEL_SIZE=8", "TENSOR_PARALLEL_MODE=2.5d", "TENSOR_PARALLEL_DEPTH=2")

# repair -> the division that meets its fault, and what the error says (any of these)
RAISES = {
    "titans": (SINGLE, ("No module named 'colossalai.global_variables'",)),
    "moe": (SINGLE, ("No module named 'colossalai.context.moe_context'",)),
    "host": (SINGLE, ("ValueError: An IPv4 address cannot be in brackets",)),
    "rng": (SINGLE, NO_CUDA),
    "seed": (ONE_D, ("KeyError: <ParallelMode.TENSOR: 'tensor'>",)),
    "dev": (DEFAULT, NO_CUDA),
    "ddp": (DATA, NO_CUDA),
    "sync": (PIPELINE, ("RuntimeError: this method is not supported for cpu accelerator",)),
    "colo": (PIPELINE, ("type object 'ColoParameter' has no attribute 'from_torch_tensor'",)),
    "ln1d": (ONE_D, ("No usable kernel found for LayerNormLoader",)),
    "ckpt": ((*SINGLE, "CHECKPOINT=True"), ("TypeError: 'module' object is not callable",)),
    "async3d": (THREE_D, ("'NoneType' object has no attribute 'add_'",)),
}
# These make no error: each has a test of its own below.
SILENT = {"warnings", "bitsandbytes", "clip", "norm", "stack", "dep2p5d", "nograd"}


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


def check(ranks: int, *overrides: str, expect_failure: bool = False) -> Run:
    """Compare this division with one device, over two steps."""
    argv = ("--config", "config.py", "-s", "--check", "CHECK_STEPS=2", *overrides)
    return launch(
        "hybrid_parallel/train.py", *argv, ranks=ranks, preset="laptop", quiet=True, expect_failure=expect_failure
    )


@cache
def repaired(division: tuple) -> Run:
    return check(*division)


def answers(question: str, division: tuple = SINGLE) -> list[dict]:
    ranks, *overrides = division
    return launch(PROBE, question, *overrides, ranks=ranks, preset="laptop", quiet=True).rows("answer")


@pytest.mark.ranks
@pytest.mark.parametrize("name", RAISES)
def test_the_error_shows_without_the_repair_and_is_gone_with_it(name, monkeypatch):
    division, texts = RAISES[name]
    assert repaired(division).value("parity", "max_loss_difference") <= 1e-5
    assert name in repaired(division).value("repairs", "names")

    monkeypatch.setenv("HANDSON_WITHOUT", name)
    broken = check(*division, expect_failure=True)
    assert any(text in broken.error for text in texts), broken.error
    (repair,) = (r for r in repairs.all_repairs() if r.name == name)
    assert any(text in repair.symptom for text in texts) or texts is NO_CUDA, "the page would show another error"


@pytest.mark.ranks
def test_clip_without_it_no_weight_moves_and_no_error_says_so(monkeypatch):
    repaired_run = repaired(SINGLE)
    assert repaired_run.rows("loss")[1]["loss"] < repaired_run.rows("loss")[0]["loss"] - 0.5

    monkeypatch.setenv("HANDSON_WITHOUT", "clip")
    broken = check(*SINGLE, expect_failure=True)
    first, second = (row["loss"] for row in broken.rows("loss"))
    assert first == second
    # The reference moved away from weights that stayed where they were.
    (parity,) = broken.rows("parity")
    assert parity["max_weight_difference"] == pytest.approx(parity["weights_moved"]) != 0


@pytest.mark.ranks
def test_clip_uses_the_norm_of_the_whole_model_where_upstream_takes_each_ranks_own(monkeypatch):
    division = (*DEFAULT, "CLIP_GRAD_NORM=0.5")
    assert check(*division).value("parity", "max_loss_difference") <= 1e-5
    monkeypatch.setenv("HANDSON_WITHOUT", "clip")
    broken = check(*division, expect_failure=True)
    assert broken.value("parity", "max_loss_difference") > 1e-3


@pytest.mark.ranks
def test_norm_without_it_clipping_in_2p5d_goes_astray(monkeypatch):
    division = (*TWO_AND_A_HALF_D, "CLIP_GRAD_NORM=0.5")
    assert check(*division).value("parity", "max_loss_difference") <= 1e-5
    monkeypatch.setenv("HANDSON_WITHOUT", "norm")
    broken = check(*division, expect_failure=True)
    assert broken.value("parity", "max_loss_difference") > 1e-3


@pytest.mark.ranks
def test_dep2p5d_without_it_the_copies_along_the_depth_never_meet(monkeypatch):
    def along_the_depth(rows: list[dict]) -> list[tuple[dict, dict]]:
        place = {(row["dep"], row["row"], row["col"]): row for row in rows}
        return [(place[0, row, col], place[1, row, col]) for row in (0, 1) for col in (0, 1)]

    for one, other in along_the_depth(answers("step", DEEP)):
        assert one["images"] == other["images"] == [4]  # 16 images over 2 rows and 2 depths
        assert one["before"] == other["before"] and one["after"] == other["after"] != one["before"]

    monkeypatch.setenv("HANDSON_WITHOUT", "dep2p5d")
    for one, other in along_the_depth(answers("step", DEEP)):
        assert one["images"] == other["images"] == [8]  # twice the work for nothing
        assert one["before"] != other["before"] and one["after"] != other["after"]


@pytest.mark.ranks
def test_nograd_without_it_torch_warns_of_training_through_a_broadcast(monkeypatch):
    def complaints() -> int:
        return sum(
            "autograd kernel was not registered" in text for row in answers("step", ONE_D) for text in row["warnings"]
        )

    assert complaints() == 0
    monkeypatch.setenv("HANDSON_WITHOUT", "nograd")
    assert complaints() == 2  # one on each rank


@pytest.mark.ranks
def test_stack_without_it_a_line_that_is_not_shown_walks_the_stack(monkeypatch):
    assert [row["walks"] for row in answers("stack")] == [0]
    monkeypatch.setenv("HANDSON_WITHOUT", "stack")
    assert [row["walks"] for row in answers("stack")] == [1]


@pytest.mark.ranks
def test_noise_is_silenced_by_its_words_and_nothing_else_is(monkeypatch):
    (quiet,) = answers("imports")
    assert quiet["warnings"] == ["something else is old"]
    assert quiet["logged"] == ["something else is missing"]

    monkeypatch.setenv("HANDSON_WITHOUT", "warnings,bitsandbytes")
    (loud,) = answers("imports")
    assert any("custom_fwd(args...)` is deprecated" in text for text in loud["warnings"])
    assert any("gemm_4bit_forward" in text for text in loud["logged"])


@pytest.mark.ranks
def test_a_repair_that_does_not_exist_is_refused(monkeypatch):
    monkeypatch.setenv("HANDSON_WITHOUT", "host,hots")
    assert check(*SINGLE, expect_failure=True).error == "HANDSON_WITHOUT names no repair of this kit: hots"


def test_every_repair_of_these_areas_has_a_test():
    assert {repair.name for area in AREAS for repair in area.REPAIRS} == RAISES.keys() | SILENT


def test_repairs_are_named_once_and_say_what_a_reader_needs():
    listed = repairs.all_repairs()
    assert len({repair.name for repair in listed}) == len(listed) >= len(RAISES) + len(SILENT)
    for repair in listed:
        assert repair.symptom and repair.cause and repair.area and repair.where.startswith(("CPU", "CUDA"))
        assert repair.upstream == "" or repair.upstream.startswith(UPSTREAM)


def test_listing_the_repairs_imports_none_of_the_repaired_packages():
    code = (
        "import sys; from handson import repairs; repairs.all_repairs(); "
        "print(sorted({'torch', 'colossalai', 'titans', 'transformers'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
