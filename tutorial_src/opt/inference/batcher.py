"""Continuous batching: requests join and leave between two steps of the model.

A thread repeats: those that wait and fit join, their prompts read together; then one step gives every request its next
token; what is done leaves, and what nobody waits for any more. No request waits for a batch to fill or to finish.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from metrics import Metrics
from sampling import Draw, Sampling, choose


class QueueFull(Exception):
    """No further request may wait."""


class NotServing(Exception):
    """The server is loading, draining or dead; the text says why."""


@dataclass(eq=False)
class Request:
    """What is asked for, and what is there of the answer. `future` gets (tokens, finish_reason)."""

    prompt: list[int]
    max_tokens: int
    sampling: Sampling
    future: Future = field(default_factory=Future)
    tokens: list[int] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    draw: Draw = field(init=False)

    def __post_init__(self) -> None:
        self.draw = Draw(self.sampling)


class Batcher:
    """The requests inside the server, and the thread that answers them.

    Args:
        rows: requests in a step, at most.
        queue: requests that may wait beside those.
        read_tokens: how many prompt tokens are read at once, so that the other requests are not kept waiting.
    """

    def __init__(self, *, rows: int, queue: int, read_tokens: int) -> None:
        self.rows, self.queue, self.read_tokens = rows, queue, read_tokens
        self.metrics = Metrics(lambda: len(self._waiting), lambda: len(self._running))
        self.state, self.reason = "loading", "the model is being loaded"
        self.busy_since: float | None = None
        self._ranks: Any = None
        self._end_token: int | None = None
        self._waiting: deque[Request] = deque()
        self._joining: list[Request] = []
        self._running: list[Request] = []
        self._changed = threading.Condition()

    @property
    def inside(self) -> int:
        """Requests that wait or run."""
        return len(self._waiting) + len(self._joining) + len(self._running)

    def submit(self, request: Request) -> Future:
        """Queue a request; its future gets (tokens, finish_reason), or NotServing. Cancelling it frees its place.

        Raises:
            QueueFull: when as many requests run and wait as may.
            NotServing: when the server takes no requests.
        """
        with self._changed:
            if self.state != "ok":
                raise NotServing(self.reason)
            if self.inside >= self.rows + self.queue:
                raise QueueFull
            self._waiting.append(request)
            self._changed.notify()
        return request.future

    def start(self, ranks: Any, end_token: int | None) -> None:
        """The model is there: `ranks` reads, steps and drops; after `end_token` an answer is over."""
        with self._changed:
            if self.state == "loading":
                self._ranks, self._end_token, self.state, self.reason = ranks, end_token, "ok", ""

    def drain(self, reason: str) -> None:
        """Take no more requests; those inside are answered."""
        with self._changed:
            if self.state != "dead":
                self.state, self.reason = "draining", reason

    def fail(self, reason: str) -> None:
        """Give every request up, now: each gets NotServing. The thread may never come back from its step."""
        with self._changed:
            if self.state == "dead":
                return
            self.state, self.reason = "dead", reason
            lost = [*self._waiting, *self._joining, *self._running]
            self._changed.notify()
        for request in lost:
            with contextlib.suppress(InvalidStateError):
                request.future.set_exception(NotServing(reason))

    def run(self) -> None:
        """Answer requests until there is nobody left to answer; an error of the model comes out of here."""
        while self.state != "dead":
            self._admit()
            self.busy_since = time.monotonic()
            if self._joining:
                self._read()
            self._leave()
            if self._running:
                self.busy_since = time.monotonic()
                self._step()
                self._leave()
            self.busy_since = None

    def _admit(self) -> None:
        """Wait until there is something to do; who came first joins first."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._running or self.state == "dead")
            if any(request.future.cancelled() for request in self._waiting):
                self._waiting = deque(request for request in self._waiting if not request.future.cancelled())
            longest = 0
            while self._waiting and len(self._running) + len(self._joining) < self.rows:
                longest = max(longest, len(self._waiting[0].prompt))
                if self._joining and longest * (len(self._joining) + 1) > self.read_tokens:
                    break
                self._joining.append(self._waiting.popleft())

    def _read(self) -> None:
        new = self._joining
        self._append(new, self._ranks.read([request.prompt for request in new]))
        now = time.monotonic()
        self.metrics.prompt_tokens.inc(sum(len(request.prompt) for request in new))
        for request in new:
            self.metrics.first.observe(now - request.began)
        with self._changed:
            self._running, self._joining = self._running + new, []

    def _step(self) -> None:
        self._append(self._running, self._ranks.step([request.tokens[-1] for request in self._running]))
        self.metrics.batch.observe(len(self._running))
        self.metrics.step.observe(time.monotonic() - self.busy_since)

    def _append(self, requests: list[Request], logits: Any) -> None:
        for request, token in zip(requests, choose(logits, [r.draw for r in requests]), strict=True):
            request.tokens.append(token)
        self.metrics.tokens.inc(len(requests))

    def _leave(self) -> None:
        """Answer what is done, and free its row as the engines do: the last row takes its place."""
        freed = []
        row = 0
        while row < len(self._running):
            if self._goes_on(self._running[row]):
                row += 1
                continue
            freed.append(row)
            last = self._running.pop()
            if row < len(self._running):
                self._running[row] = last
        if freed:
            self._ranks.drop(freed)

    def _goes_on(self, request: Request) -> bool:
        if request.future.cancelled():
            return False
        ended = request.tokens[-1] == self._end_token
        if not ended and len(request.tokens) < request.max_tokens:
            return True
        with contextlib.suppress(InvalidStateError):  # its client has gone this very moment
            request.future.set_result((request.tokens, "stop" if ended else "length"))
        return False
