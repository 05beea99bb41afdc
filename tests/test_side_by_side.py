"""Lessons run side by side where there are GPUs, with the record to prove it; a run that two of them show is made once.

On a small site whose host seems to have two GPUs (see small_site); its jobs use none.
"""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import small_site
from handson import jobs, side_by_side, store

pytestmark = pytest.mark.ranks

LESSON = '''"""
Lesson {name}
=============
"""
from handson import launch

for words, ranks in {asked!r}:
    launch(f"hybrid_parallel/job.py {{words}}", ranks=ranks)
'''
ASKED = {
    "one/plot_a": [("a", 1), ("shared", 1)],
    "one/plot_b": [("b", 1), ("shared", 1)],
    "two/plot_c": [("c", 2)],
    "two/plot_d": [("d", 1)],
}


@pytest.fixture
def site(tmp_path):
    site = small_site.make(tmp_path)
    site.pretend_gpus(2)
    (site.root / "gallery" / "topic" / "plot_small.py").unlink()
    (site.root / "gallery" / "topic" / "GALLERY_HEADER.rst").unlink()
    (site.root / "gallery" / "topic").rmdir()
    for name, asked in ASKED.items():
        site.add(name, LESSON.format(name=name[-1], asked=asked))
    return site


def record(site):
    """The record of the build of this site that started jobs."""
    records = sorted((site.root / "build" / "handson" / "jobs").glob("*.jsonl"))
    (build,) = [jobs.read(path) for path in records if '"job"' in path.read_text()]
    return build


def test_lessons_run_side_by_side_and_a_shared_run_is_made_once(site):
    code, said, _ = site.build(PAUSE="8")  # longer than one process may be ahead of the next
    assert code == 0, said
    assert "4 lessons, 4 at once" in said and "lesson 4 of 4" in said
    build = record(site)
    assert sorted(job["argv"][0] for job in build.jobs) == ["a", "b", "c", "d", "shared"]
    assert {job["argv"][0]: len(job["devices"]) for job in build.jobs}["c"] == 2
    overlaps = [
        set(one["devices"]) & set(two["devices"])
        for one, two in itertools.combinations(build.jobs, 2)
        if one["began"] < two["ended"] and two["began"] < one["ended"]
    ]
    assert overlaps and not any(overlaps)  # some at once, and none on one device
    for name in ASKED:
        page = (site.root / "build" / "html" / "lessons" / f"{name}.html").read_text()
        assert page.count("the answer is 42") == len(ASKED[name])
    code, said, _ = site.build()
    assert code == 0 and "at once" not in said and record(site) == build


def test_a_live_build_makes_every_run_again_and_once(site):
    assert site.build()[0] == 0
    code, said, _ = site.build(RUNS="live")
    assert code == 0, said
    latest = jobs.read(jobs.latest(site.root / "build" / "handson"))
    assert sorted(job["argv"][0] for job in latest.jobs) == ["a", "b", "c", "d", "shared"]


def test_a_lesson_that_fails_fails_the_build_and_the_others_are_made(site):
    site.add("two/plot_d", LESSON.format(name="d", asked=[("d", 1)]) + "raise RuntimeError('no such luck')\n")
    code, said, _ = site.build()
    assert code == 1
    assert "two/plot_d: failed: no such luck" in said
    assert "to run it alone: python gallery/two/plot_d.py" in said
    assert len(record(site).jobs) == 5


def test_a_worker_that_is_killed_ends_the_others_and_the_gallery_makes_the_rest(site):
    process = site.start(PAUSE="10")
    site.wait_for_ranks(2)
    (victim, *_) = [pid for pid in site.alive() if b"spawn_main" in command(pid)]
    os.kill(victim, signal.SIGKILL)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0 and "terminated abruptly" in said
    assert not site.processes()
    page = (site.root / "build" / "html" / "lessons" / "two" / "plot_c.html").read_text()
    assert "the answer is 42" in page


def command(pid):
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


def test_ctrl_c_ends_every_lesson_and_the_next_build_is_right(site):
    # A job that needs both devices could take the free one and wait, with a single rank running: it is left out.
    (site.root / "gallery" / "two" / "plot_c.py").unlink()
    code, said, seconds = site.interrupted()
    assert code == 130 and seconds < 20, said
    assert "The build was interrupted after" in said and not site.processes()
    assert site.build()[0] == 0


def test_recording_all_keeps_the_runs_and_the_record_of_the_jobs(site):
    command = [sys.executable, "-m", "handson", "record", "all"]
    done = subprocess.run(command, cwd=site.root, env=site.environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "lesson 4 of 4" in done.stderr and not site.processes()
    recordings = [store.load(path)[0] for path in (site.root / "docs" / "recordings").rglob("*.json")]
    assert {run.argv[0]: len(run.lessons) for run in recordings} == {"a": 1, "b": 1, "c": 1, "d": 1, "shared": 2}
    build = jobs.read(site.root / "docs" / "measured" / "build.jsonl")
    assert len(build.jobs) == 5 and all(job["key"] for job in build.jobs)


def test_one_worker_is_this_process_and_goes_on_after_an_error():
    results = dict(side_by_side.run_each(int, ["3", "x", "5"], 1))
    assert (results["3"], results["5"]) == (3, 5) and isinstance(results["x"], ValueError)


def test_several_workers_are_processes_of_their_own():
    results = dict(side_by_side.run_each(_process, ["a", "b"], 2))
    assert all(pid != os.getpid() for pid in results.values())


def _process(item):
    return os.getpid()
