"""The server in a process of its own, started by the command that a user would type."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SCRIPT = Path(__file__).with_name("opt_fastapi.py")
READY = re.compile(r"ready: (http://\S+)")
STOP_SECONDS = 60.0
# What a launcher tells its ranks about their job is nothing that the server's own ranks may read.
OF_A_JOB = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OF_A_JOB += ("HANDSON_ROWS_FD", "HANDSON_ROWS")


class NotServed(RuntimeError):
    """The server ended, or was not ready in time; the text holds its last lines."""


@dataclass
class Served:
    """A server that answers at `url`. `command` is the one line that started it, `log` what it has said."""

    url: str
    command: str
    process: subprocess.Popen
    log: list[str] = field(default_factory=list)

    def stop(self) -> int:
        """Ask it to end (SIGTERM) and give its exit code; a server that does not end is killed.

        Raises:
            NotServed: when it had to be killed.
        """
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise NotServed(f"{self.command} did not end within {STOP_SECONDS:g} s of SIGTERM") from None
        return self.process.returncode


def arguments(model: str, checkpoint: str | Path, **options: object) -> list[str]:
    """The command line of `opt_fastapi.py`: `options` by their names, for example tp=2, max_batch_size=1."""
    words = [model]
    for name, value in {"checkpoint": checkpoint, "http_port": 0, **options}.items():
        words += [f"--{name}", str(value)]
    return words


def begin(words: Sequence[str]) -> subprocess.Popen:
    """Start `python opt_fastapi.py ...`; it is not ready yet."""
    kit = str(SCRIPT.parent.parent.parent)
    environment = {name: value for name, value in os.environ.items() if name not in OF_A_JOB}
    # Behind what is there already: a folder that a host put first on the path stays first.
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [environment.get("PYTHONPATH"), kit]))
    environment["PYTHONUNBUFFERED"] = "1"
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *words],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ready(process: subprocess.Popen, words: Sequence[str], *, timeout: float = 300.0) -> Served:
    """Wait until a server that was begun says where it answers.

    Raises:
        NotServed: with its last lines, when it ends or is not ready within so many seconds; it is killed then.
    """
    there, log, found = threading.Event(), [], []

    def follow() -> None:
        for line in process.stdout:
            log.append(line.rstrip("\n"))
            if not found and (said := READY.search(line)):
                found.append(said.group(1))
                there.set()
        there.set()

    threading.Thread(target=follow, daemon=True).start()
    in_time = there.wait(timeout)
    if not found:
        process.kill()
        why = f"ended with exit code {process.wait()}" if in_time else f"was not ready within {timeout:g} s"
        raise NotServed(f"opt_fastapi.py {shlex.join(words)} {why}:\n" + "\n".join(log[-20:]))
    return Served(found[0].rstrip("/"), f"python opt_fastapi.py {shlex.join(words)}", process, log)


@contextlib.contextmanager
def serve(model: str, checkpoint: str | Path, **options: object) -> Iterator[Served]:
    """Start a server, wait until it is ready, and end it afterwards.

    Raises:
        NotServed: when it does not start, or does not end.
    """
    words = arguments(model, checkpoint, **options)
    served = ready(begin(words), words)
    try:
        yield served
    finally:
        served.stop()
