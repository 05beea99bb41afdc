"""The kit as a wheel, built beside the site, so that a downloaded lesson runs after one `pip install`."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SOURCES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
WHY = (
    "The wheel holds the training scripts. The second line adds Colossal-AI, which cannot come with it: colossalai "
    "0.5.0 asks pip for torch<=2.5.1, and the lessons run on the PyTorch of today."
)


def folder(confdir: str | Path) -> Path:
    """Where the wheel lies."""
    return Path(confdir) / "build" / "wheel"


def wheel(confdir: str | Path) -> Path | None:
    """The wheel, or none on a host that has nothing to build it with."""
    return next(folder(confdir).glob("*.whl"), None)


def where(base: str = "") -> str:
    """Where a reader types the commands; without the site's address the wheel has to lie there too."""
    beside = "" if base else " and the wheel"
    return (
        f"In a folder with this lesson's script or notebook{beside}, in a virtual environment of Python 3.11 or 3.12:"
    )


def commands(wheel_name: str, base: str = "", lesson: str = "") -> str:
    """What a reader types: install the wheel, from the site where its address is known, and run a lesson's script."""
    source = f"{base.rstrip('/')}/{wheel_name}" if base else f"./{wheel_name}"
    run = [f"python {lesson}.py"] if lesson else []
    return "\n".join([f"pip install {source}", "python -m handson install", *run])


def make(root: Path, target: Path) -> Path:
    """Build the wheel into a folder of its own, or leave it where nothing that goes into it has changed.

    Raises:
        ExtensionError: with hatchling's own words.
    """
    digest = hashlib.sha256()
    for path in [root / name for name in SOURCES] + sorted((root / "tutorial_src").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    stamp = target / "stamp"
    there = next(target.glob("*.whl"), None)
    if there and stamp.is_file() and stamp.read_text() == digest.hexdigest():
        return there
    for old in target.glob("*"):
        old.unlink()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ExtensionError(f"the kit's wheel could not be built: {done.stderr.strip()}")
    stamp.write_text(digest.hexdigest())
    return next(target.glob("*.whl"))


def build(app: Sphinx) -> None:
    """Build the wheel on a host that has something to build it with."""
    if importlib.util.find_spec("hatchling") is not None:
        make(Path(app.confdir), folder(app.confdir))


def setup(app: Sphinx) -> dict[str, bool]:
    """Build before any page is read: pages link to the wheel."""
    app.connect("builder-inited", build, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
