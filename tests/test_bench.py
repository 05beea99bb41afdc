"""`nox -s bench`: the same jobs by `colossalai run` and through the kit, compared, kept, and shown in the docs."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, gone
from handson import measured, sources, store
from handson.run import Run
from handson.show import bench_report

DOCS = ROOT / "docs"
LESSON = "multi_dimensional/plot_tensor_parallel"
OTHER = "auto_parallel/plot_plan_a_mesh"
# A rank that imports nothing heavy: what it is told, it records, and both ways must tell it the same.
SCRIPT = """
import os, sys, time
from pathlib import Path
from handson import worker

names = "HANDSON_PRESET HANDSON_DEVICE HANDSON_WITHOUT OMP_NUM_THREADS CUDA_VISIBLE_DEVICES GLOO_SOCKET_IFNAME"
worker.record("told", arguments=sys.argv[1:], world=worker.place().world_size,
              **{name: os.environ.get(name) for name in names.split()})
worker.record("loss", step=1, loss=0.1 + worker.place().rank)
worker.record("step_time", method="wall clock", all_ms=[time.perf_counter()], warmup=os.getpid())
worker.log("a line")
if "fail" in sys.argv[1:]:
    raise ValueError("the job cannot do this")
if "wait" in sys.argv[1:]:
    Path(f"rank{worker.place().rank}").write_text(str(os.getpid()))
    time.sleep(600)
"""
# As docs/bench.py runs by itself, without reading torch from the disk first.
PROGRAM = f"""
import sys
sys.path.insert(0, {str(DOCS)!r})
import bench
bench.PRELOAD = ("json",)
sys.exit(bench.main(sys.argv[1:]))
"""


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Makes recordings of the small script's jobs, as if lessons had asked for them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HANDSON_MEASURED", str(tmp_path / "measured"))
    monkeypatch.delenv("HANDSON_ROUNDS", raising=False)
    (tmp_path / "tiny.py").write_text(SCRIPT)

    def make(*argv, ranks=1, lesson=LESSON, preset="laptop", error=None, without=()):
        request = store.Request(tmp_path / "tiny.py", argv, ranks, preset, tuple(without))
        run = Run(
            "tiny.py", list(argv), ranks, preset, "python tiny.py", request.key, request.files, {}, [], [], 1.0, error,
            [lesson], list(without),
        )  # fmt: skip
        store.write(store.recordings() / request.file, store.dump(run))
        return request

    return make


@pytest.fixture
def docs(monkeypatch):
    """Imports one of the programs of docs/."""
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.syspath_prepend(str(DOCS / "_ext"))
    return importlib.import_module


def command(*arguments):
    return [sys.executable, "-c", PROGRAM, *arguments]


def run_bench(*arguments, **environment):
    """The finished process."""
    known = {**os.environ, "PYTHONPATH": str(sources.SCRIPTS), **environment}
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=280, env=known)


# --- both ways, really -----------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_it_runs_the_jobs_that_end_well_both_ways_and_keeps_what_they_took(jobs, tmp_path):
    two = jobs("it's", "two words; $HOME", ranks=2)
    one = jobs(ranks=1)
    jobs("refused", error="it was refused")
    jobs("faulty", without=["scale"])
    jobs("of another lesson", lesson=OTHER)
    done = run_bench("plot_tensor_parallel", HANDSON_WITHOUT="warnings", HANDSON_RUNS="recorded")
    assert "2 jobs of multi_dimensional/plot_tensor_parallel: 0 on GPUs, 2 on the CPU" in done.stdout, done.stderr
    bench = measured.read(tmp_path / "measured" / "bench-cpu.json")
    assert {job.key for job in bench.jobs} == {one.key, two.key} and {job.ranks for job in bench.jobs} == {1, 2}
    # Of each rank: 9 values of what it was told (one more for each argument), 2 of its loss.
    assert sorted(job.agreed for job in bench.jobs) == [10, 2 * 12]
    assert all(job.colossalai_run > 0 and job.kit > 0 for job in bench.jobs)
    assert bench.colossalai_run == [pytest.approx(sum(job.colossalai_run for job in bench.jobs), abs=0.01)]
    assert bench.kit[0] > sum(job.kit for job in bench.jobs) and bench.workers == 1
    assert bench.provenance["command"] == "nox -s bench -- plot_tensor_parallel" and bench.goal == 5
    assert done.returncode == int(not bench.met) and ("is met" in done.stdout) == bench.met
    assert "job 2 of 2: tiny.py" in done.stdout and "Both ways the ranks recorded the same 34 words" in done.stdout
    assert not list(Path(os.environ["HANDSON_BUILD"]).rglob("*.json")), "this host's own runs are not touched"
    assert measured.changed(bench) == []


@pytest.mark.ranks
def test_a_job_that_fails_ends_the_bench_with_its_last_lines_and_the_former_result_stays(jobs, tmp_path):
    jobs("fail")
    (tmp_path / "measured").mkdir()
    former = tmp_path / "measured" / "bench-cpu.json"
    former.write_text("the former result")
    done = run_bench(LESSON)
    assert done.returncode == 1 and former.read_text() == "the former result"
    assert "error: by colossalai run, tiny.py fail x1 failed with exit code 1; its last lines:" in done.stderr
    assert "There is no result; docs/measured/ is as it was." in done.stderr
    assert "ValueError: the job cannot do this" in done.stderr


@pytest.mark.ranks
def test_a_job_that_fails_through_the_kit_alone_is_named(jobs, docs, tmp_path):
    request = jobs("fail")
    with pytest.raises(docs("bench_ways").Failed) as failed:
        docs("bench_ways").through_the_kit([request], 1, tmp_path)
    assert str(failed.value).startswith("through the kit, tiny.py fail on 1 rank: rank 0 of 1 failed:")
    assert "ValueError: the job cannot do this" in str(failed.value)


@pytest.mark.ranks
def test_ctrl_c_ends_every_rank_and_writes_nothing(jobs, tmp_path):
    jobs("wait", ranks=2)
    environment = {**os.environ, "PYTHONPATH": str(sources.SCRIPTS)}
    process = subprocess.Popen(
        command(LESSON), stderr=subprocess.PIPE, text=True, env=environment,
        # A shell starts what it puts in the background with SIGINT ignored; these tests may be run like that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    places = [tmp_path / "rank0", tmp_path / "rank1"]
    limit = time.monotonic() + 120
    while not all(place.is_file() and place.read_text() for place in places):
        assert process.poll() is None and time.monotonic() < limit
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted: every rank was ended" in said and "Traceback" not in said
    assert all(gone(int(place.read_text())) for place in places)
    assert not (tmp_path / "measured").exists()


# --- which jobs, and what is refused ------------------------------------------------------------------------------


def test_jobs_for_more_gpus_than_there_are_run_at_the_laptop_preset_and_each_once(jobs, docs, monkeypatch):
    jobs("a", ranks=2, preset="gpu")
    jobs("a", ranks=4, preset="gpu")
    jobs("a", ranks=4, preset="laptop")
    asked = lambda: [(job.ranks, job.preset) for job in docs("bench").jobs_of([LESSON, LESSON])]  # noqa: E731
    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H", "H"))
    assert sorted(asked()) == [(2, "gpu"), (4, "laptop")]
    monkeypatch.setattr("handson.provenance.gpus", lambda: ())
    assert sorted(asked()) == [(2, "laptop"), (4, "laptop")]


@pytest.mark.parametrize(
    "arguments, environment, says",
    [
        (["plot_nothing"], {}, "there is no lesson plot_nothing: the gallery has auto_checkpoint/plot_largest_batch, "),
        ([OTHER], {}, f"no recording of {OTHER} holds a job that ends well: name others"),
        ([], {"HANDSON_ROUNDS": "0"}, "HANDSON_ROUNDS=0 is no number of rounds: use 1, 2, 3 ..."),
        ([], {"HANDSON_ROUNDS": "two"}, "HANDSON_ROUNDS=two is no number of rounds: use 1, 2, 3 ..."),
    ],
)
def test_bad_input_is_refused_in_one_sentence(jobs, arguments, environment, says):
    jobs("a")
    done = run_bench(*arguments, **environment)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"error: {says}") and len(done.stderr.splitlines()) == 1


def test_a_damaged_recording_is_named(jobs):
    path = store.recordings() / jobs("a").file
    path.write_text(path.read_text()[:-100])
    done = run_bench(LESSON)
    assert done.returncode == 2 and f"{path.name} is truncated or corrupt" in done.stderr


# --- the same job? ------------------------------------------------------------------------------------------------

ROWS = [
    {"rank": 0, "kind": "mesh", "sizes": {"tensor": 4, "data": 1}, "title": "2d"},
    {"rank": 0, "kind": "loss", "step": 1, "loss": 2.5, "took_ms": 3.1},
    {"rank": 0, "kind": "loss", "step": 2, "loss": 1.5, "took_ms": 2.9},
    {"rank": 1, "kind": "memory", "method": "counted", "peak_bytes": 123},
]


def compare(docs, *changes, drop=()):
    """What a second run agrees in that recorded other values in some rows."""
    other = [dict(row) for index, row in enumerate(ROWS) if index not in drop]
    for index, fields in changes:
        other[index] |= fields
    return docs("bench_ways").agreed(store.Request(Path("tiny.py"), (), 2, "laptop"), ROWS, other)


def test_two_runs_are_the_same_job_whatever_they_measured(docs):
    assert compare(docs, (1, {"took_ms": 9.9, "loss": 2.5001}), (3, {"peak_bytes": 456})) == 7


@pytest.mark.parametrize(
    "changes, drop, says",
    [
        ([(0, {"title": "3d"})], (), "rank 0 recorded in its mesh: title 2d and 3d"),
        ([(0, {"sizes": {"tensor": 8, "data": 1}})], (), "rank 0 recorded in its mesh: sizes.tensor 4 and 8"),
        ([(2, {"loss": 1.6})], (), "rank 0 recorded in its loss: loss 1.5 and 1.6"),
        ([], (2,), "rank 0 recorded in its loss: 4 and 2 values"),
        ([], (0,), "rank 0 recorded in its mesh: 3 and 0 values"),
    ],
)
def test_another_job_is_recognised_by_what_it_recorded(docs, changes, drop, says):
    with pytest.raises(docs("bench_ways").Failed) as failed:
        compare(docs, *changes, drop=drop)
    assert str(failed.value).startswith(
        "tiny.py x2 was not the same job both ways: by colossalai run and through the kit"
    )
    assert says in str(failed.value)


def test_a_job_that_records_nothing_to_compare_is_refused(docs):
    request = store.Request(Path("tiny.py"), (), 1, "laptop")
    with pytest.raises(docs("bench_ways").Failed, match="recorded nothing by which its two runs could be compared"):
        docs("bench_ways").agreed(request, ROWS[3:], ROWS[3:])


# --- what is kept, and what the page shows --------------------------------------------------------------------------


@pytest.fixture
def bench(jobs):
    """A result, as the program writes it."""
    made = {"hardware": "the CPU (2 cores, Xeon)", "device": "cpu", "python": "3.11.7", "torch": "2.13.0+cpu"}
    made |= {"date": "2026-11-22T10:00:00+00:00", "commit": "abc", "command": "nox -s bench", "driver": ""}
    rows = []
    for argv, ranks, seconds in ((["big"], 8, (44.0, 2.0)), (["long"], 1, (16.0, 8.0))):
        request = jobs(*argv, ranks=ranks)
        rows.append(measured.Job("tiny.py", argv, ranks, "laptop", [], request.key, 1000, *seconds))
    return measured.Bench(made, [LESSON], 1, 5.0, [60.0], [12.0], rows)


def test_a_result_is_read_back_as_it_was_and_has_a_line_for_each_job(bench, tmp_path):
    text = measured.dump(bench)
    (tmp_path / "bench-cpu.json").write_text(text)
    assert measured.read(tmp_path / "bench-cpu.json") == bench
    assert sum('"script": "tiny.py"' in line for line in text.splitlines()) == 2 and json.loads(text)["format"] == 1


@pytest.mark.parametrize("damage", ["{", "[]", '{"format": 1}', '{"format": 2, "jobs": []}'])
def test_a_damaged_result_is_named(tmp_path, damage):
    path = tmp_path / "bench-cpu.json"
    path.write_text(damage)
    with pytest.raises(ValueError, match=r"bench-cpu\.json is damaged .*: restore it from git, or measure again"):
        measured.read(path)


def test_the_table_has_each_job_and_all_of_them_and_says_how_it_was_measured(bench):
    text = str(bench_report.jobs(bench))
    assert "tiny.py big" in text and "22.0×" in text and "all jobs" in text and "5.00×" in text
    assert "one round. One after another both ways." in text and "the same 2,000 words" in text
    several = dataclasses.replace(bench, colossalai_run=[60.0, 50.0, 70.0], kit=[9.0, 12.0, 10.0], workers=6)
    text = str(bench_report.jobs(several))
    assert "medians of 3 rounds" in text and "all jobs took 50.0 s to 70.0 s" in " ".join(text.split())
    assert "6.00×" in text and "6 processes started jobs" in text


def test_the_verdict_follows_the_totals(bench):
    assert bench_report.verdict(bench).endswith("a ratio of 5.00; the goal, at least 5, is met.")
    missed = dataclasses.replace(bench, kit=[12.1])
    assert not missed.met and bench_report.verdict(missed).endswith("a ratio of 4.96; the goal, at least 5, is missed.")


def test_the_picture_says_every_job_in_words(bench):
    drawn = bench_report.chart(bench)
    assert "tiny.py, 8 ranks 44.0 s and 2.00 s; tiny.py, 1 rank 16.0 s and 8.00 s" in drawn.alt
    assert "22.0×" in {text.get_text() for text in drawn.axes[0].texts}


def test_a_result_says_when_the_code_of_its_jobs_has_changed(bench, docs, tmp_path):
    page = docs("bench_page")
    assert page.freshness(bench) == "The code of its jobs is the code that is here now."
    (tmp_path / "tiny.py").write_text(SCRIPT + "# changed\n")
    assert "has changed since: tiny.py." in page.freshness(bench) and measured.changed(bench) == ["tiny.py"]
    (tmp_path / "tiny.py").unlink()
    assert "has changed since: tiny.py." in page.freshness(bench)
    said = docs("build_page").origin("recorded", "Measured", bench.provenance, "").astext()
    assert "Measured on the CPU (2 cores, Xeon) · Python 3.11.7 · PyTorch 2.13.0+cpu · 2026-11-22" in said
