"""handson.show's tables and pictures of a solver's plan, over made-up rows whose numbers are known."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import re
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from handson.show import picture, style
from handson.show.plan_csv import edge_csv, plan_csv
from handson.show.plan_fold import folded, plain
from handson.show.plan_formulas import assumptions_table, by_hand, rings_table
from handson.show.plan_network import CUTS, cut_of, network, written
from handson.show.plan_plots import budget_curve, predicted_measured, step_bars
from handson.show.plan_tables import edge_table, plan_rows, plan_table, plans_table, split
from test_show import SIGHT, lab

GIB = 1 << 30


def tensor(name: str, shape: list[int], cut: str) -> dict[str, Any]:
    """A tensor's entry; `cut` is written "S01 R R R"."""
    return {"name": name, "shape": shape, "sharding": cut.split()}


def node(name: str, op: str, strategy: str, **more: Any) -> dict[str, Any]:
    row = {
        "kind": "node", "plan": "2x4", "name": name, "op": op, "strategy": strategy, "input": None, "weight": None,
        "output": None, "compute_ms": 0.0, "communication_ms": 0.0, "activation_bytes": 0.0, "parameter_bytes": 0.0,
        "buffer_bytes": 0.0,
    }  # fmt: skip
    return row | more


def convolution(name: str, out: int, inner: int, size: int, cut: tuple[str, str, str, str]) -> dict[str, Any]:
    """A 1 x 1 convolution of a batch of 64; `cut` is its strategy and the letters of input, weight and output."""
    strategy, *letters = cut
    shapes = [64, inner, size, size], [out, inner, 1, 1], [64, out, size, size]
    parts = {
        role: tensor(role, shape, letter)
        for role, shape, letter in zip(("input", "weight", "output"), shapes, letters, strict=True)
    }
    return node(name, "conv2d", strategy, **parts, compute_ms=0.25, communication_ms=0.5, activation_bytes=3.0 * GIB)


DATA = ("S01R = S01R x RR", "S01 R R R", "R R R R", "S01 R R R")
HYBRID = ("S0S1 = S0R x RS1", "S0 R R R", "S1 R R R", "S0 S1 R R")
ROWS = ("S0R = S0S1 x S1R", "S0 S1 R R", "R S1 R R", "S0 R R R")


def residual(*, last: tuple[str, str, str, str] = DATA) -> list[dict[str, Any]]:
    """The nodes of a small residual network: two stages of two blocks; the very last convolution is cut as `last`."""
    batch = {"output": tensor("y", [64, 16, 8, 8], "S01 R R R"), "input": tensor("x", [64, 16, 8, 8], "S01 R R R")}
    ewise = "[S01, R, R, R] -> [S01, R, R, R]"
    nodes = [node("x", "placeholder", "Distributed Placeholder", output=batch["output"])]
    nodes += [convolution("conv1", 16, 3, 8, DATA), node("relu", "relu", f"{ewise}_8", **batch)]
    adds = itertools.count()
    for stage, block in itertools.product((1, 2), (0, 1)):
        inside = f"layer{stage}_{block}"
        nodes.append(convolution(f"{inside}_conv1", 16, 16, 8, DATA))
        nodes.append(node(f"{inside}_relu", "relu", f"{ewise}_{stage}", **batch))
        nodes.append(convolution(f"{inside}_conv2", 16, 16, 8, last if (stage, block) == (2, 1) else DATA))
        if not block:
            nodes.append(convolution(f"{inside}_downsample_0", 16, 16, 8, DATA))
        number = next(adds)
        nodes.append(node(f"add_{number}" if number else "add", "add", ewise, **batch))
    whole = {"output": tensor("y", [64, 10], "R R"), "input": tensor("x", [64, 16], "R R")}
    nodes.append(node("avgpool", "adaptive_avg_pool2d", "[S01, R, R, R] -> FULLY REPLICATED_2", **batch))
    nodes.append(node("fc_weight", "get_attr", "get_attr [R, S01]", output=tensor("w", [10, 16], "R S01")))
    nodes.append(node("linear", "linear", "RR = RR x RR", **whole, weight=tensor("fc_weight", [10, 16], "R R")))
    return [*nodes, node("output", "output", "Distributed Output", input=whole["output"])]


EDGE = {
    "kind": "edge", "plan": "2x4", "source": "layer2_1_relu", "target": "layer2_1_conv2", "ms": 0.125,
    "before": ["S01", "R", "R", "R"], "after": ["S0", "R", "R", "R"], "shape": [64, 16, 8, 8],
}  # fmt: skip
CHEAP = EDGE | {"source": "linear", "target": "output", "ms": 0.5}


def plan(label: str, step: float | None, memory: float | None, **more: Any) -> dict[str, Any]:
    return {
        "kind": "plan", "plan": label, "objective_ms": step, "compute_ms": 1.0, "communication_ms": (step or 1.5) - 1.5,
        "resharding_ms": 0.5, "memory_bytes": memory, "budget_bytes": None, "layers": [["S01R = S01R x RR", 8]],
        "kept_ms": 9.0, "mesh": [2, 4], "macs_per_second": 1e9, "bytes_per_second": [1e6, 4e6],
        "latency_s": [2e-3, 1e-3], "solver_objective_ms": step,
    } | more  # fmt: skip


class Made:
    """A run of these rows."""

    def __init__(self, *data: dict[str, Any]) -> None:
        self.data = data

    def rows(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        return [row for row in self.data if row["kind"] == kind]


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


# --- the notation


def test_the_solvers_letters_become_the_sites_notation():
    assert split(["S01", "R", "R", "R"]) == "X[b01, c, h, w]"
    assert split(["R", "S1"], "W", "oi") == "W[o, i1]"


@pytest.mark.parametrize(
    ("row", "cut", "text"),
    [
        (convolution("c", 8, 8, 4, DATA), {"b": "01"}, "b01"),
        (convolution("c", 8, 8, 4, HYBRID), {"b": "0", "o": "1"}, "b0 o1"),
        (convolution("c", 8, 8, 4, ROWS), {"b": "0", "i": "1"}, "b0 i1"),
        (node("a", "add", "s", output=tensor("y", [4, 8], "R S01")), {"o": "01"}, "o01"),
        (node("w", "get_attr", "s", output=tensor("w", [4, 8], "R S01")), {"i": "01"}, "i01"),
        (node("o", "output", "s", input=tensor("y", [4, 8], "R R")), {}, ""),
    ],
)
def test_what_a_node_cuts_is_read_off_its_tensors(row, cut, text):
    assert cut_of(row) == cut and written(cut) == text


# --- folding


def test_blocks_that_all_agree_are_one_row_and_a_shortcut_is_folded_with_its_kind():
    found = {label: len(group) for label, group in folded(residual())}
    assert found["layer*_*_conv1"] == found["layer*_*_conv2"] == 4
    assert found["layer*_*_add"] == 4, "a function belongs to the block of the module before it"
    assert found["layer*_*_downsample_0"] == 2
    assert found["conv1"] == found["linear"] == found["avgpool"] == 1
    assert sum(found.values()) == len(residual())


def test_one_block_that_disagrees_keeps_its_stage_unfolded_and_the_others_folded():
    found = {label: len(group) for label, group in folded(residual(last=HYBRID))}
    assert found["layer1_*_conv2"] == 2
    assert found["layer2_0_conv2"] == found["layer2_1_conv2"] == 1
    assert found["layer*_*_conv1"] == 4, "that the other convolutions agree is still one row"


def test_upstreams_numbering_of_equal_strategies_is_no_difference_and_a_matrix_products_is():
    assert plain("[S01, R] -> [S01, R]_8") == "[S01, R] -> [S01, R]"
    assert plain("S01R = S01R x RR_0") == "S01R = S01R x RR_0"


# --- tables


def test_a_folded_row_holds_the_sums_of_its_nodes():
    rows = {str(row[0]): row for row in plan_table(residual()).rows}
    row = rows["layer*_*_conv1; 4 nodes"]
    assert str(row[1]) == "S01R = S01R x RR"
    assert str(row[2]) == "X[b01, c, h, w]; W[o, i, u, v]; Y[b01, c, h, w]"
    assert row[3:] == ["1.00 ms", "2.00 ms", "12.0 GiB"]
    assert str(rows["fc_weight"][2]) == "W[o, i01]"


def test_the_whole_table_can_be_asked_for_and_totals_do_not_depend_on_folding():
    whole, short = plan_table(residual(), fold=False), plan_table(residual())
    assert len(whole.rows) == len(residual()) > len(short.rows)
    total = "compute 2.75 ms, links 5.50 ms, memory 33.0 GiB."
    assert str(whole.notes[-1]).endswith(total) and str(short.notes[-1]).endswith(total)


def test_the_table_scrolls_and_offers_every_node_as_csv():
    html = plan_table(residual())._repr_html_()
    assert '<div class="scroll tall" role="region" tabindex="0"' in html
    data = re.search(r'href="data:text/csv;charset=utf-8;base64,([^"]+)" download="plan-2x4.csv"', html)[1]
    table = list(csv.DictReader(io.StringIO(base64.b64decode(data).decode())))
    assert [row["name"] for row in table] == [row["name"] for row in residual()]
    conv = table[1]
    assert (conv["input sharding"], conv["weight shape"], conv["compute_ms"]) == ("S01RRR", "16x3x1x1", "0.25")
    assert plan_csv(residual()) == base64.b64decode(data).decode()


def test_rows_of_two_plans_are_not_mixed_in_one_table():
    with pytest.raises(ValueError, match="a table shows one plan, these rows are of 2x4, other"):
        plan_table([*residual(), residual()[0] | {"plan": "other"}])
    with pytest.raises(ValueError, match="these rows are of none"):
        plan_table([])


def test_edges_come_dearest_first_with_their_sum():
    table = edge_table([EDGE, CHEAP])
    assert [str(row[0]) for row in table.rows] == ["linear; to output", "layer2_1_relu; to layer2_1_conv2"]
    assert [str(cell) for cell in table.rows[1][1:]] == [
        "X[b01, c, h, w]; → X[b0, c, h, w]", "64 × 16 × 8 × 8", "125 µs",
    ]  # fmt: skip
    assert str(table.notes[0]).startswith("Together 625 µs")
    assert edge_csv([EDGE]).splitlines()[1] == "2x4,layer2_1_relu,layer2_1_conv2,S01RRR,S0RRR,64x16x8x8,0.125"


def test_a_plan_without_resharding_says_none():
    assert edge_table([]).rows[0][0] == "none"


def test_plans_beside_each_other_name_their_strategies_and_an_infeasible_one_is_marked():
    many = [["A", 5], ["B", 4], ["C", 3], ["D", 2]]
    table = plans_table([plan("fast", 4.0, 2 * GIB), plan("mixed", 5.0, GIB, layers=many), plan("tight", None, None)])
    assert [str(cell) for cell in table.rows[0]] == [
        "fast", "8 × S01R = S01R x RR", "4.00 ms", "1.00 ms", "2.50 ms", "500 µs", "2.00 GiB",
    ]  # fmt: skip
    assert str(table.rows[1][1]) == "5 × A; 4 × B; 3 × C; and 1 more"
    assert 'class="failure">no plan fits' in table._repr_html_()


def test_by_hand_follows_from_the_units_alone():
    compute, gradients, whole = by_hand([convolution("c", 16, 8, 4, DATA)], plan("p", 3.0, GIB))
    # 64 images of 4 x 4, 16 x 8 weights: 131072 MACs, three times, on 8 devices of 1e9 MAC/s.
    assert compute["expected"] == pytest.approx(3 * 131072 / 8 / 1e9) and compute["counted"] == 0.25e-3
    # 512 bytes in a ring of 8 over the slower link of 1e6 B/s, and the longer wait.
    assert gradients["expected"] == pytest.approx(2e-3 + 2 * 7 / 8 * 512 / 1e6) and gradients["counted"] == 0.5e-3
    assert (whole["expected"], whole["counted"]) == (3e-3, 3e-3)


def test_two_levels_send_a_share_over_the_slow_link():
    (row,) = rings_table([convolution("c", 160, 80, 4, DATA)], [plan("p", 3.0, GIB)]).rows
    size = 4 * 160 * 80
    ring = 2e-3 + 2 * 7 / 8 * size / 1e6
    levels = 2 * 3 / 4 * size / 4e6 + 2 * 1e-3 + 2 * 1 / 2 * size / 4 / 1e6 + 2e-3
    assert row[1:3] == ["3.00 ms", "9.00 ms"]
    assert row[3] == style.quantity(9.0 + 1e3 * (levels - ring), "ms")


def test_four_dimensions_are_an_image_only_where_something_convolves():
    heads = node("matmul", "matmul", "s", output=tensor("y", [8, 12, 64, 64], "S01 R R R"))
    assert str(plan_table([heads]).rows[0][2]) == "Y[b01, j, k, l]"
    assert str(plan_table([heads, convolution("c", 8, 8, 4, DATA)]).rows[0][2]) == "Y[b01, c, h, w]"


def test_what_is_assumed_of_a_machine_stands_beside_its_source():
    sources = dict.fromkeys(("compute", "memory", "link within a host", "link between hosts", "latencies"), "a sheet")
    row = {"name": "Chip", "flops": 4e14, "memory_bytes": 80 * GIB, "inside": [450e9, 1e-5], "between": [5e10, 2e-5]}
    table = assumptions_table(row | {"sources": sources})
    assert [line[1] for line in table.rows] == ["200 T MAC/s", "80.0 GiB", "450 GB/s", "50 GB/s", "10.0 µs, 20.0 µs"]
    assert all(line[2] == "a sheet" for line in table.rows)


def test_the_rows_of_a_plan_are_found_by_its_label_and_an_unknown_one_names_those_there_are():
    run = Made(*residual(), EDGE, EDGE | {"plan": "other"})
    nodes, edges = plan_rows(run, "2x4")
    assert len(nodes) == len(residual()) and edges == [EDGE]
    with pytest.raises(LookupError, match="no nodes of the plan 'other'; it recorded those of 2x4"):
        plan_rows(run, "other")


# --- pictures


@pytest.mark.parametrize("sight", SIGHT)
def test_the_tints_differ_from_each_other_and_are_no_ranks_colour(sight):
    tints = [lab(colour, sight) for colour, _ in CUTS.values()]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(tints, 2)) >= 15
    if sight == "normal":
        ranks = [lab(colour, sight) for colour in style.RANK_COLOURS]
        assert min(np.linalg.norm(a - b) for a in tints for b in ranks) >= 20


def boxes(figure, colour: str) -> int:
    return picture.svg(figure).count(f"fill: {colour}")


def test_each_layer_is_drawn_in_the_colours_of_what_it_cuts():
    batch, out, rows = (colour for colour, _ in CUTS.values())
    plain_one = network(residual())
    assert boxes(plain_one, out) == boxes(plain_one, rows) == 0
    mixed = network(residual(last=HYBRID), [EDGE], title="Mixed")
    assert boxes(mixed, out) == 2, "one box, and the legend"
    assert boxes(mixed, batch) == boxes(plain_one, batch), "a box in two colours has its batch's too"
    assert boxes(network(residual(last=ROWS)), rows) == 2


def test_the_pictures_text_says_what_is_drawn():
    figure = network(residual(last=HYBRID), [EDGE], title="Mixed")
    said = [text.get_text() for text in figure.axes[0].texts]
    assert {"Mixed", "stem", "layer1", "layer2", "head", "1.0", "2.1", "b01", "b0 o1"} <= set(said)
    assert "16 channels of 8 × 8" in said
    assert figure.alt.startswith("Mixed, 24 nodes in 6 rows of blocks. Layers with weights: 10 × S01R = S01R x RR")
    assert "1 × S0S1 = S0R x RS1, cut b0 o1" in figure.alt
    assert figure.alt.endswith("Resharded before layer2_1_conv2.")


def test_a_layer_that_leaves_an_axis_unused_is_faded():
    one_axis = ("S1R = S1R x RR", "S1 R R R", "R R R R", "S1 R R R")
    figure = network(residual(last=one_axis))
    faded = [patch for patch in figure.axes[0].patches if patch.get_alpha() is not None and patch.get_alpha() < 1]
    assert len(faded) == 1
    assert not [p for p in network(residual()).axes[0].patches if p.get_alpha() is not None and p.get_alpha() < 1]


def test_a_network_without_blocks_is_a_chain_with_names():
    linear = [
        node("up", "linear", "RS01 = RR x RS01", input=tensor("x", [8, 4], "R R"),
             weight=tensor("w", [16, 4], "S01 R"), output=tensor("y", [8, 16], "R S01")),
        node("down", "linear", "RR = RS01 x S01R", input=tensor("y", [8, 16], "R S01"),
             weight=tensor("w", [4, 16], "R S01"), output=tensor("z", [8, 4], "R R")),
    ]  # fmt: skip
    figure = network(linear)
    assert [text.get_text() for text in figure.axes[0].texts] == ["", "up", "o01", "down", "i01"]
    with pytest.raises(ValueError, match="no node to draw"):
        network([])


def test_a_pictures_colours_follow_the_theme_and_the_tints_do_not():
    drawn = picture.svg(network(residual(last=HYBRID), [EDGE]), transparent=True)
    dark = style.dark(drawn)
    assert style.FOREGROUND in drawn and style.FOREGROUND not in dark
    assert all(dark.count(colour) == drawn.count(colour) for colour, _ in CUTS.values())


def test_a_budget_has_its_plan_and_an_impossible_one_a_red_cross():
    plans = [
        plan("no budget", 4.0, 30.0 * GIB),
        plan("20 GiB", 6.0, 18.0 * GIB, budget_bytes=20.0 * GIB),
        plan("10 GiB", None, None, budget_bytes=10.0 * GIB),
    ]
    figure = budget_curve(plans)
    used = [line.get_xydata().tolist() for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert used == [[[18.0, 6.0]], [[30.0, 4.0]]]
    (cross,) = (line for line in figure.axes[0].lines if line.get_marker() == "x")
    assert cross.get_color() == style.FAILURE and cross.get_xdata()[0] == 10.0
    assert "20.0 GiB: 6.00 ms, 18.0 GiB used" in figure.alt and "10.0 GiB: infeasible" in figure.alt
    with pytest.raises(ValueError, match="none of these plans fits"):
        budget_curve(plans[2:])


def test_a_predicted_step_is_stacked_from_its_parts_beside_the_plan_that_is_kept():
    figure = step_bars([plan("slow", 4.0, GIB), plan("none", None, None)], kept="data parallelism")
    bars = [(bar.get_x(), bar.get_width()) for bar in figure.axes[0].patches]
    assert bars == [(0.0, 1.0), (1.0, 2.5), (3.5, 0.5)]
    assert figure.alt == "Predicted training step. slow: 4.00 ms, data parallelism 9.00 ms."


def test_prediction_and_measurement_stand_above_each_other_and_either_may_be_missing():
    rows = [
        {"plan": "solver's", "predicted_ms": 4.0, "measured_ms": 8.0, "compute_ms": 3.0, "communication_ms": 1.0},
        {"plan": "DDP", "predicted_ms": None, "measured_ms": 5.0},
    ]
    figure = predicted_measured(rows, title="2 × NVIDIA H200")
    assert figure.alt == (
        "One training step, 2 × NVIDIA H200: solver's predicted 4.00 ms, measured 8.00 ms; DDP measured 5.00 ms."
    )
    widths = sorted(bar.get_width() for bar in figure.axes[0].patches)
    assert widths == [0.0, 1.0, 3.0, 5.0, 8.0]
    with pytest.raises(ValueError, match="no plan to draw"):
        predicted_measured([])
