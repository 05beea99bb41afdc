"""`handson install`: the upstream packages and their needs, without their outdated pins.

colossalai 0.5.0 and titans 0.0.7 demand torch<=2.5.1 in their metadata, so pip would refuse or downgrade; the
list of pins in requirements.txt is complete, and pip is told to look at nothing else.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys

from handson import sources


def install() -> int:
    """Install the pins into this environment; return pip's exit code."""
    if importlib.util.find_spec("torch") is None:
        print('error: install PyTorch first: pip install "torch>=2.11,<2.14"', file=sys.stderr)
        return 1
    listed = (sources.CHECKOUT or sources.KIT) / "requirements.txt"
    return subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "-r", str(listed)]).returncode
