"""handson.show: units, notation, tables and pictures, over made-up runs whose numbers are known."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
from handson import show
from handson.show import picture, scraper, sharding, style

H200 = {"device": "cuda", "accelerator": "NVIDIA H200", "accelerators": 4, "hardware": "4 × NVIDIA H200"}
LAPTOP = {"device": "cpu", "cpu": "Xeon", "cores": 2, "hardware": "the CPU (2 cores, Xeon)"}


@dataclass
class FakeRun:
    """The part of a Run that handson.show reads."""

    ranks: int
    data: list[dict[str, Any]]
    preset: str = "laptop"
    way: str = "live"
    command: str = "torchrun train.py"
    provenance: dict[str, Any] = field(default_factory=lambda: dict(LAPTOP))

    def rows(self, kind: str, rank: int | None = None) -> list[dict[str, Any]]:
        return [row for row in self.data if row["kind"] == kind and rank in (None, row["rank"])]


def cut(size: int, pieces: int, index: int) -> list[int]:
    return [size * index // pieces, size * (index + 1) // pieces]


# mode: (mesh sizes, {parameter: per dimension the axes it is split over, outermost first})
MODES = {
    "single": ({}, [(), ()], [()]),
    "dp2": ({"data": 2}, [(), ()], [()]),
    "dp4": ({"data": 4}, [(), ()], [()]),
    "1d4": ({"tensor": 4}, [(), ("tensor",)], [("tensor",)]),
    "2d4": ({"row": 2, "col": 2}, [("row",), ("col",)], [("col", "row")]),
    "2.5d8": ({"dep": 2, "row": 2, "col": 2}, [("row",), ("col",)], [("col",)]),
    "3d8": ({"input": 2, "weight": 2, "output": 2}, [("input",), ("output", "weight")], [("output",)]),
    "pp2x1d2": ({"pipeline": 2, "tensor": 2}, [(), ("tensor",)], [("tensor",)]),
    "dp2xpp2x1d2": ({"data": 2, "pipeline": 2, "tensor": 2}, [(), ("tensor",)], [("tensor",)]),
    "dp2xpp2x2d4": (
        {"data": 2, "pipeline": 2, "row": 2, "col": 2},
        [("row",), ("col",)],
        [("col", "row")],
    ),
}


def fake(mode: str, **changes: Any) -> FakeRun:
    """A run of one mode over a 64 × 192 weight and its bias, all numbers following from the mode."""
    mesh, weight, bias = MODES[mode]
    places = [dict(zip(mesh, index, strict=True)) for index in itertools.product(*(range(n) for n in mesh.values()))]
    data: list[dict[str, Any]] = []
    for rank, place in enumerate(places):
        tensor = {} if not {"row", "input"} & set(mesh) else {"tensor": rank % 4}
        data.append({"kind": "mesh", "rank": rank, "data": 0, "pipeline": 0, "tensor": 0, **tensor, **place})

    def parameter(name: str, shape: list[int], split: list[tuple[str, ...]], **more: Any) -> None:
        shards = []
        for rank, place in enumerate(places):
            if place.get("pipeline", 0) != more.get("stage", 0):
                continue
            block = []
            for size, axes in zip(shape, split, strict=True):
                index, pieces = 0, 1
                for axis in axes:
                    index, pieces = index * mesh[axis] + place[axis], pieces * mesh[axis]
                block.append(cut(size, pieces, index))
            shards.append({"rank": rank, "block": block, "local_shape": [b - a for a, b in block]})
        row = {"kind": "parameter", "rank": 0, "name": name, "global_shape": shape, "count": 1, "notes": ""}
        data.append({**row, "layer": "Linear", "shards": shards, **more})

    whole = [(), (), (), ()]
    parameter("embed.patch_embed.weight", [64, 3, 8, 8], [weight[1] and weight[1][:1], *whole[1:]], layer="Conv2d")
    parameter("blocks.*.attn.query_key_value.weight", [64, 192], weight, count=4, layer="Linear")
    parameter("blocks.*.attn.query_key_value.bias", [192], bias, count=4)
    parameter("blocks.*.norm1.weight", [64], [()], count=4, layer="LayerNorm")
    if "pipeline" in mesh:
        parameter("head.weight", [64, 10], [(), ()], stage=1)

    share = len(places)
    for rank in range(share):
        lean = 1 + 0.04 * rank
        data += [
            {"kind": "parameters_total", "rank": rank, "count": 148170 // share, "bytes": 148170 * 4 // share},
            {
                "kind": "memory", "rank": rank, "method": "live tensors, counted",
                "peak_bytes": int(9e6 * lean / share**0.7), "parameter_bytes": 592680 // share,
                "activation_bytes": int(5.1e6 / share**0.7),
            },
        ]  # fmt: skip
        if share > 1:
            rows = [
                {"collective": "all_reduce", "group": "tensor", "group_size": share, "calls": 17,
                 "bytes": 1_110_000, "wire_bytes": 1_110_000 * 2 * (share - 1) // share},
            ]  # fmt: skip
            if "row" in mesh:
                rows += [
                    {"collective": name, "group": axis, "group_size": 2, "calls": calls, "bytes": size,
                     "wire_bytes": size}
                    for name, axis, calls, size in (
                        ("broadcast", "row", 64, 960_000), ("broadcast", "col", 64, 960_000),
                        ("reduce", "col", 64, 960_000), ("all_gather", "row", 39, 80_000),
                        ("reduce_scatter", "row", 39, 82_000))
                ]  # fmt: skip
            data.append({"kind": "communication", "rank": rank, "rows": rows})
    median = 40 + 9 * share
    data += [
        {"kind": "step_time", "rank": 0, "median_ms": median, "warmup": 3, "images_per_second": 16e3 / median,
         "all_ms": [median - 2, median - 1, median, median + 1, median + 6.5]},
        {"kind": "parity", "rank": 0, "steps": 5, "max_loss_difference": 2.4e-7, "max_weight_difference": 1.3e-7,
         "weights_moved": 0.18},
    ]  # fmt: skip
    for step in range(5):
        loss = 2.31 - 0.11 * step
        gap = (0, 2.4e-7, 1.2e-7, 2.4e-7, 4.8e-7)[step] if share > 1 else 0.0
        data.append({"kind": "loss", "rank": 0, "step": step, "loss": loss + gap * (1 + share % 3), "reference": loss})
    return FakeRun(share, data, **changes)


def fakes(*modes: str) -> dict[str, FakeRun]:
    return {mode: fake(mode) for mode in modes}


@pytest.fixture(autouse=True)
def no_open_figures():
    yield
    plt.close("all")


WEIGHT = "query_key_value.weight"
GPU = {"provenance": H200, "preset": "gpu"}


# --- numbers and units


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (12345678, "B", "11.8 MiB"),
        (512, "B", "512 B"),
        (1023.9 * 1024, "B", "1.00 MiB"),
        (2**31, "B", "2.00 GiB"),
        (0, "B", "0 B"),
        (236.04, "ms", "236 ms"),
        (2360.4, "ms", "2.36 s"),
        (0.00042, "s", "420 µs"),
        (999.96, "ms", "1.00 s"),
        (148170, "", "148 k"),
        (62, "", "62"),
        (5320.0, "images/s", "5.32 k images/s"),
        (97.64, "images/s", "97.6 images/s"),
        (None, "B", "—"),
    ],
)
def test_quantities_have_three_digits_and_a_fitting_unit(value, unit, text):
    assert show.quantity(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (7.2e-7, "7.20 × 10⁻⁷"),
        (1e-5, "10⁻⁵"),
        (0.18, "0.180"),
        (1234.5, "1,230"),
        (-0.5, "−0.500"),
        (17, "17"),
        (12345, "12,345"),
        (0.0, "0"),
        (float("nan"), "not a number"),
        (None, "—"),
    ],
)
def test_numbers_have_three_digits_and_counts_stay_exact(value, text):
    assert show.number(value) == text


def test_a_ratio_says_how_many_times_and_a_missing_baseline_gives_a_dash():
    assert show.relative(3.74, 2) == "1.87×"
    assert show.relative(3.74, None) == show.relative(None, 2) == "—"


# --- colours

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
SIGHT = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def lab(colour: str, sight: str) -> np.ndarray:
    rgb = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.clip(SIGHT[sight] @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    xyz = to_xyz @ linear / [0.95047, 1, 1.08883]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_any_two_ranks_differ_in_colour_for_every_kind_of_sight(sight):
    seen = [lab(colour, sight) for colour in style.RANK_COLOURS]
    nearest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))
    assert len(seen) == 8
    assert nearest >= 15


def test_no_rank_is_red_and_every_rank_number_reads_on_its_colour():
    for colour in style.RANK_COLOURS:
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert not (r > 2 * g and r > 2 * b), colour
        light, dark = sorted((style.luminance(colour), style.luminance(style.text_on(colour))), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, colour


def test_the_dark_version_swaps_the_named_colours_and_leaves_the_ranks_alone():
    drawn = f'<path style="fill: {style.FOREGROUND}; stroke: {style.rank_colour(0)}"/><rect fill="{style.BACKGROUND}"/>'
    assert style.dark(drawn) == '<path style="fill: #e4e8ec; stroke: #0072b2"/><rect fill="#14181e"/>'
    light, dark = zip(*style.NAMED.values(), strict=True)
    assert len({*light, *dark, *style.RANK_COLOURS}) == len(light) + len(dark) + 8, "a named colour must be unique"


# --- the notation


@pytest.mark.parametrize(
    ("mode", "weight", "where", "bias"),
    [
        ("single", "W[I, J]", "", "b[I]"),
        ("dp4", "W[I, J]", "copied over data", "b[I]"),
        ("1d4", "W[I, J_tensor]", "", "b[I_tensor]"),
        ("2d4", "W[I_row, J_col]", "", "b[I_col·row]"),
        ("2.5d8", "W[I_row, J_col]", "copied over dep", "b[I_col]"),
        ("3d8", "W[I_input, J_output·weight]", "", "b[I_output]"),
        ("pp2x1d2", "W[I, J_tensor]", "only on pipeline 0", "b[I_tensor]"),
        ("dp2xpp2x1d2", "W[I, J_tensor]", "only on pipeline 0; copied over data", "b[I_tensor]"),
    ],
)
def test_the_notation_is_read_off_the_blocks(mode, weight, where, bias):
    run = fake(mode)
    places = sharding.coordinates(run)
    split = sharding.split(sharding.parameter(run, WEIGHT), places)
    assert (str(split), split.where) == (weight, where)
    assert str(sharding.split(sharding.parameter(run, "value.bias"), places)) == bias


def test_the_notation_has_subscripts_in_html_and_in_pictures():
    split = sharding.Split("W", (("row",), ("output", "weight")))
    assert split.html == "<i>W</i>[I<sub>row</sub>, J<sub>output·weight</sub>]"
    assert split.mathtext == r"$W[I_\mathrm{row},\,J_\mathrm{output·weight}]$"


def test_blocks_that_no_mesh_axis_numbers_are_marked_and_not_guessed():
    run = fake("2d4")
    row = sharding.parameter(run, WEIGHT)
    row["shards"][0]["block"], row["shards"][3]["block"] = row["shards"][3]["block"], row["shards"][0]["block"]
    assert str(sharding.split(row, sharding.coordinates(run))) == "W[I_?, J_?]"


def test_who_holds_which_block_is_said_in_words():
    row = sharding.parameter(fake("2.5d8"), WEIGHT)
    assert sharding.described(row).startswith("ranks 0, 4: I 0–31, J 0–95; ranks 1, 5: I 0–31, J 96–191;")
    assert sharding.grid(row) == "0+4, 1+5 / 2+6, 3+7"


def test_an_unknown_or_ambiguous_parameter_is_refused_with_the_names_there_are():
    with pytest.raises(KeyError, match=r"no parameter is called 'nonsense'; there are: embed\.patch_embed\.weight"):
        sharding.parameter(fake("1d4"), "nonsense")
    with pytest.raises(KeyError, match="more than one parameter ends in 'weight'"):
        sharding.parameter(fake("1d4"), "weight")


# --- tables


def test_a_table_is_semantic_scrollable_and_escaped():
    html = show.Table(["name", "size"], [["<b>", "1.5 MiB"], ["c", None]], "Sizes & more", ["a < b"])._repr_html_()
    assert '<div class="scroll" role="region" tabindex="0" aria-label="Sizes &amp; more">' in html
    assert "<caption><span>Sizes &amp; more</span></caption>" in html
    assert '<th scope="col" class=number>size</th>' in html
    assert '<th scope="row">&lt;b&gt;</th><td class=number>1.5 MiB</td>' in html
    assert "<td class=number>—</td>" in html
    assert "<p>a &lt; b</p>" in html
    assert "<style>" not in html, "the site links show.css"


def test_a_table_is_aligned_text_in_a_terminal():
    lines = str(show.Table(["run", "time"], [["1d4", "9.5 ms"], ["single", "120 ms"]], "Times")).splitlines()
    assert lines == ["Times", "", "run       time", "──────  ──────", "1d4     9.5 ms", "single  120 ms"]


def test_a_ragged_row_is_refused_by_name():
    with pytest.raises(ValueError, match="Times: 2 columns, but a row has 1 cells"):
        show.Table(["run", "time"], [["1d4"]], "Times")


def test_a_mode_name_or_a_shape_is_no_number_to_be_set_right():
    html = show.Table(["x", "mode", "shape"], [["a", "1d4", "64 × 192"]], "T")._repr_html_()
    assert "class=number" not in html


def test_the_sharding_table_draws_each_block_in_its_ranks_colour():
    html = show.sharding_table(fake("3d8"), WEIGHT)._repr_html_()
    for rank in range(8):
        assert html.count(f'fill="{style.rank_colour(rank)}"') == 1
    assert 'aria-label="rank 0: I 0–31, J 0–47; rank 2: I 0–31, J 48–95;' in html
    assert "<i>W</i>[I<sub>input</sub>, J<sub>output·weight</sub>]" in html
    assert "64 × 192" in html and "32 × 48" in html
    assert "Linear, in 4 blocks" in html


def test_the_sharding_table_sums_the_parameters_of_the_fullest_rank():
    text = str(show.sharding_table(fake("1d4")))
    elements = 64 * 3 * 8 * 8 + 4 * (64 * 192 + 192 + 64)
    assert f"The model has {show.quantity(elements)} parameters; the fullest rank holds 37.0 k" in text


def test_a_remark_that_many_parameters_share_stands_once_under_the_table():
    run = fake("2d4")
    for row in run.rows("parameter")[1:3]:
        row["notes"] = "; stored transposed"
    table = show.sharding_table(run)
    html = table._repr_html_()
    assert html.count("<sup>a</sup>") == 3 and html.count("stored transposed") == 1
    assert "W[I_row, J_col] (a)" in str(table) and "\n(a) stored transposed\n" in str(table)


def compared(table, row, column):
    return table.rows[row][list(table.columns).index(column)]


def test_the_comparison_names_the_hardware_once_where_all_runs_share_it():
    same = show.parallel_comparison({mode: fake(mode, **GPU) for mode in ("single", "dp2")}, baseline="single")
    assert "hardware" not in same.columns and same.notes[0] == "Every run: NVIDIA H200, gpu preset."
    unlike = show.parallel_comparison({"single": fake("single", **GPU), "3d8": fake("3d8")}, baseline="single")
    assert compared(unlike, 1, "hardware") == "CPU, 2 cores" and "Every run" not in str(unlike)


def test_the_comparison_gives_no_ratio_between_unlike_hardware():
    runs = {**{mode: fake(mode, **GPU) for mode in ("single", "dp2", "1d4")}, "3d8": fake("3d8")}
    table = show.parallel_comparison(runs, baseline="single")
    ratio = {row[0]: row[list(table.columns).index("time ÷\u00a0single")] for row in table.rows}
    assert ratio == {"single": "1.00×", "dp2": "1.18×", "1d4": "1.55×", "3d8": "—"}
    notes = " ".join(table.notes)
    assert "3d8 ran on other hardware or at another size than single" in notes
    assert "3d8: more ranks than CPU cores" in notes


def test_the_comparison_gives_no_ratio_between_presets_on_one_host():
    runs = {"single": fake("single", **GPU), "dp2": fake("dp2", provenance=H200, preset="laptop")}
    assert compared(show.parallel_comparison(runs, baseline="single"), 1, "time ÷\u00a0single") == "—"


def test_the_comparison_names_runs_of_another_host_with_the_same_gpus():
    here, there = H200 | {"cores": 32}, H200 | {"cores": 64}
    runs = {name: fake(name, provenance=where, preset="gpu") for name, where in (("single", here), ("dp2", there))}
    table = show.parallel_comparison(runs, baseline="single")
    assert compared(table, 1, "time ÷\u00a0single") != "—" and "dp2 ran on another host than single" in str(table)
    assert table.notes[0] == "Every run: NVIDIA H200, gpu preset, runs of 2 hosts."
    assert show.step_time_bars(runs).axes[0].get_title(loc="left") == "NVIDIA H200, gpu preset, runs of 2 hosts"
    runs["dp2"] = fake("dp2", provenance=here, preset="gpu")
    assert "another host" not in str(show.parallel_comparison(runs, baseline="single"))


def test_the_comparison_shows_the_fullest_rank():
    run = fake("1d4")
    peak = compared(show.parallel_comparison({"1d4": run}, baseline="1d4"), 0, "peak memory")
    assert peak == show.quantity(max(r["peak_bytes"] for r in run.rows("memory")), "B") == "3.64 MiB"


def test_the_communication_table_shows_the_busiest_rank_and_says_so():
    run = fake("1d4")
    assert show.communication_table(run).rows == [["all_reduce", "tensor of 4", 17, "1.06 MiB", "1.59 MiB"]]
    assert "Ranks differ" not in str(show.communication_table(run))
    run.rows("communication", rank=2)[0]["rows"][0]["calls"] = 19
    table = show.communication_table(run)
    assert table.rows[0][2] == 19
    assert "Ranks differ; each number is the largest of any rank." in str(table)


def test_the_parity_table_marks_a_run_that_differs_or_was_not_checked():
    good, bad, unchecked = fake("1d4"), fake("2d4"), FakeRun(1, [])
    bad.rows("parity")[0]["max_loss_difference"] = 0.02
    table = show.parity_table({"1d4": good, "2d4": bad, "none": unchecked})
    assert [str(row[-1]) for row in table.rows] == ["equal", "DIFFERENT", "not checked"]
    assert table._repr_html_().count('class="failure"') == 2


def test_the_formula_table_divides_what_was_counted_by_what_was_expected():
    row = {"what": "1D", "ranks": 4, "formula": "2(P−1)/P", "expected": 1500, "counted": 1530, "unit": "B"}
    table = show.formula_table([row])
    assert list(table.columns) == ["what", "ranks", "formula", "expected", "counted", "counted ÷ expected"]
    assert table.rows == [["1D", 4, "2(P−1)/P", "1.46 KiB", "1.49 KiB", "1.02×"]]


def test_the_paper_table_links_its_source():
    row = {"claim": "less", "paper": "2×", "measured": "1.8×", "source": ("Bian 2021", "https://x.org/?a&b")}
    table = show.paper_table([row])
    assert '<a href="https://x.org/?a&amp;b">Bian 2021</a>' in table._repr_html_()
    assert "Bian 2021 <https://x.org/?a&b>" in str(table)


def test_the_provenance_table_leaves_out_what_no_run_has():
    text = str(show.provenance_table({"a": fake("1d4", **GPU), "b": fake("1d4")}))
    assert re.search(r"hardware +4 × NVIDIA H200 +the CPU\ncpu +— +Xeon\ncores +— +2$", text)
    assert "driver" not in text


# --- pictures


def faces(figure: picture.Picture) -> list[str]:
    patches = [patch for ax in figure.axes for patch in ax.patches]
    return [matplotlib.colors.to_hex(patch.get_facecolor()) for patch in patches]


def test_a_shard_map_has_one_card_for_each_rank_in_its_colour():
    figure = show.shard_map(fake("2.5d8"), WEIGHT)
    assert sorted(faces(figure)) == sorted(style.RANK_COLOURS)
    assert "W[I_row, J_col], copied over dep, ranks block by block: 0+4, 1+5 / 2+6, 3+7" in figure.alt


def test_shard_maps_show_the_modes_side_by_side():
    figure = show.shard_maps(fakes("single", "1d4", "2d4", "3d8"), WEIGHT)
    assert [len(ax.patches) for ax in figure.axes] == [1, 4, 4, 8]
    assert [ax.get_title(loc="left").split("\n")[0] for ax in figure.axes] == ["single", "1d4", "2d4", "3d8"]
    assert "3d8: W[I_input, J_output·weight], ranks block by block: 0, 2, 1, 3 / 4, 6, 5, 7." in figure.alt


def test_a_shard_map_shows_the_product_that_the_weight_is_in():
    run = fake("2d4")
    shards = [{"rank": r, "block": [cut(16, 2, r // 2), cut(64, 2, r % 2)]} for r in range(4)]
    outs = [{"rank": r, "block": [cut(16, 2, r // 2), cut(192, 2, r % 2)]} for r in range(4)]
    activation = {"name": "x", "global_shape": [16, 64], "shards": shards}
    output = {"name": "y", "global_shape": [16, 192], "shards": outs}
    alt = show.shard_map(run, WEIGHT, inputs=activation, outputs=output).alt
    assert "input: X[B_row, I_col]" in alt and "weight: W[I_row, J_col]" in alt and "output: Y[B_row, J_col]" in alt


def test_a_mesh_map_places_every_rank():
    assert "rank 5 at input 1, weight 0, output 1" in show.mesh_map(fake("3d8")).alt
    figure = show.mesh_map(fake("dp2xpp2x2d4"))
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["data 0", "data 1"]
    assert len(faces(figure)) == 16


def test_runs_of_unlike_hardware_do_not_share_an_axis():
    runs = {"single": fake("single", **GPU), "1d4": fake("1d4", **GPU), "3d8": fake("3d8")}
    for draw in (show.memory_bars, show.step_time_bars):
        figure = draw(runs)
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == ["NVIDIA H200, gpu preset", "CPU, 2 cores, laptop preset"]
        assert "on NVIDIA H200, gpu preset: single" in figure.alt


def test_memory_bars_are_as_long_as_the_bytes_and_named_in_the_alt_text():
    run = fake("1d4")
    figure = show.memory_bars({"1d4": run})
    outlines = [patch for patch in figure.axes[0].patches if not patch.get_fill()]
    assert [bar.get_width() for bar in outlines] == [row["peak_bytes"] for row in run.rows("memory")]
    assert figure.axes[0].get_xlabel() == "peak memory of each rank (MiB)"
    assert "1d4 3.64 MiB" in figure.alt


def test_step_times_show_every_timed_step():
    figure = show.step_time_bars(fakes("single", "1d4"))
    dots = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[47, 48, 49, 50, 55.5], [74, 75, 76, 77, 82.5]]
    assert "single 49.0 ms, 1d4 76.0 ms" in figure.alt
    assert figure.axes[0].get_xlabel() == "time of one training step (ms); ranks take turns on the cores"


def test_communication_bars_add_up_the_collectives():
    figure = show.communication_bars(fakes("1d4", "2d4"))
    sent = sum(row["wire_bytes"] for row in fake("2d4").rows("communication", rank=0)[0]["rows"])
    ends = [patch.get_x() + patch.get_width() for patch in figure.axes[0].patches if patch.get_y() > 0.5]
    assert max(ends) == pytest.approx(sent)
    assert f"2d4 {show.quantity(sent, 'B')} (all_reduce 1.59 MiB, broadcast 1.83 MiB" in figure.alt


def test_loss_curves_show_how_far_each_run_is_from_one_process():
    figure = show.loss_curves(fakes("single", "1d4"))
    top, low = figure.axes
    assert list(top.lines[1].get_ydata()) == [row["loss"] for row in fake("1d4").rows("loss")]
    assert low.get_yscale() == "log"
    assert min(low.lines[0].get_ydata()) > 0, "an exact zero would vanish from a logarithmic axis"
    assert max(low.lines[1].get_ydata()) == pytest.approx(4.8e-7 * 2)
    expected = "from 2.31 to 1.87 in 5 steps; largest difference from one process: single 0, 1d4 9.60 × 10⁻⁷"
    assert expected in figure.alt


def test_a_plot_of_what_no_run_recorded_says_so():
    with pytest.raises(LookupError, match="none of the runs a recorded memory"):
        show.memory_bars({"a": FakeRun(1, [])})


def test_drawing_leaves_the_readers_matplotlib_settings_alone():
    before = dict(matplotlib.rcParams)
    show.step_time_bars(fakes("single"))
    assert dict(matplotlib.rcParams) == before


# --- on a page, in a notebook, as a script


def scrape(folder: Path) -> str:
    # Sphinx-Gallery hands over an iterator of paths that ends in .png.
    paths = types.SimpleNamespace(next=lambda: str(folder / "images" / "sphx_glr_plot_x_001.png"))
    (folder / "images").mkdir(parents=True, exist_ok=True)
    block_vars = {"image_path_iterator": paths, "src_file": str(folder / "plot_x.py")}
    return scraper.figures(("code", "", 1), block_vars, {"src_dir": str(folder)})


def test_the_page_gets_a_light_and_a_dark_picture_with_the_alt_text(tmp_path):
    alt = show.shard_map(fake("2d4"), WEIGHT).alt
    rest = scrape(tmp_path)
    assert rest.count(f":alt: {alt}") == 2
    assert re.findall(r":class: (.*)", rest) == [
        f"sphx-glr-single-img handson-picture only-{t}" for t in ("light", "dark")
    ]
    assert re.findall(r"image:: (.*)", rest) == [
        "/images/sphx_glr_plot_x_001.svg",
        "/images/sphx_glr_plot_x_001_dark.svg",
    ]
    light, dark = ((tmp_path / "images" / f"sphx_glr_plot_x_001{s}.svg").read_text() for s in ("", "_dark"))
    assert style.MUTED in light and style.MUTED not in dark
    assert style.NAMED["muted"][1] in dark
    assert all(colour in light and colour in dark for colour in style.RANK_COLOURS[:4])
    assert not plt.get_fignums(), "a figure left open would appear again under the next block"


def test_the_same_picture_is_the_same_bytes_at_every_build(tmp_path):
    show.loss_curves(fakes("single", "1d4"))
    scrape(tmp_path / "a")
    show.loss_curves(fakes("single", "1d4"))
    scrape(tmp_path / "b")
    first, second = ((tmp_path / d / "images/sphx_glr_plot_x_001.svg").read_bytes() for d in "ab")
    assert first == second
    assert b"<dc:date>" not in first


def test_a_figure_without_alt_text_fails_and_names_the_lesson(tmp_path):
    plt.plot([1, 2])
    with pytest.raises(ValueError, match=r"plot_x\.py: a figure has no alternative text"):
        scrape(tmp_path)
    assert not plt.get_fignums()


def test_a_notebook_shows_a_picture_once_with_its_alt_text(monkeypatch):
    shown = []
    ipython = types.ModuleType("IPython.display")
    ipython.Image = lambda data, **options: (data, options)
    ipython.display = shown.append
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    monkeypatch.setitem(sys.modules, "IPython", types.SimpleNamespace(display=ipython, get_ipython=lambda: object()))
    figure = show.mesh_map(fake("2d4"))
    figure._ipython_display_()
    ((data, options),) = shown
    assert data.startswith(b"\x89PNG") and options["alt"] == figure.alt
    assert not plt.get_fignums(), "an open figure is drawn a second time at the end of the cell"
    assert "<style>" in show.parity_table(fakes("1d4"))._repr_html_(), "a notebook has no stylesheet of ours"


def test_a_lesson_run_as_plain_python_prints_its_tables_and_saves_its_pictures(tmp_path):
    lesson = tmp_path / "plot_demo.py"
    lesson.write_text(
        "from handson import show\n"
        "import sys\n"
        "from test_show import fake\n"
        "show.parity_table({'1d4': fake('1d4')})\n"
        "show.mesh_map(fake('1d4'))\n"
        "assert 'torch' not in sys.modules\n"
    )
    here = Path(__file__).parent
    paths = [str(here), str(here.parent / "tutorial_src")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "MPLBACKEND": "agg"}
    done = subprocess.run([sys.executable, lesson.name], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "1d4      4      5      2.40 × 10⁻⁷" in done.stdout
    assert "picture demo_1.png: 4 ranks on a mesh of tensor 4: rank 0 at tensor 0;" in done.stdout
    assert (tmp_path / "demo_1.png").stat().st_size > 1000
