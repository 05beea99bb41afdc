"""Devices are leased: one job at a time on each, side by side on different ones, and a record of who had which."""

import contextlib
import itertools
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SCRIPTS
from handson import jobs, launch, leases
from handson.show import build_report, style
from handson.watching import Outcome

KIT = Path(__file__).parents[1] / "tutorial_src"
HOLDER = """
import sys, time
from handson import leases
told = float(sys.argv[4]) if len(sys.argv) > 4 else None
with leases.lease(int(sys.argv[1]), sys.argv[2].split(","), seconds=told) as mine:
    print(",".join(mine), time.monotonic(), flush=True)
    time.sleep(float(sys.argv[3]))
    print("end", time.monotonic(), flush=True)
"""


def holder(count: int, devices: str, seconds: float, *expected: float) -> subprocess.Popen:
    """A process that takes devices and keeps them for some time; `expected` is how long it says that it will."""
    command = [sys.executable, "-c", HOLDER, str(count), devices, str(seconds), *map(str, expected)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(KIT)}, stdout=subprocess.PIPE, text=True)


def test_jobs_on_different_devices_run_side_by_side_and_on_one_device_in_turn():
    three = [holder(1, "0,1", 0.6) for _ in range(3)]
    spans = []
    for process in three:
        (device, began), (_, ended) = (line.split() for line in process.communicate(timeout=30)[0].splitlines())
        spans.append((device, float(began), float(ended)))
    spans.sort(key=lambda span: span[1])
    assert {device for device, *_ in spans[:2]} == {"0", "1"}
    assert spans[1][1] < spans[0][2]  # the second begins before the first has ended
    assert spans[2][1] >= min(spans[0][2], spans[1][2])  # the third has to wait for one of them
    for device in "01":
        own = [span for span in spans if span[0] == device]
        assert all(later[1] >= earlier[2] for earlier, later in itertools.pairwise(own))


def test_a_job_of_many_devices_is_not_put_off_by_jobs_of_few():
    with leases.lease(1, ("0", "1")) as first:
        assert first == ("0",)
        many = holder(2, "0,1", 0)
        limit = time.monotonic() + 20
        while leases._take(leases.folder() / "device-1") is not None and time.monotonic() < limit:
            time.sleep(0.05)  # until it has taken the free one
        few = holder(1, "0,1", 0)
        time.sleep(0.5)
        assert many.poll() is None and few.poll() is None
    began = [float(process.communicate(timeout=30)[0].split()[1]) for process in (many, few)]
    assert began[0] < began[1]


def waits(process: subprocess.Popen) -> bool:
    """Whether a holder is still without its devices a second after it could have asked for them."""
    with selectors.DefaultSelector() as reader:
        reader.register(process.stdout, selectors.EVENT_READ)
        return not reader.select(1.0)


def until_the_turn_is_had() -> None:
    """Until some process waits at the head of the queue for GPUs, and has told for how long."""
    limit = time.monotonic() + 20
    while not leases._told(leases.folder() / "turn-gpus") and time.monotonic() < limit:
        time.sleep(0.02)


def test_a_job_that_ends_before_a_waiting_one_could_begin_passes_it():
    with leases.lease(1, ("0", "1"), seconds=60):
        many = holder(2, "0,1", 0, 5)
        until_the_turn_is_had()
        longer, unknown = holder(1, "0,1", 0, 100), holder(1, "0,1", 0)
        shorter = holder(1, "0,1", 0, 10)
        assert shorter.communicate(timeout=30)[0].startswith("1 ")
        assert waits(longer) and waits(unknown) and waits(many)
        again = holder(1, "0,1", 0, 10)
        assert again.communicate(timeout=30)[0].startswith("1 ")
    began = [float(process.communicate(timeout=30)[0].split()[1]) for process in (many, longer, unknown)]
    assert began[0] == min(began)


def test_nothing_passes_a_waiting_job_once_what_it_waits_for_is_overdue():
    with leases.lease(1, ("0", "1"), seconds=leases.SOON + 1.5):
        many = holder(2, "0,1", 0, 5)
        until_the_turn_is_had()
        time.sleep(2.0)
        short = holder(1, "0,1", 0, 0.1)
        assert waits(short) and waits(many)
        time.sleep(1.0)
        assert waits(short) and waits(many)
    began = [float(process.communicate(timeout=30)[0].split()[1]) for process in (many, short)]
    assert began[0] < began[1]


def test_what_a_job_told_of_itself_ends_with_its_lease():
    with leases.lease(1, ("0",), seconds=60):
        assert leases._told(leases.folder() / "device-0") > time.time() + 50
    assert leases._told(leases.folder() / "device-0") == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_keeps_no_device_from_a_job(tmp_path, monkeypatch):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode:
        pytest.skip("this host lets nobody mount a small disk")
    try:
        monkeypatch.setenv("HANDSON_LEASES", str(tmp_path))
        for name in ("turn-gpus", "device-0"):
            (tmp_path / name).touch()
        with contextlib.suppress(OSError), (tmp_path / "ballast").open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        with leases.lease(1, ("0",), seconds=60) as mine:
            assert mine == ("0",) and leases._told(tmp_path / "device-0") == 0
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)


def test_a_job_on_the_cores_does_not_wait_for_one_that_waits_for_gpus():
    with leases.lease(1, ("0", "1")):
        many = holder(2, "0,1", 0)
        limit = time.monotonic() + 20
        while leases._take(leases.folder() / "device-1") is not None and time.monotonic() < limit:
            time.sleep(0.05)  # until it waits for the other one
        cores = holder(1, leases.CPU, 0)
        assert cores.communicate(timeout=30)[0].startswith(f"{leases.CPU} ")
        assert many.poll() is None
    many.communicate(timeout=30)


def test_the_lease_of_a_process_that_is_killed_ends_with_it():
    process = holder(2, "0,1", 600)
    assert process.stdout.readline().startswith("0,1 ")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    said = []
    with leases.lease(2, ("0", "1"), waiting=lambda: said.append("waiting")) as mine:
        assert mine == ("0", "1") and not said


def test_who_waits_says_so():
    process, said = holder(1, leases.CPU, 2), []
    process.stdout.readline()
    with leases.lease(1, (leases.CPU,), waiting=lambda: said.append("waiting")):
        assert said == ["waiting"]
    process.communicate()


def test_more_devices_than_there_are_cannot_be_leased():
    with pytest.raises(ValueError, match="3 devices were asked for, and there are 2"), leases.lease(3, ("0", "1")):
        pass


@pytest.mark.parametrize(
    "visible, names", [(None, ("0", "1")), ("1", ("1",)), ("", ()), ("GPU-a, GPU-b", ("GPU-a", "GPU-b"))]
)
def test_gpus_are_called_as_cuda_calls_them(monkeypatch, visible, names):
    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H", "H"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert leases.gpus() == names
    assert leases.devices_for(2, "cuda") == (2, names) and leases.devices_for(8, "cpu") == (1, ("cpu",))


def test_a_job_on_gpus_that_are_not_the_first_is_told_which(monkeypatch, tmp_path):
    """What the ranks would get: this host has no GPUs to give them."""
    seen = []

    def ranks(*arguments, env, **options):
        seen.append(env.get("CUDA_VISIBLE_DEVICES"))
        return Outcome()

    (tmp_path / "empty.py").write_text("")
    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H", "H", "H"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("handson.launcher.run_ranks", ranks)
    monkeypatch.setattr("handson.launcher.ready", lambda flavour: None)
    monkeypatch.setenv("HANDSON_RUNS", "live")
    launch(str(tmp_path / "empty.py"), ranks=2, preset="gpu")
    with leases.lease(1, ("0", "1", "2")):
        launch(str(tmp_path / "empty.py"), ranks=2, preset="gpu")
    assert seen == [None, "1,2"]


def test_no_gpu_is_held_for_the_imports(monkeypatch, tmp_path):
    """The ranks' imports take many seconds, in which another job can use the device."""
    (tmp_path / "empty.py").write_text("")
    free = []

    def ready(flavour):
        with leases.lease(1, ("0",), waiting=lambda: free.append(False)):
            free.append(True)

    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H",))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("handson.launcher.run_ranks", lambda *arguments, **options: Outcome())
    monkeypatch.setattr("handson.launcher.ready", ready)
    launch(str(tmp_path / "empty.py"), preset="gpu")
    assert free == [True]


@pytest.mark.parametrize(
    "count, held, cores",
    [
        (2, ("1",), [4, 5, 6, 7]),
        (2, ("0", "1"), [0, 1, 2, 3, 4, 5, 6, 7]),
        (2, (leases.CPU,), [8, 9, 10, 11]),
        (2, (), []),  # a job within a job
        (3, ("1",), []),  # too few for each
        (0, (leases.CPU,), []),
    ],
)
def test_each_gpu_has_its_own_cores_and_jobs_without_gpus_theirs(monkeypatch, count, held, cores):
    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H",) * count)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(12)))
    assert leases.cores_of(held) == cores


@pytest.mark.ranks
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="a share of one core is all of it")
def test_ranks_compute_on_the_cores_of_their_job_alone(monkeypatch, tmp_path):
    script = tmp_path / "where.py"
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # empty where all of these tests are to see no GPU
    script.write_text("import os\nfrom handson import worker\nworker.record('on', cores=[*os.sched_getaffinity(0)])\n")
    monkeypatch.setattr("handson.provenance.gpus", lambda: ("H",))
    monkeypatch.setattr(leases, "LEAST_CORES", 1)
    both = sorted(os.sched_getaffinity(0))
    shares = [launch(str(script), preset="laptop").value("on", "cores")]
    monkeypatch.setattr("handson.provenance.gpus", lambda: ())
    shares.append(launch(str(script), "again", preset="laptop").value("on", "cores"))
    assert shares[0] == both[len(both) // 2 : len(both) // 2 * 2] and sorted(shares[1]) == both


@pytest.mark.ranks
def test_a_job_within_a_job_shares_its_devices(tmp_path):
    (tmp_path / "inner.py").write_text("print('inside')\n")
    outer = tmp_path / "outer.py"
    outer.write_text(f"from handson import launch\nlaunch({str(tmp_path / 'inner.py')!r}, preset='laptop')\n")
    assert launch(str(outer), preset="laptop", timeout=60, quiet=True).log == ["inside"]


@pytest.mark.ranks
def test_a_job_is_expected_to_last_as_long_as_its_last_run(monkeypatch):
    lease, told = leases.lease, []

    def listening(*args, **kwargs):
        told.append(kwargs["seconds"])
        return lease(*args, **kwargs)

    monkeypatch.setattr(leases, "lease", listening)
    monkeypatch.setenv("HANDSON_RUNS", "live")
    script = str(SCRIPTS / "ring.py")
    first = launch(script, "ok", ranks=2, preset="laptop", quiet=True)
    launch(script, "ok", ranks=2, preset="laptop", quiet=True)
    launch(script, "refuse", ranks=2, preset="laptop", expect_failure=True)
    assert told == [None, first.seconds, None]


@pytest.mark.ranks
def test_a_builds_jobs_are_recorded_and_add_up(tmp_path, monkeypatch, capsys):
    record = tmp_path / "jobs" / "now.jsonl"
    monkeypatch.setenv("HANDSON_JOBS", str(record))
    monkeypatch.setenv("HANDSON_LESSON", "topic/plot_ring")
    jobs.note("begin", devices=["cpu"])
    launch(str(SCRIPTS / "ring.py"), "ok", ranks=2, preset="laptop", quiet=True)
    launch(str(SCRIPTS / "ring.py"), "refuse", ranks=2, preset="laptop", expect_failure=True)
    jobs.note("end")
    build = jobs.read(record)
    assert [(job["lesson"], job["argv"], job["devices"], job["failed"]) for job in build.jobs] == [
        ("topic/plot_ring", ["ok"], ["cpu"], False),
        ("topic/plot_ring", ["refuse"], ["cpu"], True),
    ]
    assert build.devices == ("cpu",) and 0 < build.device_seconds <= build.seconds
    assert build.idle("cpu") == pytest.approx(1 - build.device_seconds / build.seconds)
    drawn = build_report.timeline(build)
    assert f"all cores {style.number(100 * build.idle('cpu'))} % idle" in drawn.alt
    bars = {(bar.get_x(), bar.get_width()) for bar in drawn.axes[0].patches}
    assert bars >= {(job["began"] - build.began, job["ended"] - job["began"]) for job in build.jobs}
    ((lesson, _, count, *_, failed),) = build_report.by_lesson(build).rows
    assert (str(lesson), count, failed) == ("1  topic/plot_ring", 2, 1)
    monkeypatch.chdir(SCRIPTS)  # as the folder of all scripts is for a lesson's
    assert jobs.outdated(build) == []


def test_idle_shares_and_device_time_of_jobs_side_by_side(tmp_path):
    record = tmp_path / "b.jsonl"
    spans = ((["0"], 101, 105), (["0", "1"], 106, 108))
    job = {"kind": "job", "at": 0, "lesson": None, "script": "s", "argv": [], "ranks": 1, "preset": "gpu"}
    job |= {"asked": 100, "failed": False}
    rows = [
        {"kind": "begin", "at": 100.0, "devices": ["0", "1"]},
        *({**job, "devices": devices, "began": began, "ended": ended} for devices, began, ended in spans),
        {"kind": "end", "at": 110.0},
    ]
    record.write_text("".join(json.dumps(row) + "\n" for row in rows))
    build = jobs.read(record)
    assert (build.seconds, build.device_seconds) == (10.0, 8.0)
    assert (build.idle("0"), build.idle("1")) == pytest.approx((0.4, 0.8))


@pytest.mark.parametrize("text, says", [('{"kind": "job", "a', "line 1 is damaged"), ("", "holds no job")])
def test_a_damaged_or_empty_record_is_named(tmp_path, text, says):
    (tmp_path / "b.jsonl").write_text(text)
    with pytest.raises(ValueError, match=f"b.jsonl,? {says}"):
        jobs.read(tmp_path / "b.jsonl")


def test_without_a_build_nothing_is_recorded(tmp_path, monkeypatch):
    monkeypatch.delenv("HANDSON_JOBS", raising=False)
    monkeypatch.chdir(tmp_path)
    jobs.note("begin", devices=[])
    assert not list(tmp_path.glob("*.jsonl"))
