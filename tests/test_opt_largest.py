"""The largest OPT under a cap: the search, the cap that really refuses, and trials that leave nothing behind."""

from functools import cache
from pathlib import Path

import pytest
from handson import launch

PROBE = str(Path(__file__).parent / "scripts" / "opt_largest_probe.py")


@pytest.fixture(autouse=True)
def live_runs(monkeypatch):
    monkeypatch.setenv("HANDSON_RUNS", "live")
    monkeypatch.setenv("HANDSON_PRESET", "laptop")


@cache
def one_rank():
    return launch("opt/largest.py --caps 6,12", preset="laptop", quiet=True)


@cache
def several(ranks: int):
    script = "opt/largest.py --strategies ddp,gemini-static --caps 12"
    return launch(script, ranks=ranks, preset="laptop", quiet=True)


@pytest.mark.parametrize("guess", [-1, 0, 2, 4])
def test_the_search_finds_the_largest_whatever_it_begins_at(opt_module, guess):
    names, tried = ["a", "b", "c", "d", "e"], []
    largest = {1: -1, 2: 0, 3: 3, 4: 3, 5: 4}

    def fits(name: str, cap: float) -> bool:
        assert (name, cap) not in tried
        tried.append((name, cap))
        return names.index(name) <= largest[int(cap)]

    found = opt_module("search").staircase(names, (5, 3, 1, 2, 4), fits, lambda cap: guess)
    assert found == {1: None, 2: "a", 3: "d", 4: "d", 5: "e"}
    trained = [name for name, cap in tried if names.index(name) <= largest[int(cap)]]
    assert len(trained) == len(set(trained))  # what fits under one cap is not tried under a larger one


def test_without_climbing_nothing_above_the_guess_is_tried(opt_module):
    tried = []
    found = opt_module("search").staircase(
        ["a", "b", "c"], (1,), lambda name, cap: tried.append(name) or name == "a", lambda cap: 1, up=False
    )
    assert found == {1: "a"} and tried == ["b", "a"]


def test_the_small_sizes_are_what_their_names_say(opt_module):
    models = opt_module("models")
    for name, shape in opt_module("ladder").OWN.items():
        assert models.parameters(shape) == pytest.approx(1e6 * float(name[:-1]), rel=0.05)


@pytest.mark.ranks
def test_the_cap_refuses_the_tensor_that_passes_it():
    row = launch(PROBE, "refuses", preset="laptop", quiet=True).rows("refused")[0]
    assert 9_600 <= row["most"] <= 10_000 and "and the cap is 10,000" in row["said"]
    assert row["outside"] == 600 * 4


@pytest.mark.ranks
@pytest.mark.parametrize("strategy", ["ddp", "gemini-static"])
def test_the_largest_trains_under_its_cap_and_the_next_does_not(strategy):
    run = one_rank()
    found = {row["cap"]: row["size"] for row in run.rows("largest") if row["strategy"] == strategy}
    assert found == {6: "0.25m", 12: "0.5m"}
    trials = {(row["cap"], row["size"]): row for row in run.rows("trial") if row["strategy"] == strategy}
    for cap, size, larger in ((6, "0.25m", "0.5m"), (12, "0.5m", "1m")):
        trained = trials[cap, size]
        assert trained["verdict"] == "trains" and 5 < trained["loss"] < 7 and trained["tokens_per_second"] > 0
        assert trained["peak_bytes"] <= cap * 2**20
        assert trials[cap, larger]["verdict"] == "out of memory" and "and the cap is" in trials[cap, larger]["reason"]


@pytest.mark.ranks
def test_the_peak_is_what_the_formula_says():
    for row in one_rank().rows("trial"):
        if row["verdict"] == "trains":
            near = 0.01 if row["strategy"] == "ddp" else 0.05  # chunks are not filled to the last element
            assert row["peak_bytes"] == pytest.approx(row["expected_bytes"], rel=near)


@pytest.mark.ranks
def test_the_picture_and_the_tables_say_what_was_found():
    from handson.show import opt_limits as limits

    run, shared = one_rank(), several(2)
    assert limits.by_cap(run) == {
        "6 MiB": {"ddp": "0.25m", "gemini-static": "0.25m"},
        "12 MiB": {"ddp": "0.5m", "gemini-static": "0.5m"},
    }
    drawn = limits.largest_bars(limits.by_ranks([run, shared], cap=12), [run, shared], title="12 MiB")
    assert "1 rank: ddp 0.5m, gemini-static 0.5m; 2 ranks: ddp 0.5m, gemini-static 1m" in drawn.alt
    assert "0.5m; " in (table := str(limits.largest_table(run, caption="found"))) and "1m: out of memory" in table
    assert "1m; 1.03 M" in str(limits.ranks_table([shared, shared], caption="shared"))
    assert str(limits.peaks_table(run, caption="peaks")).count("14 N + tokens") == 2


def test_what_a_search_found_before_its_time_limit_is_shown_as_a_lower_bound():
    from handson.run import Run
    from handson.show import opt_limits as limits

    def rows(strategy, size, verdict, reason="", stopped=""):
        return {"kind": "trial", "rank": 0, "cap": 8.0, "strategy": strategy, "size": size, "verdict": verdict,
                "reason": reason, "stopped": stopped, "parameters": {"125m": 125e6, "350m": 350e6}[size]}  # fmt: skip

    data = [{"kind": "search", "rank": 0, "unit": "GB", "caps": [8]}]
    data += [rows("ddp", "125m", "trains"), rows("ddp", "350m", "not tried", "9.00 GB by the formula")]
    late = "about 30 s, more than is left of the search's 20"
    data += [rows("gemini-offload", "125m", "trains"), rows("gemini-offload", "350m", "not tried", late, "time limit")]
    best = {"kind": "largest", "rank": 0, "cap": 8.0, "size": "125m"}
    data += [best | {"strategy": name} for name in ("ddp", "gemini-offload")]
    run = Run("largest.py", [], 1, "gpu", "", "", {}, {}, [], data, 1.0)
    assert limits.lower_bounds(run) == {("8 GB", "gemini-offload")}
    assert limits.against_ddp(run) == "at least 125m in 8 GB, 1.00× ddp"
    drawn = limits.largest_bars(limits.by_cap(run), [run], title="one")
    assert "8 GB: ddp 125m, gemini-offload 125m or larger" in drawn.alt
    assert [text.get_text() for text in drawn.axes[0].texts] == ["↑"]


@pytest.mark.parametrize(
    "change, stopped", [({"seconds": 1e-9}, "time limit"), ({"host_gb": 1e-9, "seconds": 1e-9}, ""), ({}, None)]
)
def test_a_trial_that_only_the_time_forbids_says_so(opt_module, monkeypatch, change, stopped):
    args = opt_module("largest").read([])
    vars(args).update(change)
    search, trial = opt_module("search"), opt_module("trial")
    monkeypatch.setattr(trial, "run", lambda *asked: "tried")
    monkeypatch.setattr(trial, "on_host", lambda *asked: 1e3)
    result = search.Search(args)._attempt("1m", "ddp", 24, [])
    assert result == "tried" if stopped is None else (result.verdict, result.stopped) == ("not tried", stopped)


def test_the_formula_of_zero_counts_its_share_of_gradients_in_fp32_and_data_parallelism_a_piece(opt_module):
    trial, models = opt_module("trial"), opt_module("models")
    shape, task = models.SIZES["13b"], trial.Task(1, 32)  # so few tokens that the update is the peak
    count = models.parameters(shape)
    assert trial.expected(shape, "zero2", 2, task) == pytest.approx(count * (2 + 2 / 2 + 12 / 2 + 4 / 2))
    assert trial.expected(shape, "ddp", 2, task) == pytest.approx(count * 16 + 4 * 2**24)


@pytest.mark.ranks
def test_ranks_that_share_hold_more_and_ranks_that_repeat_do_not():
    rows = several(2).rows("largest", rank=0)
    assert {row["strategy"]: row["size"] for row in rows} == {"ddp": "0.5m", "gemini-static": "1m"}


@pytest.mark.ranks
def test_a_trial_leaves_no_tensor_behind_whether_it_trains_or_not():
    rows = launch(PROBE, "clean", preset="laptop", quiet=True).rows("left")
    verdicts = {(row["strategy"], row["verdict"]) for row in rows}
    assert len(verdicts) == 6  # each strategy both trains and fails
    assert [row for row in rows if row["left"] > 0] == []


@pytest.mark.ranks
def test_an_error_that_is_not_the_memorys_ends_the_search():
    error = launch(PROBE, "fault", preset="laptop", quiet=True, expect_failure=True).error
    assert "RuntimeError: the weights are upside down" in error


@pytest.mark.parametrize(
    "argv, says",
    [
        (["--caps", "8,many"], "--caps 8,many must be numbers"),
        (["--caps", "-1"], "must all be above 0"),
        (["--strategies", "zero9"], "zero9 is not known"),
        (["--strategies", "gemini-offload"], "here is no GPU"),
        (["--speed", "1"], "python largest.py --help says what there is"),
    ],
)
def test_a_wrong_command_is_refused_in_one_sentence(opt_module, capsys, argv, says):
    with pytest.raises(SystemExit) as stop:
        opt_module("largest").read(argv)
    assert stop.value.code == 2 and says in capsys.readouterr().err
