"""A lesson run as plain Python has no page: its tables print themselves and its pictures become files."""

from __future__ import annotations

import sys
from pathlib import Path


def running() -> bool:
    """Whether this process is `python plot_<lesson>.py`: not a site build, a notebook or `handson record`."""
    name = getattr(sys.modules["__main__"], "__file__", None)
    return bool(name) and Path(name).name.startswith("plot_") and "-m" not in sys.orig_argv


def next_picture() -> Path:
    """Return where the next picture goes: `<lesson>_1.png`, `_2` ... in the current directory."""
    _count.append(len(_count) + 1)
    stem = Path(sys.modules["__main__"].__file__).stem.removeprefix("plot_")
    return Path(f"{stem}_{_count[-1]}.png")


_count: list[int] = []
