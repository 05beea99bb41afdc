"""Run a training in a process of its own beside each rank, watch it, and end it by SIGKILL when it is told to.

Each rank of the job forks a child; the children form a job among themselves, on a port of their own. The ranks agree
through files in one folder, so that none of them has a thread or a connection that a fork would break.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from handson import worker

POLL_SECONDS = 0.01
PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def shared_folder() -> Iterator[Path]:
    """A new folder that all ranks of this job know; removed when all of them are through."""
    place = worker.place()
    path = Path(tempfile.gettempdir()) / f"handson-{os.getppid() if place.world_size > 1 else os.getpid()}-{place.port}"
    if place.rank == 0:
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir()
        (path / "ready").touch()
    _until((path / "ready").exists)
    try:
        yield path
        (path / f"through-{place.rank}").touch()
        if place.rank == 0:
            _until(lambda: len(list(path.glob("through-*"))) == place.world_size)
    finally:
        if place.rank == 0:
            shutil.rmtree(path, ignore_errors=True)


def phase(folder: Path, name: str, train: Callable[[], None], kill_at: int | None = None) -> list[dict[str, Any]]:
    """Call `train` in a child of each rank, and return the rows that rank 0's child recorded.

    Args:
        folder: from `shared_folder`.
        name: tells this phase from the others.
        train: joins a job among the children, works, and leaves it.
        kill_at: kill every child by SIGKILL as soon as rank 0's has recorded the loss of this step.

    Raises:
        RuntimeError: with the child's last lines, when it failed, or ended before it could be killed.
    """
    place = worker.place()
    rows, said, kill = (
        folder / f"{name}-{place.rank}.rows",
        folder / f"{name}-{place.rank}.log",
        folder / f"{name}.kill",
    )
    with _port(folder, name, place.rank) as port:
        child = os.fork()
        if child == 0:
            _work(train, port, rows, said)
        ended, status = 0, 0
        while not ended:
            time.sleep(POLL_SECONDS)
            if kill_at and place.rank == 0 and any(row.get("step") == kill_at for row in _read(rows, "loss")):
                kill.touch()
            if kill_at and kill.exists():
                os.kill(child, signal.SIGKILL)
            ended, status = os.waitpid(child, os.WNOHANG)
        (folder / f"{name}-{place.rank}.ended").touch()
        _until(lambda: len(list(folder.glob(f"{name}-*.ended"))) == place.world_size)
    code = os.waitstatus_to_exitcode(status)
    if code != (-signal.SIGKILL if kill_at else 0):
        last = "\n".join(said.read_text(errors="replace").splitlines()[-15:])
        raise RuntimeError(f"the {name} training ended with exit code {code} on rank {place.rank}; it said:\n{last}")
    return _read(folder / f"{name}-0.rows")


def _work(train: Callable[[], None], port: int, rows: Path, said: Path) -> NoReturn:
    code = 1
    try:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # no child outlives its rank
        os.environ.update(MASTER_PORT=str(port), HANDSON_ROWS=str(rows))
        for name in ("HANDSON_ROWS_FD", "TORCHELASTIC_USE_AGENT_STORE"):
            os.environ.pop(name, None)
        out = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        import torch

        # The fork left the threads behind; renew them before two threads of the backward pass try to at once.
        torch.set_num_threads(torch.get_num_threads())
        train()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def _port(folder: Path, name: str, rank: int) -> Iterator[int]:
    """A port for the children, which rank 0 finds and holds."""
    told = folder / f"{name}.port"
    with contextlib.ExitStack() as held:
        if rank == 0:
            holder = held.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind(("", 0))
            partial = folder / f".{name}.port"
            partial.write_text(str(holder.getsockname()[1]))
            partial.rename(told)
        _until(told.exists)
        yield int(told.read_text())


def _until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    limit = time.monotonic() + seconds
    while not true():
        if time.monotonic() > limit:
            raise TimeoutError(f"the other ranks did not follow within {seconds:g} s")
        time.sleep(POLL_SECONDS)


def _read(rows: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The whole rows of a file; a last line that was cut off is none."""
    lines = rows.read_text().splitlines(keepends=True) if rows.is_file() else []
    found = [json.loads(line) for line in lines if line.endswith("\n")]
    return [row for row in found if kind in (None, row["kind"])]
