"""What torchrun starts for each rank of a job over several hosts: the script, and a parent that watches it.

    python -P host_rank.py SCRIPT ...

What the script writes, and how it ends, goes to this host's agent (`host_agent.py`) over a socket that the environment
variable HANDSON_HOST_SOCKET names.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path

if __name__ == "__main__":  # this Python may know the kit by its folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from handson.processes import die_with_the_parent, stay_below

SOCKET = "HANDSON_HOST_SOCKET"


def _connect(rank: int, channel: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(os.environ[SOCKET])
    if channel != "rows":
        _tell(connection, rank=rank, channel=channel)
    return connection


def _tell(connection: socket.socket, **message: object) -> None:
    connection.sendall((json.dumps(message) + "\n").encode())


def run_rank(script: str, argv: list[str]) -> int:
    """Under torchrun: run the script in a child whose output goes to this host's agent, and report how it ended."""
    rank, parent = int(os.environ["RANK"]), os.getpid()
    die_with_the_parent()
    out, err, rows = (_connect(rank, channel) for channel in ("out", "err", "rows"))
    wait_here, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            stay_below(parent)
            os.read(wait_here, 1)
            os.dup2(out.fileno(), 1)
            os.dup2(err.fileno(), 2)
            from handson import forkserver

            order = {"script": script, "argv": argv, "cwd": str(Path(script).parent)}
            code = forkserver._run({**order, "env": {**os.environ, "HANDSON_ROWS_FD": str(rows.fileno())}})
        finally:
            os._exit(code)
    ended = []

    def end(number: int, _: object) -> None:
        ended.append(number)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, end)  # from torchrun: another rank of this host has failed
    out.close()
    err.close()
    _tell(rows, rank=rank, channel="rows", pid=child)
    os.write(go_on, b".")
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    _tell(rows, kind="_exit", code=code, ended=bool(ended))
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run_rank(sys.argv[1], sys.argv[2:]))
