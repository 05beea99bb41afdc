"""The processes below this one: how they end with it, and the lines that they write. Standard library alone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36


def die_with_the_parent() -> None:
    """Have the kernel kill this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def stay_below(parent: int) -> None:
    """In a forked child: lead a process group of its own, and do not outlive the parent."""
    os.setpgid(0, 0)
    die_with_the_parent()
    if os.getppid() != parent:  # it ended before the kernel was told
        os._exit(1)


def inherit_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def below(pid: int) -> list[int]:
    """Every process that descends from this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
    found, waiting = [], [pid]
    while waiting:
        parent = waiting.pop()
        children = [child for child, its_parent in parents.items() if its_parent == parent]
        found += children
        waiting += children
    return found


def end_all_below() -> None:
    """Kill every descendant, also those whose parent has died: as a subreaper this process inherits them."""
    limit = time.monotonic() + 5
    while (left := below(os.getpid())) and time.monotonic() < limit:
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


class Lines:
    """Whole lines out of what a descriptor gives."""

    def __init__(self, fd: int) -> None:
        self.fd, self.rest, self.ended = fd, b"", False

    def read(self) -> list[str]:
        """The lines that have come; the last one may lack its newline when the writer has closed."""
        try:
            chunk = os.read(self.fd, 1 << 16)
        except ConnectionResetError:
            chunk = b""
        self.ended = not chunk
        *whole, self.rest = (self.rest + chunk).split(b"\n")
        if self.ended and self.rest:
            whole.append(self.rest)
        return [line.decode(errors="replace") for line in whole]
