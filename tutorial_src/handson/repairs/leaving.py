"""How a rank ends after its last line, where the interpreter ends it: under torchrun, colossalai run and plain python.

The kit's own ranks leave without it and meet neither fault. `apply` names this area for every script.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
import time
from collections.abc import Callable
from pathlib import Path

from handson.repairs import Repair

PLUGIN = "colossalai.booster.plugin.hybrid_parallel_plugin"
THREADS = Path("/proc/self/task")  # Linux alone
GLOO = "pt_gloo_runloop"
QUIET = 3  # looks in a row: a thread that waited for the interpreter at one of them had it before the next
PAUSE_S, LIMIT_S = 0.002, 10.0
BLIND_S = 0.05  # the wait where threads cannot be seen


def _gloo_works() -> bool:
    """Whether a thread of gloo is at work in this process, or about to be."""
    for thread in THREADS.iterdir():
        # A thread may end between the list and the look.
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            name, _, rest = (thread / "stat").read_text().partition("(")[2].rpartition(")")
            if name == GLOO and rest.split()[0] in "RD":
                return True
    return False


def _wait_for_gloo() -> None:
    """Return when gloo's threads have been idle for some looks, after 10 s at the latest."""
    if not THREADS.is_dir():
        time.sleep(BLIND_S)
        return
    quiet, until = 0, time.monotonic() + LIMIT_S
    while quiet < QUIET and time.monotonic() < until:
        time.sleep(PAUSE_S)  # and the interpreter is free for a thread that waits for it
        quiet = 0 if _gloo_works() else quiet + 1


def _keep_groups() -> None:
    """Let a plugin that outlives its modules end in silence: the process takes the groups along."""
    if PLUGIN in sys.modules:
        sys.modules[PLUGIN].HybridParallelPlugin.__del__ = lambda plugin: None


def _at_exit(leave: Callable[[], None]) -> Callable[[], None]:
    return lambda: atexit.register(leave)


REPAIRS = (
    Repair(
        name="glooexit",
        area="leaving",
        symptom="terminate called without an active exception: after its last line a rank ends with exit code -6 "
        "(SIGABRT), now and then, on a busy host",
        cause="torch/csrc/PyInterpreter.cpp, decref: a thread of gloo lets go of a tensor after its collective, and "
        "asks for the interpreter in the moment in which that ends; CPython before 3.14 answers with pthread_exit. "
        "The threads outlive destroy_process_group because Colossal-AI holds the groups "
        "(legacy/context/parallel_context.py:514)",
        upstream="https://github.com/pytorch/pytorch/issues/190489",
        where="CPU",
        needed=lambda: sys.version_info < (3, 14),
        patch=_at_exit(_wait_for_gloo),
    ),
    Repair(
        name="plugindel",
        area="leaving",
        symptom="Exception ignored in: <function HybridParallelPlugin.__del__>, TypeError: 'NoneType' object is not "
        "callable, from each rank after its last line",
        cause="booster/plugin/hybrid_parallel_plugin.py:1258: a plugin that a script holds to its end destroys its "
        "groups when the interpreter has already emptied torch.distributed",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_at_exit(_keep_groups),
    ),
)
