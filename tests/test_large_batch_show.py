"""What the large-batch lessons draw and tabulate, from rows made by hand: numbers, verdicts, and honest gaps."""

import pytest
from handson.run import Run
from handson.show import large_batch_plots as plots
from handson.show import large_batch_speed as speed
from handson.show import large_batch_tables as tables
from handson.show.large_batch_methods import NAMES, accuracies, cells

BATCHES = (64, 256, 1024)


def run(data: list[dict], ranks: int = 2, cores: int = 2, preset: str = "laptop") -> Run:
    made = {"device": "cpu", "cpu": "chip", "cores": cores, "hardware": "host"}
    named = dict(script="s.py", argv=[], command="python s.py", key="k" * 64, files={}, log=[], seconds=1.0)
    return Run(**named, ranks=ranks, preset=preset, data=data, provenance=made)


def cell(network: str, method: str, batch: int, lost: float, reached: int | None = 2) -> dict:
    """A cell of two seeds and three learning rates, `lost` points below 98 % at the kept one."""
    share = 0.98 - lost / 100
    row = dict(
        rank=0, kind="cell", network=network, method=method, batch=batch, steps=4 * 1024 // batch, best=1,
        at_edge=False, learning_rates=[0.1, 0.2, 0.4], validation=[[0.5, 0.5], [0.9, 0.9], [0.5, 0.5]],
        test=[[0.5, 0.6], [share, share + 0.004], [0.1, 0.1]], ruled=[], losses=[2.0, 1.0, 0.5, None],
        validation_by_epoch=[0.5, 0.9, 0.9, 0.9], step_ms=2.0, epochs_to_target=reached,
        seconds_to_target=reached and reached * 1024 // batch * 2e-3, replica_difference=0.0,
    )  # fmt: skip
    if method == "sgd" and batch > 64:
        row |= {"learning_rates": [0.1, 0.2, 0.4, 0.8], "ruled": [[0.2, 0.3]]}
    if batch == 1024:
        ratio = [0.5, 0.25, 0.1] if method.startswith("la") else [None] * 3
        row |= {"trust_ratios": [ratio] * 4, "movements": [[0.01, 0.02, 0.03]] * 4}
    return row


def comparison() -> Run:
    """SGD loses 10 points at the full batch without normalisation and never reaches the target; LARS loses 3."""
    lost = {"sgd": 10, "lars": 3}
    rows = [
        cell(n, m, b, lost.get(m, 0) if (n, b) == ("plain", 1024) else 0, None if (m, b) == ("sgd", 1024) else 2)
        for n in ("plain", "batchnorm") for m in NAMES for b in BATCHES
    ]  # fmt: skip
    rows.append({"rank": 0, "kind": "rule", "target": 0.9, "momentum": 0.9, "trust": 0.001})
    rows.append({"rank": 0, "kind": "data", "training": 1024})
    return run(rows)


def sweep(ranks: int, speeds: list[float], full: int) -> Run:
    rows = []
    for index, speed_ in enumerate(speeds):
        size = 2 << index
        rows.append(
            dict(
                rank=0, kind="throughput", images_per_rank=size, global_batch=size * ranks, images_per_second=speed_,
                median_ms=size * ranks * 1e3 / speed_, peak_bytes=size << 20, precision="fp32",
            )
        )  # fmt: skip
        part = dict(collective="all_reduce", group="data", group_size=ranks, calls=1, bytes=1000, wire_bytes=1100)
        rows.append(dict(rank=0, kind="communication", rows=[part]))
    rows.append(
        dict(
            rank=0, kind="full", share=0.9, images_per_rank=full, global_batch=full * ranks, best=max(speeds),
            images_per_second=speeds[0], capacity_bytes=None, stopped="cap", parameters=250, tensors=3,
        )
    )  # fmt: skip
    rows += [dict(rank=0, kind="update", method=m, median_ms=1.0, state_bytes=1024) for m in NAMES]
    return run(rows, ranks=ranks)


def test_cells_are_ordered_by_method_and_batch_whatever_rank_sent_them():
    made = comparison()
    made.data.reverse()
    found = cells(made, "plain")
    assert list(found) == list(NAMES) and all(tuple(rows) == BATCHES for rows in found.values())
    assert accuracies(found["lars"][1024]) == pytest.approx([95.0, 95.4])
    with pytest.raises(LookupError, match="use one of plain, batchnorm"):
        cells(made, "resnet")


def test_every_picture_says_its_numbers_in_words():
    made = comparison()
    words = plots.accuracy_by_batch(made, "plain").alt
    assert "SGD by the linear scaling rule 25.0 %" in words and "SGD 98.2 % to 88.2 %" in words
    assert "LARS without normalisation from 0.100 to 0.500" in plots.trust_ratios(made).alt
    assert "LARS at most 3.00 %" in plots.movements(made, "plain").alt
    assert "AdamW at 1024 best at 0.200" in plots.rate_windows(made, "batchnorm").alt
    assert "without normalisation" in plots.losses(made, "plain").alt
    words = speed.time_to_target(made).alt
    assert "SGD without normalisation 16.0 ms at 256" in words and "LARS without normalisation 4.00 ms at 1024" in words


def test_the_linear_rule_is_a_line_of_sgds_panel_alone():
    drawn = plots.accuracy_by_batch(comparison(), "plain")
    dashed = [ax for ax in drawn.axes for line in ax.lines if line.get_marker() == "s"]
    assert [ax.get_title(loc="left") for ax in dashed] == ["SGD"]


def test_a_lead_is_called_one_only_beyond_what_seeds_scatter():
    text = str(tables.verdict_table(comparison(), [("lars", "sgd"), ("lamb", "adamw")]))
    lines = text.splitlines()
    assert "+7.0 ± 0.3; LARS ahead" in next(line for line in lines if line.startswith("LARS against SGD; without"))
    assert lines[6].count("the seeds cannot tell") == 2 and "LARS against SGD; with batch norm" in lines[6]


def test_what_was_kept_and_what_the_papers_claim_stand_side_by_side():
    made = comparison()
    assert tables.kept_up_to(made, "plain", "lars") == "256 of 1024"
    assert tables.kept_up_to(made, "plain", "lamb") == "1024 of 1024"
    rule, lars, _ = tables.claims(made)
    assert rule["measured"] == "full batch: 25.0 % without normalisation; 25.0 % with batch norm"
    assert lars["measured"].startswith("kept to 256 of 1024 without normalisation")


def test_the_bound_of_lars_stands_beside_its_longest_step():
    row = tables.bound_rows(comparison())[1]
    assert (row["what"], row["counted"]) == ("LARS, without normalisation", 0.03)
    assert row["expected"] == pytest.approx(0.2 * 0.001 / 0.1)
    assert "5.00×" in str(tables.ratio_table(comparison()))


def test_a_target_that_is_not_reached_is_said_and_not_drawn():
    text = str(speed.target_table(comparison(), "plain"))
    sgd = next(line for line in text.splitlines() if line.startswith("SGD"))
    assert "16.0 ms; 8 × 2.00 ms" in sgd and "not reached; 4 × 2.00 ms" in sgd
    panel = speed.time_to_target(comparison()).axes[0]
    assert list(panel.lines[0].get_xdata()) == [64, 256]


def test_the_point_where_a_device_is_full_is_not_claimed_at_the_cap():
    runs = {"1 rank": sweep(1, [100.0, 190.0, 195.0], 4), "2 ranks": sweep(2, [100.0, 200.0, 400.0], 8)}
    one, two = str(speed.full_table(runs)).splitlines()[4:6]
    assert "4 × 1; 21.1 ms a step" in one and "not full" not in one
    assert "not full at 8 × 2" in two and "2.05× 1 rank" in two
    assert "2 ranks on CPU, 2 cores, laptop preset from 100 images/s at 2" in speed.throughput(runs).alt


def test_ranks_that_take_turns_are_given_no_speed_up():
    runs = {"1 rank": sweep(1, [100.0, 190.0], 4), "4 ranks": sweep(4, [100.0, 150.0], 4)}
    text = str(speed.full_table(runs))
    assert "4 ranks: more ranks than cores, so the ranks took turns; no speed-up is stated." in text
    assert "1 rank" not in text.splitlines()[5]
    assert "not measured" in speed.claims(runs, comparison())[0]["measured"]


def test_what_ranks_send_is_set_against_the_ring():
    smallest, largest = speed.sent_rows({"1 rank": sweep(1, [1.0, 2.0], 4), "2 ranks": sweep(2, [1.0, 2.0], 4)})
    assert (smallest["images of a rank"], largest["images of a rank"]) == (2, 4)
    assert smallest["expected"] == 4 * 250 and smallest["counted"] == largest["counted"] == 1100


def test_definitions_name_what_was_measured_and_cut_long_errors():
    row = dict(
        rank=0, kind="definition", optimizer="LARS", what="lr=1", paper="a number", upstream="refuses", here="kept"
    )
    text = str(tables.definition_table(run([row | {"found": "ValueError: Invalid"}, row | {"found": 25.19}])))
    assert "ValueError; here: kept" in text and "25.2; here: kept" in text and "Invalid" not in text
