"""The server's life: listen, load, serve, drain or die; every way ends with an exit code and no process left behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any, NoReturn

import uvicorn
from batcher import Batcher
from checks import BACKLOG
from followers import Followers, Ranks
from options import Options

GRACE = 3.0  # seconds that a dead server still says 503, so that its clients read why


class _Http(uvicorn.Server):
    """uvicorn, but this module decides what a signal means."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def say(line: str) -> None:
    """One line on standard output, at once."""
    print(line, flush=True)


class Life:
    """One server from start to end."""

    def __init__(self, options: Options, kind: str, columns: int, listener: socket.socket) -> None:
        self.options, self.kind, self.columns, self.listener = options, kind, columns, listener
        self.info: dict[str, Any] = {"model": options.model, "tp": options.tp, "dtype": options.dtype, "device": kind}
        self.batcher = Batcher(
            rows=options.max_batch_size, queue=options.queue_size, read_tokens=8192 if kind == "cuda" else 1024
        )
        self.exit_code = 0
        self.followers: Followers | None = None
        self._lost = threading.Event()
        self._lock = threading.Lock()

    async def run(self) -> None:
        """Serve until told to end, or until a rank dies."""
        from api import build

        app = build(self.batcher, self.info, self.options.cache_size, self.options.log_requests)
        self._http = _Http(
            uvicorn.Config(
                app, lifespan="off", access_log=False, log_level="warning", timeout_graceful_shutdown=3, backlog=BACKLOG
            )
        )
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._asked_to_end, signal.Signals(number).name)
        self.followers = Followers(self.options, self.kind, self.columns, self._lose)
        threading.Thread(target=self._work, daemon=True).start()
        threading.Thread(target=self._watch, daemon=True).start()
        await self._http.serve(sockets=[self.listener])

    def _work(self) -> None:
        """Rank 0's thread: load, then answer."""
        try:
            self._load()
            self.batcher.run()
        except SystemExit as refusal:  # the sentence has been said
            self.exit_code = refusal.code if isinstance(refusal.code, int) else 2
            self.batcher.fail("the model cannot be loaded")
            self._stop()
        except BaseException as error:
            traceback.print_exc()
            if self.followers.ranks:
                self._lost.wait(2.0)  # rank 0 may only have noticed that another one has gone, which says so itself
            self._lose(f"rank 0: {type(error).__name__}: {error}".splitlines()[0][:300])

    def _load(self) -> None:
        import model_part
        from engine import Engine

        began = time.monotonic()
        model, self.info["tokenizer"] = model_part.load(self.options, 0, self.kind, say)
        self.info["columns"] = self.columns
        engine = Engine(model, ranks=self.options.tp, rows=self.options.max_batch_size, columns=self.columns)
        say(
            f"keys and values: {engine.slots.bytes / 2**20:,.0f} MiB a rank for {self.options.max_batch_size} requests "
            f"of up to {self.columns} tokens"
        )
        self.followers.wait_until_ready()
        ranks = Ranks(self.followers, engine)
        ranks.read([[0, 0]])  # the first time, libraries and the ranks' connections are set up
        ranks.step([0])
        ranks.drop([0])
        self.batcher.start(ranks, model.config.eos_token_id)
        host, port = self.listener.getsockname()[:2]
        say(f"ready: http://{f'[{host}]' if ':' in host else host}:{port} after {time.monotonic() - began:.1f} s")

    def _watch(self) -> None:
        """Rank 0's own limit; a little longer than the others', so that the rank is named that the others wait for."""
        patience = self.options.rank_timeout
        while not self._lost.wait(min(1.0, patience / 4)):
            since = self.batcher.busy_since
            if since is not None and time.monotonic() - since > patience * 1.25 + 1:
                self._lose(f"rank 0: a step has taken more than {patience:.0f} s")

    def _lose(self, reason: str) -> None:
        """The model is lost, says some thread: clients get 503 from now on, and the server ends after GRACE."""
        with self._lock:
            if self._lost.is_set():
                return
            self._lost.set()
        self.exit_code = 1
        self.batcher.fail(reason)
        print(f"error: {reason}; this server ends, start it again", file=sys.stderr, flush=True)
        self._loop.call_soon_threadsafe(self._loop.call_later, GRACE, self._stop)

    def _asked_to_end(self, name: str) -> None:
        if self.batcher.state != "ok":
            return self._stop()  # a second time, or nothing is there to be answered
        limit = self.options.drain_timeout
        say(f"{name}: no new requests; the {self.batcher.inside} inside are answered, for at most {limit:.0f} s")
        self.batcher.drain(f"the server ends ({name})")
        self._draining = self._loop.create_task(self._drain(time.monotonic() + limit))

    async def _drain(self, limit: float) -> None:
        while self.batcher.inside and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        if self.batcher.inside:
            self.batcher.fail("the server ends, and the time for answers under way is over")
        self._stop()

    def _stop(self) -> None:
        self._http.should_exit = True


def serve(options: Options, kind: str, columns: int, listener: socket.socket) -> NoReturn:
    """Serve, then end every follower and this process."""
    life = Life(options, kind, columns, listener)
    code = 1
    try:
        asyncio.run(life.run())
        code = life.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        if life.followers:
            life.followers.end()
        sys.stdout.flush()
        sys.stderr.flush()
        # The engine's thread may be inside a collective that nobody will ever join: an ordinary exit would wait for it.
        os._exit(code)
