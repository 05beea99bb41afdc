"""`handson plan MODEL --mesh 2x4 ...`: what the auto-parallel solver would do on a mesh that you do not own.

The work is done by the tutorial's own script, auto_parallel/plan.py, in this process.
"""

from __future__ import annotations

import importlib.util
import runpy
import sys

from handson import sources

NEEDED = ("torch", "colossalai", "pulp")


def plan(arguments: list[str]) -> int:
    """Run the script with these arguments; return its exit code (2: something asked for cannot be)."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing and not {"-h", "--help"} & set(arguments):
        print(f"error: planning needs {', '.join(missing)}: `python -m handson install` adds it", file=sys.stderr)
        return 1
    script = sources.find_script("auto_parallel/plan.py")
    sys.path.insert(0, str(script.parent))
    try:
        return runpy.run_path(str(script), run_name="plan")["main"](arguments, prog="handson plan")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
