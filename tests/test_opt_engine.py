"""The serving engine answers what plain transformers answers, in any company; sampling is fair and repeatable."""

from functools import cache

import pytest
from handson import launch
from handson.run import Run


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")


@cache
def probe() -> Run:
    return launch("tests/scripts/opt_engine_probe.py", preset="laptop", quiet=True)


def test_greedy_answers_are_those_of_transformers_alone_and_batched():
    rows = probe().rows("parity")
    assert [(row["model"], row["rows"]) for row in rows] == [
        (model, rows) for model in ("norm first", "norm last, narrow words") for rows in (1, 5, 24)
    ]
    for row in rows:
        assert row["same"] == row["of"] == 24 and row["reasons"] == ["length"] and not row["alive"]
        assert row["kinds"] > 25, "a model that repeats itself proves little"


def test_requests_share_steps_and_prompts_are_read_together():
    for row in probe().rows("parity"):
        assert row["most"] <= row["rows"]
        if row["rows"] == 1:
            assert row["reads"] == 24
        if row["rows"] == 5:
            assert row["most"] == 5
        if row["rows"] == 24:
            assert row["reads"] < 20


def test_an_answer_ends_with_the_end_token():
    (row,) = probe().rows("stop")
    assert row["reason"] == "stop" and row["tokens"] == row["right"] and len(row["right"]) < 30


def test_a_seed_gives_one_answer_in_any_company():
    rows = probe().rows("companions")
    assert len(rows) == 4 and all(row["same"] and row["other"] and row["most"] == 6 for row in rows)


def test_sampling_has_the_probabilities_of_transformers():
    rows = probe().rows("distribution")
    assert len(rows) == 6
    for row in rows:
        assert row["formula"] < 1e-6 and row["drawn"] < 0.015 and row["outside"] == 0, row
    assert probe().value("cold", "same")


def test_a_client_that_goes_frees_its_row_within_a_step():
    (row,) = probe().rows("gone")
    assert row["steps"] == [2, 2, 2, 2, 1, 1, 1, 1] and row["last"] == 1
    assert row["reads"] == [2], "the third had gone before it was read"
    assert row["same"]


def test_memory_is_bounded_and_full_rows_are_refused():
    (row,) = probe().rows("slots")
    assert row["bytes"] == row["formula"]
    assert "do not fit into 0 free rows of 96 columns" in row["faults"][0]
    assert "up to 97 tokens" in row["faults"][1]
