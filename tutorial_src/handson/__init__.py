"""The kit of the tutorial: start ranks, collect what they measured, show it.

Lessons import `launch` and `show`; training scripts import `worker`, `measure` and `repairs`.
Names are resolved on first use, so that a rank never pays for what only a lesson needs.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOME = {"launch": "launcher", "RunFailed": "launcher", "Run": "run", "show": "show"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'handson' has no attribute {name!r}")
    module = import_module(f"handson.{_HOME[name]}")
    value = module if name == _HOME[name] == "show" else getattr(module, name)
    globals()[name] = value
    return value
