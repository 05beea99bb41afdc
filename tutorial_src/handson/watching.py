"""A job while it runs: take in what its ranks write, bound its time, name the rank that failed, end the rest.

A job ends when all ranks have ended, or `GRACE_SECONDS` after the first one failed (its peers get that long to say
what they saw), or at the time limit, or with Ctrl-C; in each case what is left is killed, and what was written is read
to its end. How ranks are started and reached is left to a subclass: on this host handson.ranks, on others
handson.hosts_job.
"""

from __future__ import annotations

import collections
import json
import os
import re
import selectors
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

GRACE_SECONDS = 2.0
KEPT_LINES = 60
ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


class RunFailed(RuntimeError):
    """A job that failed; the text is the first failing rank's traceback, or why the job was ended."""


@dataclass
class Outcome:
    """What came out of a job: rows of every rank, rank 0's log, and the failure if there was one."""

    log: list[str] = field(default_factory=list)
    data: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    error: str | None = None


def status(text: str, *, end: str = "\n") -> None:
    """Say on the terminal, never on a page, what is going on (Sphinx-Gallery captures sys.stderr, not this)."""
    if sys.__stderr__ is not None and not os.environ.get("HANDSON_QUIET"):
        sys.__stderr__.write(f"\rhandson: {text}\x1b[K{end}" if sys.__stderr__.isatty() else f"handson: {text}\n")
        sys.__stderr__.flush()


class Job:
    """What is known of a job while it runs. How its ranks are reached is left to `pump`, `signal` and `reading`."""

    def __init__(self, title: str, ranks: int, on_line: Callable[[str], None]) -> None:
        self.title, self.ranks, self.on_line = title, ranks, on_line
        self.outcome = Outcome()
        self.selector = selectors.DefaultSelector()
        self.partial: dict[tuple[int, str], bytes] = collections.defaultdict(bytes)
        self.tail = [collections.deque[str](maxlen=KEPT_LINES) for _ in range(ranks)]
        self.exits: dict[int, tuple[float, int]] = {}
        self.failures: list[dict[str, Any]] = []
        self.refusal: str | None = None
        self.began = time.monotonic()
        self.shown = 0.0
        self.done = ""

    def pump(self) -> None:
        """Wait a moment for news of the ranks, and take it in."""
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Send a signal to every rank that is left."""
        raise NotImplementedError

    def reading(self) -> bool:
        """Whether a rank has yet to end, or something it wrote has yet to come."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what the ranks would still write to."""
        for entry in list(self.selector.get_map().values()):
            if entry.data is not None:
                os.close(entry.fd)
        self.selector.close()

    def read(self, fd: int, rank: int, channel: str) -> None:
        chunk = os.read(fd, 1 << 16)
        if not chunk:
            self.selector.unregister(fd)
            os.close(fd)
        whole, newline, rest = (self.partial[rank, channel] + chunk).rpartition(b"\n")
        self.partial[rank, channel] = rest
        lines = (whole + newline).decode(errors="replace").splitlines()
        if not chunk and rest:
            lines.append(rest.decode(errors="replace"))
        for line in lines:
            self.take(line, rank, channel)

    def take(self, line: str, rank: int, channel: str) -> None:
        if channel == "rows":
            row = json.loads(line)
            kind = row["kind"]
            if kind == "_progress":
                self.done = f"{row['done']} of {row['total']}, "
            elif kind == "_failed":
                self.failures.append(row)
            elif kind == "_refused":
                self.refusal = self.refusal or row["message"]
            else:
                self.outcome.data.append(row)
            return
        # A progress bar redraws its line with carriage returns: its last state is what a terminal would show.
        clean = ANSI.sub("", line).rstrip("\r").rsplit("\r", 1)[-1].rstrip()
        self.tail[rank].append(clean)
        if channel == "out" and rank == 0:
            self.outcome.log.append(clean)
            self.on_line(clean)

    def tick(self) -> None:
        now = time.monotonic()
        terminal = sys.__stderr__ is not None and sys.__stderr__.isatty()
        if terminal and now - self.shown > 0.5:
            self.shown = now
            status(f"{self.title}: {self.done}{now - self.began:.0f} s", end="")

    def failed(self) -> bool:
        return bool(self.failures or self.refusal or any(code for _, code in self.exits.values()))

    def verdict(self, killed: set[int]) -> str | None:
        """The text of the failure: a refusal, a rank's death by a signal, or the earliest traceback."""
        if self.refusal:
            return self.refusal
        first = min(self.failures, key=lambda row: row["at"], default=None)
        told = {row["rank"] for row in self.failures}
        for rank, (at, code) in sorted(self.exits.items(), key=lambda item: item[1]):
            # A rank that dies without a word takes its peers' connections along, and they may complain before
            # its death is noticed here: it comes first unless a complaint is clearly older.
            if code and rank not in killed | told and (first is None or at < first["at"] + 1.0):
                end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                return f"rank {rank} of {self.ranks} {end}; its last lines:\n{self.last(rank)}"
        if first:
            return f"rank {first['rank']} of {self.ranks} failed:\n{first['traceback']}"
        return None

    def last(self, rank: int) -> str:
        return "\n".join(f"  {line}" for line in list(self.tail[rank])[-15:]) or "  (none)"


def finish(job: Job, timeout: float, killed: set[int]) -> Outcome:
    """Watch a started job to its end; what came of it. `killed` takes the ranks that were ended from here."""
    try:
        job.outcome.error = _watch(job, timeout, killed)
    finally:
        job.outcome.seconds = time.monotonic() - job.began
    job.outcome.data.sort(key=lambda row: row["rank"])
    state = "failed" if job.outcome.error else "done"
    status(f"{job.title}: {state} in {job.outcome.seconds:.1f} s")
    return job.outcome


def _watch(job: Job, timeout: float, killed: set[int]) -> str | None:
    limit, first_failure = job.began + timeout, None
    while len(job.exits) < job.ranks:
        job.pump()
        now = time.monotonic()
        if first_failure is None and job.failed():
            first_failure = now
        if first_failure is not None and now > first_failure + GRACE_SECONDS:
            break
        if now > limit and first_failure is None:
            where = _where_they_are(job)
            end(job, killed)
            return f"the job passed its time limit of {timeout:g} s and was ended. {where}"
    end(job, killed)
    return job.verdict(killed)


def end(job: Job, killed: set[int]) -> None:
    """Kill what is left of the job, then read every pipe to its end."""
    alive = set(range(job.ranks)) - set(job.exits)
    if alive:
        killed |= alive
        job.signal(signal.SIGKILL)
    limit = time.monotonic() + 5
    while job.reading():
        job.pump()
        if time.monotonic() > limit:
            break
    job.close()


def _where_they_are(job: Job) -> str:
    """Ask each rank for its stack; name the rank that is not waiting for the others."""
    before = [len(tail) for tail in job.tail]
    for tail in job.tail:
        tail.append("")
    job.signal(signal.SIGUSR1)
    limit = time.monotonic() + 1.0
    while time.monotonic() < limit:
        job.pump()
    stacks = {}
    for rank in sorted(set(range(job.ranks)) - set(job.exits)):
        lines = list(job.tail[rank])
        start = max((i for i, line in enumerate(lines) if "most recent call first" in line), default=None)
        stacks[rank] = lines[start + 1 :] if start is not None else lines[before[rank] :]
    waiting = {rank for rank, stack in stacks.items() if any("distributed_c10d.py" in line for line in stack[:6])}
    suspects = [rank for rank in stacks if rank not in waiting] or sorted(stacks)
    if not suspects:
        return "No rank was left to ask where it stood."
    ours = ("runpy", "forkserver.py", "host_rank.py")
    kept = [line for line in stacks[suspects[0]] if not any(name in line for name in ours)]
    others = f" (ranks waiting for it in a collective: {sorted(waiting)})" if waiting and len(suspects) == 1 else ""
    return f"Rank {suspects[0]} of {job.ranks} was at{others}, innermost call first:\n" + "\n".join(kept)
