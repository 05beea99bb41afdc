"""`handson install`: the upstream packages and their needs, without their outdated pins.

colossalai 0.5.0 and titans 0.0.7 demand torch<=2.5.1 in their metadata, so pip would refuse or downgrade; the
list of pins in requirements.txt is complete, and pip is told to look at nothing else.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile

from handson import sources


def install() -> int:
    """Install the pins into this environment; return pip's exit code."""
    if importlib.util.find_spec("torch") is None:
        print('error: install PyTorch first: pip install "torch>=2.11,<2.14"', file=sys.stderr)
        return 1
    listed = ((sources.CHECKOUT or sources.KIT) / "requirements.txt").read_text(encoding="utf-8")
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(needed_by_lessons(listed))
        file.flush()
        pip = [sys.executable, "-m", "pip", "install", "--no-deps", "-r", file.name]
        return subprocess.run(pip).returncode


def needed_by_lessons(listed: str) -> str:
    """The pins without those of the site and of the tests, which come last in the file."""
    needed, found, _ = listed.partition("# --- the site")
    if not found:
        raise ValueError("requirements.txt has no section `# --- the site` any more: install would not know its end")
    return needed
