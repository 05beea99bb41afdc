"""How long a sequence may be under one cap, and what a step computes and sends at each length, on live ranks."""

from functools import cache

import pytest
from handson import launch
from handson.run import Run

pytestmark = pytest.mark.ranks
CAP = 4 * 2**20
LENGTHS = (32, 64)


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")


@cache
def longest(ranks: int) -> Run:
    ways = "ring,ring_recompute,ring_online" if ranks == 1 else "ring,ring_online"
    argv = (f"WAYS={ways}", f"CAP_MIB={CAP // 2**20}")
    return launch("sequence_parallel/longest.py", *argv, ranks=ranks, preset="laptop", quiet=True)


@cache
def speed(ranks: int) -> Run:
    argv = [f"LENGTHS={','.join(map(str, LENGTHS))}"]
    return launch("sequence_parallel/speed.py", *argv, ranks=ranks, preset="laptop", quiet=True)


def length(ranks: int, way: str) -> int:
    return next(row["length"] for row in longest(ranks).rows("longest", rank=0) if row["way"] == way)


def parts(ranks: int, way: str, where: str) -> dict:
    rows = longest(ranks).rows("parts", rank=0)
    return next(row for row in rows if (row["way"], row["where"]) == (way, where))


def test_the_ring_that_keeps_scores_gets_longer_like_the_root_of_the_ranks():
    assert 1.4 <= length(2, "ring") / length(1, "ring") < 1.7
    assert 1.9 <= length(4, "ring") / length(1, "ring") < 2.6


def test_the_online_ring_gets_longer_with_the_ranks():
    assert 1.9 <= length(2, "ring_online") / length(1, "ring_online") <= 2.05
    assert 3.5 <= length(4, "ring_online") / length(1, "ring_online") <= 4.1


def test_recomputing_the_scores_makes_room_for_a_longer_sequence():
    assert length(1, "ring_recompute") > 1.3 * length(1, "ring")


@pytest.mark.parametrize("ranks", (1, 2, 4))
def test_the_longest_fits_and_the_next_one_tried_does_not(ranks):
    for row in longest(ranks).rows("longest", rank=0):
        peaks = dict(row["trials"])
        sizes = longest(ranks).rows("sizes", rank=0)[0]
        too_long = min(tried for tried, peak in peaks.items() if peak > CAP)
        assert peaks[row["length"]] == row["peak_bytes"] <= CAP
        assert row["length"] == max(tried for tried, peak in peaks.items() if peak <= CAP) < too_long
        assert too_long - row["length"] <= max(sizes["grain"], sizes["close"] * row["length"])
        assert peaks[row["length"]] > 0.9 * CAP


@pytest.mark.parametrize("ranks", (1, 2, 4))
def test_what_is_saved_for_the_backward_follows_the_formulas(ranks):
    for row in longest(ranks).rows("parts", rank=0):
        assert row["activation_bytes"] == pytest.approx(row["expected_activations"], rel=0.02)


def test_saved_activations_shrink_with_the_ranks_and_the_weights_do_not():
    one, two, four = (parts(ranks, "ring_online", "short") for ranks in (1, 2, 4))
    assert one["length"] == two["length"] == four["length"]
    assert two["activation_bytes"] == pytest.approx(one["activation_bytes"] / 2, rel=0.01)
    assert four["activation_bytes"] == pytest.approx(one["activation_bytes"] / 4, rel=0.02)
    for name in ("parameter_bytes", "gradient_bytes", "optimizer_bytes"):
        assert one[name] == two[name] == four[name] > 0


@pytest.mark.parametrize("ranks", (2, 4))
def test_all_ways_to_share_the_batch_compute_the_same_loss(ranks):
    (single,) = {row["loss"] for row in speed(1).rows("speed") if row["way"] == "plain" and row["loss"]}
    rows = [row for row in speed(ranks).rows("speed", rank=0) if row["length"] == min(LENGTHS)]
    assert [row["way"] for row in rows] == ["data", "tensor", "ring", "ring_online"]
    assert all(row["loss"] == pytest.approx(single, abs=1e-5) for row in rows)


@pytest.mark.parametrize("ranks", (2, 4))
def test_a_step_sends_what_the_formulas_say(ranks):
    sizes = speed(ranks).rows("sizes", rank=0)[0]
    for row in speed(ranks).rows("speed", rank=0):
        whole = 4 * sizes["batch"] * row["length"] * sizes["hidden"]
        share = (ranks - 1) / ranks
        gradients = [part["wire_bytes"] for part in row["rows"] if part["collective"] == "all_reduce"
                     and part["calls"] == 1]  # fmt: skip
        activations = row["wire_bytes"] - sum(gradients)
        # of each of two layers: the ring 8, the online ring 6; tensor parallelism four all-reduces of 2
        expected = {"data": 0, "tensor": 2 * 4 * 2, "ring": 2 * 8, "ring_online": 2 * 6}[row["way"]]
        assert activations == expected * share * whole
        assert len(gradients) == (row["way"] != "tensor")


def test_a_longer_sequence_takes_more_operations_than_its_tokens():
    flops = {row["length"]: row["flops"] for row in speed(1).rows("speed", rank=0) if row["way"] == "plain"}
    assert 2 < flops[64] / flops[32] < 4
    on_two = {row["way"]: row["flops"] for row in speed(2).rows("speed", rank=0) if row["length"] == 64}
    assert on_two["data"] == on_two["ring"] == flops[64] / 2 < on_two["ring_online"]


@pytest.mark.parametrize(
    "script, arguments, ranks, says",
    [
        ("longest.py", "WAYS=plain", 2, "WAYS=plain is not known on 2 ranks; use tensor, ring"),
        ("longest.py", "CAP_MIB=0", 1, "CAP_MIB=0 must be a whole number of MiB"),
        ("longest.py", "CAP_MIB=1 WAYS=ring_online", 1, "not even a sequence of 4 tokens fits under the cap"),
        ("longest.py", "CAP=1", 1, "'CAP=1' is no setting of longest.py"),
        ("speed.py", "LENGTHS=33", 2, "a sequence of 33 tokens cannot be cut into 2 equal pieces"),
        ("speed.py", "WAYS=zero", 2, "WAYS names 'zero', which is not known on 2 ranks"),
        ("speed.py", "WAYS=data", 3, "4 sequences cannot be shared by 3 data-parallel ranks"),
        ("speed.py", "WAYS=tensor", 3, "4 heads cannot be shared by 3 tensor-parallel ranks"),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(script, arguments, ranks, says):
    argv = arguments.split()
    run = launch(f"sequence_parallel/{script}", *argv, ranks=ranks, preset="laptop", quiet=True, expect_failure=True)
    assert says in run.error and "\n" not in run.error
