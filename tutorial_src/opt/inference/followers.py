"""Start the other ranks, tell them what to do, and notice within seconds when one has died or hangs.

What hangs is found by asking: each rank has to say from time to time, between two orders, that it is alive.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from options import Options

LOAD_SECONDS = 1800.0  # until a rank has to hold its part of the model


@dataclass
class Follower:
    """One other rank: its process, the way to it, and since when it owes a sign of life."""

    rank: int
    process: subprocess.Popen
    link: Connection
    lock: threading.Lock = field(default_factory=threading.Lock)
    ready: threading.Event = field(default_factory=threading.Event)
    asked: float | None = None

    def send(self, order: str, arguments: tuple) -> None:
        """Send an order; raises OSError when the rank is gone."""
        with self.lock:
            self.link.send((order, arguments))

    def name(self) -> str:
        """For messages."""
        return f"rank {self.rank} (process {self.process.pid})"


class Followers:
    """Ranks 1 to tp - 1.

    Args:
        on_death: called once, from a thread of its own, with a sentence that names the rank and what befell it.
    """

    def __init__(self, options: Options, kind: str, columns: int, on_death: Callable[[str], None]) -> None:
        self._patience = options.rank_timeout
        self._on_death = on_death
        self._ended = threading.Event()
        self.ranks: list[Follower] = []
        for rank in range(1, options.tp):
            self.ranks.append(_start(rank))
            self.ranks[-1].link.send((options, rank, kind, columns))
        if self.ranks:
            threading.Thread(target=self._watch, daemon=True).start()

    def tell(self, order: str, *arguments: Any) -> None:
        """Every follower will call its engine's method `order`, in the order of these calls."""
        for follower in self.ranks:
            follower.send(order, arguments)

    def wait_until_ready(self) -> None:
        """Every follower holds its part of the model.

        Raises:
            TimeoutError: naming the rank that has not got there.
        """
        limit = time.monotonic() + LOAD_SECONDS
        for follower in self.ranks:
            if not follower.ready.wait(max(0.0, limit - time.monotonic())):
                raise TimeoutError(f"{follower.name()} has not loaded its part within {LOAD_SECONDS:.0f} s")

    def end(self) -> None:
        """End every follower, at once: they hold nothing that would be lost."""
        self._ended.set()
        for follower in self.ranks:
            follower.process.kill()
        for follower in self.ranks:
            follower.process.wait()

    def _watch(self) -> None:
        by_link = {follower.link: follower for follower in self.ranks}
        pause = min(1.0, self._patience / 4)
        asked_last = time.monotonic()
        while not self._ended.is_set():
            for link in wait(list(by_link), timeout=pause):
                follower = by_link[link]
                try:
                    word, detail = link.recv()
                except (EOFError, OSError):
                    return self._died(follower, _how_it_ended(follower.process))
                if word == "failed":
                    return self._died(follower, detail)
                if word == "ready":
                    follower.ready.set()
                follower.asked = None
            now = time.monotonic()
            for follower in self.ranks:
                if follower.asked is not None and now - follower.asked > self._patience:
                    return self._died(follower, f"gave no sign of life for {self._patience:.0f} s")
            if now - asked_last >= pause:
                asked_last = now
                for follower in self.ranks:
                    if follower.ready.is_set() and follower.asked is None:
                        self._ask(follower, now, pause)

    def _ask(self, follower: Follower, now: float, pause: float) -> None:
        """Ask for a sign of life, unless rank 0 cannot even get rid of its order: then its own limit comes first."""
        if follower.lock.acquire(timeout=pause):
            try:
                follower.link.send(("alive?", ()))
                follower.asked = now
            except OSError:
                return  # the next look at the link tells how it ended
            finally:
                follower.lock.release()

    def _died(self, follower: Follower, what: str) -> None:
        if not self._ended.is_set():
            self._on_death(f"{follower.name()} {what}")


class Ranks:
    """All ranks as one engine: each order goes to the followers, then to rank 0's own."""

    def __init__(self, followers: Followers, engine: Any) -> None:
        self._followers, self._engine = followers, engine

    def read(self, prompts: list[list[int]]) -> Any:
        """See `Engine.read`."""
        self._followers.tell("read", prompts)
        return self._engine.read(prompts)

    def step(self, tokens: list[int]) -> Any:
        """See `Engine.step`."""
        self._followers.tell("step", tokens)
        return self._engine.step(tokens)

    def drop(self, rows: list[int]) -> None:
        """See `Engine.drop`."""
        self._followers.tell("drop", rows)
        self._engine.drop(rows)


def _start(rank: int) -> Follower:
    ours, theirs = socket.socketpair()
    command = [sys.executable, str(Path(__file__).with_name("follower.py")), str(theirs.fileno())]
    with theirs:
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, env=dict(os.environ))
    return Follower(rank, process, Connection(ours.detach()))


def _how_it_ended(process: subprocess.Popen) -> str:
    try:
        code = process.wait(2.0)
    except subprocess.TimeoutExpired:
        return "closed its connection"
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with exit code {code}"
