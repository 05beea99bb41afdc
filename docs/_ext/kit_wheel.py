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


def folder(confdir: str | Path) -> Path:
    """Where the wheel lies."""
    return Path(confdir) / "build" / "wheel"


def wheel(confdir: str | Path) -> Path | None:
    """The wheel, or none on a host that has nothing to build it with."""
    return next(folder(confdir).glob("*.whl"), None)


def build(app: Sphinx) -> None:
    """Build the wheel again when something that goes into it has changed."""
    root = Path(app.confdir)
    if importlib.util.find_spec("hatchling") is None:
        return
    digest = hashlib.sha256()
    for path in [root / name for name in SOURCES] + sorted((root / "tutorial_src").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    stamp = folder(root) / "stamp"
    if stamp.is_file() and stamp.read_text() == digest.hexdigest() and wheel(root):
        return
    for old in folder(root).glob("*"):
        old.unlink()
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder(root))]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    if done.returncode:
        raise ExtensionError(f"the kit's wheel could not be built: {done.stderr.strip()}")
    stamp.write_text(digest.hexdigest())


def setup(app: Sphinx) -> dict[str, bool]:
    """Build before any page is read: pages link to the wheel."""
    app.connect("builder-inited", build, priority=100)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
