"""Ranks start, report, fail and end as `launch` promises; no process is ever left behind."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SCRIPTS, children_of, gone
from handson import RunFailed, launch
from handson.ranks import run_ranks

pytestmark = [pytest.mark.ranks, pytest.mark.alone]
RING = str(SCRIPTS / "ring.py")
KIT = Path(__file__).parents[1] / "tutorial_src"


def pids(run) -> list[int]:
    return [row["pid"] for kind in ("pid", "child") for row in run.rows(kind)]


def test_every_rank_reports_and_rank_0_is_streamed(capsys):
    run = launch(RING, "ok", ranks=4)
    assert [row["value"] for row in run.rows("sum")] == [6.0] * 4
    assert run.log == [f"step {step}: sum of ranks 6" for step in range(3)]
    assert capsys.readouterr().out.splitlines() == run.log
    assert run.way == "live" and run.preset == "laptop" and run.error is None
    assert run.command == "torchrun --nproc_per_node 4 ring.py ok"


def test_one_rank_needs_no_launcher():
    done = subprocess.run(
        [sys.executable, RING, "ok"], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(KIT)}
    )
    assert done.returncode == 0 and "sum of ranks 0" in done.stdout


def test_a_page_gets_no_ansi_codes_no_progress_bars_and_no_stderr():
    run = launch(RING, "noise", ranks=1)
    assert run.log[-1] == "100%"
    assert not any("\x1b" in line or "warning" in line for line in run.log)


def test_a_rank_that_raises_is_named_with_its_traceback():
    with pytest.raises(RunFailed) as failure:
        launch(RING, "raise", ranks=4)
    text = str(failure.value)
    assert "rank 2 of 4 failed" in text
    assert 'raise ValueError("the shard of rank 2 has the wrong shape")' in text
    assert "runpy" not in text and "Connection closed" not in text
    assert f"python -m handson run --ranks 4 --preset laptop {Path(RING).name} raise" in text


@pytest.mark.parametrize(
    "how, says",
    [
        ("raise", "ValueError: the shard of rank 2 has the wrong shape"),
        ("kill", "rank 2 of 4 was killed by SIGKILL"),
        ("exit", "rank 2 of 4 ended with exit code 7; its last lines:\n  rank 2 gives up"),
        ("refuse", "4 ranks cannot form a square: use 1, 4 or 9"),
    ],
)
def test_a_failed_job_ends_soon_and_leaves_no_process(how, says):
    began = time.monotonic()
    run = launch(RING, how, ranks=4, expect_failure=True)
    assert time.monotonic() - began < 15
    assert says in run.error
    assert all(gone(pid) for pid in pids(run)) and len(pids(run)) == 4


def test_a_job_that_hangs_ends_at_its_limit_and_says_where_the_rank_was():
    launch(RING, "ok", ranks=1, quiet=True)  # the forkserver's start is not part of the limit
    began = time.monotonic()
    run = launch(RING, "hang", ranks=4, timeout=4, expect_failure=True)
    assert 4 <= time.monotonic() - began < 12
    assert "time limit of 4 s" in run.error
    assert "Rank 2 of 4 was at (ranks waiting for it in a collective: [0, 1, 3])" in run.error
    assert "in loop_without_end" in run.error
    assert all(gone(pid) for pid in pids(run))


def test_what_a_rank_started_ends_with_it():
    run = launch(RING, "orphan", ranks=4)
    assert run.rows("child") and all(gone(row["pid"]) for row in run.rows("child"))


def test_an_expected_failure_that_does_not_happen_is_a_failure():
    with pytest.raises(RunFailed, match="expected to fail, but it ended well"):
        launch(RING, "ok", ranks=1, expect_failure=True)


def test_a_port_in_use_is_named():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RunFailed, match=rf"port {port} cannot be used .*name another"):
            launch(RING, "ok", ranks=2, port=port)


@pytest.mark.parametrize(
    "arguments, error, says",
    [
        ({"ranks": 0}, ValueError, "a job has at least one rank"),
        ({"preset": "huge"}, ValueError, "preset='huge' is unknown"),
        ({"preset": "gpu", "ranks": 4}, RunFailed, "needs 4 GPUs, this host has 0"),
    ],
)
def test_impossible_requests_are_refused_before_anything_starts(arguments, error, says, monkeypatch):
    monkeypatch.setattr("handson.provenance.gpus", lambda: ())
    monkeypatch.setattr("handson.launcher.run_ranks", lambda *a, **k: pytest.fail("a job was started"))
    with pytest.raises(error, match=says):
        launch(RING, "ok", **arguments)


def test_an_unknown_script_is_named():
    with pytest.raises(FileNotFoundError, match=r"there is no training script nothing\.py"):
        launch("nothing.py")


def _start_hanging_job() -> tuple[subprocess.Popen, set[int]]:
    job = subprocess.Popen(
        [sys.executable, "-m", "handson", "run", "--ranks", "4", RING, "hang"],
        env={**os.environ, "PYTHONPATH": str(KIT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it puts in the background with SIGINT ignored; these tests may be run like that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    limit = time.monotonic() + 60
    while len(children_of(job.pid)) < 5 and time.monotonic() < limit:
        time.sleep(0.1)
    time.sleep(0.5)
    return job, children_of(job.pid)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_ctrl_c_or_the_launchers_death_ends_every_rank(number, code):
    job, below = _start_hanging_job()
    assert len(below) == 5  # the forkserver and four ranks
    job.send_signal(number)
    _, errors = job.communicate(timeout=15)
    assert job.returncode == code
    if number == signal.SIGINT:
        assert "interrupted; every rank was ended" in errors and "Traceback" not in errors
    assert all(gone(pid) for pid in below)


def test_two_jobs_at_once_do_not_meet_on_one_port():
    ports = set()
    jobs = [
        subprocess.Popen(
            [sys.executable, "-c", "from handson.ranks import reserved_port as r\nwith r(None) as p:\n"
             " print(p, flush=True); input()"],
            env={**os.environ, "PYTHONPATH": str(KIT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    for job in jobs:
        ports.add(job.stdout.readline())
    for job in jobs:
        job.communicate("\n")
    assert len(ports) == 4


def test_a_port_that_is_taken_on_another_interface_is_not_reserved():
    from handson.ranks import reserved_port

    with socket.socket() as elsewhere:
        elsewhere.bind(("127.0.0.2", 0))  # no SO_REUSEADDR, as an outgoing connection has none
        elsewhere.listen()
        with pytest.raises(RunFailed, match="cannot be used"), reserved_port(elsewhere.getsockname()[1]):
            pass


def test_the_environment_is_never_printed(monkeypatch, capfd):
    monkeypatch.setenv("HANDSON_TEST_SECRET", "s3cr3t-value")
    for how in ("raise", "kill", "refuse"):
        run = launch(RING, how, ranks=4, expect_failure=True)
        assert "s3cr3t" not in run.error
    captured = capfd.readouterr()
    assert "s3cr3t" not in captured.out + captured.err


def test_the_forkserver_that_cannot_start_says_why(monkeypatch):
    from handson import ranks

    ranks.stop_servers()
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(RunFailed, match="the process that forks ranks did not start"):
        run_ranks(
            Path(RING), ["ok"], ranks=1, flavour="cpu", env={}, timeout=5, title="", on_line=print
        )  # fmt: skip
