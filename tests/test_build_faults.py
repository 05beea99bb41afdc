"""Faults in the middle of a build: it ends soon, says what happened, leaves nothing behind, and the next one is right.

A small site of one lesson, built by the repository's own docs/build.py and extensions with real ranks. torch is kept
out of sight, as on a host that lacks it: these jobs need none, and start at once.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import gone
from handson import jobs

pytestmark = pytest.mark.ranks

ROOT = Path(__file__).parent.parent
LESSON = '''"""
A small lesson
==============
"""
from handson import launch

run = launch("hybrid_parallel/job.py", ranks=2)
run
'''
JOB = '''"""Two ranks that wait a little."""
import os, signal, time
from handson import worker

def loop_without_end():
    while True:
        time.sleep(0.1)

how, rank = os.environ.get("FAULT"), worker.place().rank
worker.record("pid", pid=os.getpid())
worker.log("begun")
if rank == 1 and how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if how == "hang" and rank == 0:
    loop_without_end()
time.sleep(float(os.environ.get("PAUSE", "0")))
worker.log("the answer is 42")
'''
CONF = """import sys
from pathlib import Path
ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT / "tutorial_src")]
project = "small"
extensions = ["sphinx_gallery.gen_gallery", "build_guards", "outdated_lessons"]
sphinx_gallery_conf = {
    "examples_dirs": ["../gallery"], "gallery_dirs": ["lessons"], "only_warn_on_example_error": True,
    "capture_repr": ("__repr__",), "image_scrapers": (), "reset_modules": (), "show_signature": False,
}
"""


@dataclass
class Site:
    """A checkout with one lesson."""

    root: Path
    environment: dict[str, str]

    def start(self, **variables: str) -> subprocess.Popen:
        environment = {**self.environment, "TEST_BUILD": str(self.root), **variables}
        return subprocess.Popen(
            [sys.executable, "docs/build.py", "--runs=auto"], cwd=self.root, env=environment,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            # A shell starts what it puts in the background with SIGINT ignored; these tests may be run like that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip

    def build(self, **variables: str) -> tuple[int, str, float]:
        """Build; the exit code, what was said, and the seconds it took."""
        began = time.monotonic()
        process = self.start(**variables)
        said, _ = process.communicate(timeout=120)
        assert not self.processes(), "the build left processes behind"
        return process.returncode, said, time.monotonic() - began

    def processes(self) -> list[int]:
        """What is left of the builds of this checkout: all that has its name in its environment."""
        return [pid for pid in self.alive() if not gone(pid)]

    def alive(self) -> list[int]:
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"TEST_BUILD={self.root}".encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
        return found

    def page(self) -> str:
        return (self.root / "build" / "html" / "lessons" / "topic" / "plot_small.html").read_text()

    def is_right(self, **variables: str) -> bool:
        """Whether a build now ends well and its page shows the whole run."""
        code, said, _ = self.build(**variables)
        assert code == 0, said
        return "begun\nthe answer is 42" in self.page() and not list(self.root.rglob("*.part"))


@pytest.fixture
def site(tmp_path, monkeypatch):
    root = tmp_path / "checkout"
    (root / "gallery" / "topic").mkdir(parents=True)
    (root / "tutorial_src" / "hybrid_parallel").mkdir(parents=True)
    (root / "docs" / "_ext").mkdir(parents=True)
    shutil.copytree(ROOT / "tutorial_src" / "handson", root / "tutorial_src" / "handson")
    shutil.copy(ROOT / "docs" / "build.py", root / "docs")
    for name in ("build_guards", "outdated_lessons"):
        shutil.copy(ROOT / "docs" / "_ext" / f"{name}.py", root / "docs" / "_ext")
    (root / "conf.py").write_text(CONF)
    (root / "docs" / "index.rst").write_text("Small\n=====\n\n.. toctree::\n\n   lessons/index\n")
    for folder, title in ((root / "gallery", "Lessons"), (root / "gallery" / "topic", "Topic")):
        (folder / "GALLERY_HEADER.rst").write_text(f"{title}\n{'=' * len(title)}\n")
    (root / "gallery" / "topic" / "plot_small.py").write_text(LESSON)
    (root / "tutorial_src" / "hybrid_parallel" / "job.py").write_text(JOB)
    hidden = tmp_path / "hidden"
    for name in ("torch", "transformers", "colossalai"):
        (hidden / name).mkdir(parents=True)
        (hidden / name / "__init__.py").write_text("raise ImportError('kept out of sight')\n")
        (hidden / name / "version.py").write_text("cuda = '13.0'\n")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HANDSON_")}
    environment |= {"PYTHONPATH": f"{hidden}:{root / 'tutorial_src'}", "HANDSON_LEASES": str(tmp_path / "leases")}
    environment["TMPDIR"] = str(tmp_path)  # where Sphinx leaves a report when it fails
    return Site(root, environment)


@pytest.mark.parametrize(
    "fault, says",
    [("kill", "rank 1 of 2 was killed by SIGKILL"), ("hang", "the job passed its time limit of 3 s and was ended")],
)
def test_a_rank_that_fails_fails_the_build_and_the_next_one_is_right(site, fault, says):
    code, said, seconds = site.build(FAULT=fault, HANDSON_TIMEOUT="3", PAUSE="60" if fault == "hang" else "0")
    assert code == 1 and seconds < 40
    assert says in said and ("in loop_without_end" in said) == (fault == "hang")
    assert "to run it alone: python gallery/topic/plot_small.py" in said
    assert said.rstrip().endswith("the lines above say where.")
    assert site.is_right()


def test_a_port_that_is_taken_fails_the_build_and_the_next_one_is_right(site):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        lesson = site.root / "gallery" / "topic" / "plot_small.py"
        lesson.write_text(LESSON.replace("ranks=2", f"ranks=2, port={taken.getsockname()[1]}"))
        code, said, _ = site.build()
    assert code == 1
    assert "cannot be used (Address already in use): name another, or name none and a free one is taken" in said
    assert site.is_right()


def test_ctrl_c_ends_the_build_and_the_next_one_is_right(site):
    process = site.start(PAUSE="60")
    limit = time.monotonic() + 60
    while not (ranks := ranks_of(site)) and time.monotonic() < limit:
        time.sleep(0.1)
    assert len(ranks) == 2
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 130 and time.monotonic() - began < 15
    assert "The build was interrupted after" in said and not site.processes()
    assert site.is_right()


def ranks_of(site: Site) -> list[int]:
    """The ranks of the build: they are forked from the forkserver, in a group of their own."""
    found = []
    for pid in site.alive():
        with contextlib.suppress(OSError):
            if b"handson.forkserver" in Path(f"/proc/{pid}/cmdline").read_bytes() and os.getpgid(pid) != os.getsid(pid):
                found.append(pid)
    return found if len(found) == 2 else []


def test_two_builds_at_once_are_both_right_and_run_the_job_once(site):
    first = site.start(PAUSE="3")
    limit = time.monotonic() + 60
    while not ranks_of(site) and time.monotonic() < limit:
        time.sleep(0.1)
    second = site.start(PAUSE="3")
    said = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), said
    assert "another build of this checkout is running: waiting for it to end" in said[1]
    assert "successfully executed 1 out of 1 file" in said[0]
    assert "successfully executed 0 out of 0 file" in said[1]
    assert not site.processes() and site.is_right()
    records = sorted((site.root / "build" / "handson" / "jobs").glob("*.jsonl"))
    (build,) = [jobs.read(path) for path in records if '"job"' in path.read_text()]
    (job,) = build.jobs
    assert (job["lesson"], job["devices"], job["failed"]) == ("topic/plot_small", ["cpu"], False)
    assert 3 < build.device_seconds < build.seconds and len(records) == 3
    assert jobs.latest(site.root / "build" / "handson") == records[-1]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_fails_the_build_and_the_next_one_is_right(site):
    disk = site.root / "build"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this host lets nobody mount a small disk")
    try:
        ballast = disk / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
            while file.write(b"0" * 4096):
                pass
        code, said, seconds = site.build()
        assert code and seconds < 60
        assert "the run ended well, but the build folder cannot hold it (No space left on device)" in said
        assert "ERROR: the disk that holds build/ is full (0 KiB are left): make room, and build again" in said
        ballast.unlink()
        assert site.is_right()
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_gpu_that_goes_out_of_view_changes_the_page_and_says_so(site, tmp_path):
    """nvidia-smi is stood in for; the jobs use no GPU."""
    smi = tmp_path / "bin" / "nvidia-smi"
    smi.parent.mkdir()
    smi.write_text('#!/bin/sh\ncase "$1" in --query-gpu=name) printf "H\\nH\\n";; esac\n')
    smi.chmod(0o755)
    site.environment["PATH"] = f"{smi.parent}:{site.environment['PATH']}"
    site.environment.pop("CUDA_VISIBLE_DEVICES", None)  # empty where all of these tests are to see no GPU
    assert site.is_right() and "Run live for this page on 2 × H · 2 ranks over NCCL" in site.page()
    assert site.is_right(CUDA_VISIBLE_DEVICES="1")
    assert "2 ranks over gloo" in site.page() and "H ·" not in site.page()
    assert "there is no recording of `hybrid_parallel/job.py on 2 ranks` at the gpu preset" in site.page()
    lesson = site.root / "gallery" / "topic" / "plot_small.py"
    lesson.write_text(LESSON.replace("ranks=2", 'ranks=2, preset="gpu"'))
    code, said, _ = site.build(CUDA_VISIBLE_DEVICES="1")
    assert code == 1
    assert "the gpu preset on 2 ranks needs 2 GPUs, this host has 1: use preset='laptop', or a host with" in said
    assert site.is_right()
