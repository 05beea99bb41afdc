"""One linear layer in every mode: the counted bytes equal the derived ones, and its results equal one device's."""

import sys
from fractions import Fraction
from pathlib import Path

import pytest
from handson import launch

sys.path.append(str(Path(__file__).parents[1] / "tutorial_src" / "hybrid_parallel"))

from linear_theory import Setting, compare_counts, expected, published

LINEAR = "hybrid_parallel/linear.py"
# The modes and ranks of the lesson, with what a rank sends in whole matrices S when X, W and Y have one size.
MODES = [
    ("1d", 4, 1, 1.5),
    ("1d", 8, 1, 1.75),
    ("2d", 4, 1, 1.5),
    ("2.5d", 4, 1, 1.5),
    ("2.5d", 8, 2, 1.125 + 0.25),  # the layer, and the gradients' all-reduce over the depth
    ("3d", 8, 1, 0.75),
]


def setting(mode, ranks, depth, shapes=(64, 64, 64)):
    return Setting(mode, ranks, depth, *shapes)


@pytest.mark.parametrize("mode, ranks, depth, matrices", MODES)
def test_the_derived_bytes_sum_to_the_published_formula_in_its_unit(mode, ranks, depth, matrices):
    for shapes in ((64, 64, 64), (64, 128, 192)):
        here = setting(mode, ranks, depth, shapes)
        paper = published(here)
        covered = sum(Fraction(term.wire_bytes(here)) for term in expected(here) if term.published)
        assert covered == paper.value * paper.unit_elements * 4
    square = setting(mode, ranks, depth)
    assert sum(term.wire_bytes(square) for term in expected(square)) == matrices * 64 * 64 * 4


def test_larger_meshes_follow_the_formulas_too():
    assert published(setting("2d", 16, 1)).value == Fraction(9, 2)
    assert published(setting("2.5d", 18, 2, (36, 36, 36))).value == Fraction(3 * 2 * 3, 6)
    assert published(setting("3d", 27, 1, (54, 54, 54))).value == Fraction(12, 27)
    assert setting("3d", 27, 1, (54, 54, 54)).refusal() is None


def test_a_collective_outside_the_theory_is_shown():
    rows = [{"collective": "barrier", "group": "world", "calls": 1, "wire_bytes": 0}]
    lines = compare_counts(setting("1d", 4, 1), "linear", rows)
    assert [(line.collective, line.calls, line.calls_expected) for line in lines] == [
        ("all_reduce", 0, 1),
        ("barrier", 1, 0),
    ]
    assert lines[1].formula == "not in the theory"


@pytest.mark.ranks
@pytest.mark.parametrize("mode, ranks, depth, matrices", MODES)
def test_counted_equals_derived_and_results_equal_one_device(mode, ranks, depth, matrices):
    run = launch(LINEAR, f"MODE={mode}", f"DEPTH={depth}", "IN=64", "OUT=96", "TOKENS=32", ranks=ranks, preset="laptop")
    layers = {"linear", "mlp"} if mode == "1d" else {"linear"}
    rows = run.rows("linear", rank=0)
    assert {row["layers"] for row in rows} == layers
    for row in rows:
        assert row["wire_bytes_counted"] == row["wire_bytes_expected"] > 0, row
        assert row["calls"] == row["calls_expected"], row
    totals = run.rows("linear_total", rank=0)
    assert {row["layers"] for row in totals} == layers
    for row in totals:
        assert row["measured_in_unit"] == pytest.approx(row["published_value"], rel=1e-12)
        assert row["same_on_every_rank"]
    tensors = {(row["layers"], row["tensor"]) for row in run.rows("linear_parity", rank=0)}
    assert {("linear", name) for name in ("Y", "dX", "dW")} <= tensors
    assert {("mlp", name) for name in ("Z", "dX", "dW", "dV")} <= tensors or mode != "1d"
    for row in run.rows("linear_parity", rank=0):
        assert row["max_difference"] <= 2e-6 * row["max_value"], row


@pytest.mark.ranks
@pytest.mark.parametrize(
    "ranks, words, sentence",
    [
        (3, ["MODE=2d"], "MODE=2d needs q x q ranks (4, 9, 16, ...), this job has 3"),
        (4, ["MODE=3d"], "MODE=3d needs q x q x q ranks (8, 27, ...), this job has 4"),
        (4, ["MODE=2.5d", "DEPTH=2"], "MODE=2.5d with DEPTH=2 needs q x q x 2 ranks (8, 18, ...), this job has 4"),
        (1, ["MODE=1d"], "MODE=1d needs 2 ranks or more, this job has 1"),
        (2, ["MODE=9d"], "MODE=9d is unknown; use 1d, 2d, 2.5d, 3d"),
        (2, ["OUT=255"], "OUT=255 is not divisible by 2, as MODE=1d on 2 ranks needs"),
        (2, ["IN=many"], "IN=many is no whole number"),
        (2, ["DEPTH=2"], "DEPTH=2 is for MODE=2.5d; MODE=1d has no depth"),
        (2, ["WIDTH=3"], "WIDTH=3 is no setting of linear.py; write KEY=value with MODE, DEPTH, TOKENS, IN, OUT"),
    ],
)
def test_what_cannot_run_is_refused_in_one_sentence(ranks, words, sentence):
    run = launch(LINEAR, *words, ranks=ranks, preset="laptop", expect_failure=True, quiet=True)
    assert run.error == sentence
