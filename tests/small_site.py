"""A small checkout of its own, built by the repository's own docs/build.py and extensions with real ranks.

torch is kept out of sight, as on a host that lacks it: these jobs need none, and start at once.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from conftest import gone

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
extensions = ["sphinx_gallery.gen_gallery", "build_guards", "lessons_at_once", "outdated_lessons"]
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
        way = environment.pop("RUNS", "auto")
        return subprocess.Popen(
            [sys.executable, "docs/build.py", f"--runs={way}"], cwd=self.root, env=environment,
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

    def interrupted(self) -> tuple[int, str, float]:
        """Build, and press Ctrl-C when two ranks run; the exit code, what was said, and the seconds from then on."""
        process = self.start(PAUSE="60")
        self.wait_for_ranks(2)
        began = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        said, _ = process.communicate(timeout=60)
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

    def ranks(self) -> list[int]:
        """The ranks of its jobs: they are forked from the forkserver, in a group of their own."""
        found = []
        for pid in self.alive():
            with contextlib.suppress(OSError):
                line = Path(f"/proc/{pid}/cmdline").read_bytes()
                if b"handson.forkserver" in line and os.getpgid(pid) != os.getsid(pid):
                    found.append(pid)
        return found

    def wait_for_ranks(self, count: int) -> None:
        """Return as soon as so many ranks run, at the latest after a minute."""
        limit = time.monotonic() + 60
        while len(self.ranks()) != count and time.monotonic() < limit:
            time.sleep(0.1)
        assert len(self.ranks()) == count

    def pretend_gpus(self, count: int) -> None:
        """From here on the host seems to have so many GPUs: nvidia-smi is stood in for; the jobs use none."""
        smi = self.root.parent / "bin" / "nvidia-smi"
        smi.parent.mkdir()
        names = "H\\n" * count
        smi.write_text(f'#!/bin/sh\ncase "$1" in --query-gpu=name) printf "{names}";; esac\n')
        smi.chmod(0o755)
        self.environment["PATH"] = f"{smi.parent}:{self.environment['PATH']}"
        self.environment.pop("CUDA_VISIBLE_DEVICES", None)  # empty where all of these tests are to see no GPU

    def add(self, lesson: str, text: str) -> None:
        """Put a lesson, named `topic/plot_x`, into the gallery."""
        path = self.root / "gallery" / f"{lesson}.py"
        path.parent.mkdir(exist_ok=True)
        title = path.parent.name.capitalize()
        (path.parent / "GALLERY_HEADER.rst").write_text(f"{title}\n{'=' * len(title)}\n")
        path.write_text(text)

    def page(self) -> str:
        return (self.root / "build" / "html" / "lessons" / "topic" / "plot_small.html").read_text()

    def is_right(self, **variables: str) -> bool:
        """Whether a build now ends well and its page shows the whole run."""
        code, said, _ = self.build(**variables)
        assert code == 0, said
        return "begun\nthe answer is 42" in self.page() and not list(self.root.rglob("*.part"))


def make(tmp_path: Path) -> Site:
    """A checkout with one lesson that starts two ranks."""
    root = tmp_path / "checkout"
    (root / "gallery" / "topic").mkdir(parents=True)
    (root / "tutorial_src" / "hybrid_parallel").mkdir(parents=True)
    (root / "docs" / "_ext").mkdir(parents=True)
    shutil.copytree(ROOT / "tutorial_src" / "handson", root / "tutorial_src" / "handson")
    shutil.copy(ROOT / "docs" / "build.py", root / "docs")
    for name in ("build_guards", "lessons_at_once", "outdated_lessons"):
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
