"""Each repair of sequence parallelism: the fault shows without it, on live ranks, and is gone with it."""

from functools import cache

import pytest
from handson import launch
from handson.repairs import legacy_sequence
from handson.run import Run

SP2 = (2,)
ORDER = (2, "SENTENCE_ORDER=True")
PIPELINE = (4, "PIPELINE_SIZE=2", "NUM_MICRO_BATCHES=2")
ALL_AXES = (8, "PIPELINE_SIZE=2", "NUM_MICRO_BATCHES=2")
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


def check(division: tuple, without: tuple[str, ...] = ()) -> Run:
    """Compare this division with one device, over two steps."""
    ranks, *overrides = division
    argv = ("--config", "config.py", "-s", "--check", "CHECK_STEPS=2", *overrides)
    how = {"preset": "laptop", "quiet": True, "expect_failure": bool(without), "without": without, "timeout": 120}
    return launch("sequence_parallel/train.py", *argv, ranks=ranks, **how)


@cache
def repaired(division: tuple) -> Run:
    return check(division)


def losses(run: Run) -> list[tuple[float, float]]:
    return [(row["loss"], row["reference"]) for row in run.rows("loss")]


@cache
def compared() -> dict[tuple, dict]:
    sizes = ("DEPTH=2", "HIDDEN_SIZE=32", "SEQUENCE_LENGTH=32", "BATCH_SIZE=4")
    script = "sequence_parallel/compare_attention.py"
    run = launch(script, "config.py", *sizes, ranks=2, preset="laptop", quiet=True)
    return {tuple(row["faults"]): row for row in run.rows("compared", rank=0) if row["attention"] == "ring"}


@pytest.mark.ranks
def test_ringgrad_without_it_gradients_are_divided_by_the_ranks():
    faulty, good = compared()["ringgrad",], compared()[()]
    assert faulty["output_difference"] <= TOLERANCE, "the forward pass is right, so nobody notices"
    assert faulty["top_gradient_ratio"] == pytest.approx(0.5, abs=1e-4)
    assert faulty["least_cosine"] < 0.98
    assert good["top_gradient_ratio"] == pytest.approx(1, abs=1e-5) and good["gradient_difference"] <= TOLERANCE

    broken = losses(check(SP2, without=("ringgrad",)))
    assert broken[0][0] == pytest.approx(broken[0][1], abs=TOLERANCE)
    assert abs(broken[1][0] - broken[1][1]) > 1e-3


@pytest.mark.ranks
def test_scale_without_it_the_scores_are_those_of_one_wide_head():
    both, one = compared()["scale", "ringgrad"], compared()["ringgrad",]
    assert both["output_difference"] > 0.01 > TOLERANCE >= one["output_difference"]


@pytest.mark.ranks
def test_losssum_without_it_the_loss_is_twice_the_loss_and_the_weights_do_not_notice():
    run = check(SP2, without=("losssum",))
    for loss, reference in losses(run):
        assert loss == pytest.approx(2 * reference, rel=1e-5)
    (parity,) = run.rows("parity")
    assert parity["max_weight_difference"] <= TOLERANCE < parity["weights_moved"]
    assert repaired(SP2).value("parity", "max_loss_difference") <= TOLERANCE


@pytest.mark.ranks
def test_lossmean_without_it_masked_tokens_count_unequally():
    run = check(SP2, without=("lossmean",))
    (first, reference), *_ = losses(run)
    assert 1e-4 < abs(first - reference) < 0.5
    assert run.value("parity", "max_weight_difference") > 1e-4
    assert repaired(SP2).value("parity", "max_weight_difference") <= TOLERANCE


@pytest.mark.ranks
def test_tied_without_it_the_copies_of_the_word_embedding_drift_apart():
    run = check(PIPELINE, without=("tied",))
    assert losses(run)[0][0] == pytest.approx(losses(run)[0][1], abs=TOLERANCE)
    assert run.value("parity", "max_weight_difference") > 1e-3
    assert repaired(PIPELINE).value("parity", "max_weight_difference") <= TOLERANCE


@pytest.mark.ranks
def test_seqdp_without_it_two_stages_average_their_gradients():
    assert "data size doesn't match expected size" in check(ALL_AXES, without=("seqdp",)).error
    assert repaired(ALL_AXES).value("parity", "max_loss_difference") <= TOLERANCE


@pytest.mark.ranks
def test_nograds_without_it_the_order_head_breaks_the_averaging():
    assert "data size doesn't match expected size" in check(ORDER, without=("nograds",)).error
    assert repaired(ORDER).value("parity", "max_loss_difference") <= TOLERANCE


def test_every_repair_of_this_area_has_a_test():
    tested = {name.split("_")[1] for name in globals() if name.startswith("test_") and "_without_it_" in name}
    assert tested == {repair.name for repair in legacy_sequence.REPAIRS}


def test_the_repairs_in_force_are_recorded():
    names = {repair.name for repair in legacy_sequence.REPAIRS}
    assert names <= set(repaired(SP2).value("repairs", "names"))
