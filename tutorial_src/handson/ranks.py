"""Run N ranks of one script on this host: a process that has imported the heavy modules forks them.

One thread and one `select` over every pipe; what ends the job is that of handson.watching.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import selectors
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from handson.watching import Job, Outcome, RunFailed, end, finish, status

_servers: dict[str, _Server] = {}


@dataclass
class _Server:
    process: subprocess.Popen
    control: socket.socket


def ready(flavour: str) -> None:
    """Start the process that forks ranks of this flavour (`cpu` or `gpu`) now, where it does not run yet.

    Raises:
        RunFailed: when it cannot start.
    """
    _server(flavour)


def _server(flavour: str) -> _Server:
    """The forkserver of this flavour, started at first use."""
    running = _servers.get(flavour)
    if running is not None and running.process.poll() is None:
        return running
    began = time.monotonic()
    status(f"importing torch and colossalai once for all {flavour} ranks ...")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    environment = dict(os.environ, OMP_NUM_THREADS="1")
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH")])
    )
    if flavour == "gpu":
        environment["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    else:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "handson.forkserver", str(theirs.fileno()), flavour],
        pass_fds=[theirs.fileno()],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the ranks in order
    )
    theirs.close()
    try:
        ready = ours.recv(1 << 20)
    except BaseException:
        process.kill()  # Ctrl-C during the imports: the server would finish them before it notices
        process.wait()
        raise
    if not ready:
        text = process.stderr.read().decode(errors="replace").strip()
        raise RunFailed(f"the process that forks ranks did not start:\n{text}")
    _servers[flavour] = _Server(process, ours)
    status(f"importing torch and colossalai once for all {flavour} ranks: {time.monotonic() - began:.1f} s")
    return _servers[flavour]


@atexit.register
def stop_servers() -> None:
    """End the forkservers of this process; their ranks die with them."""
    while _servers:
        _, server = _servers.popitem()
        server.control.close()
        try:
            server.process.wait(5)
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()
        server.process.stderr.close()


def told(preset: str) -> dict[str, str]:
    """What ranks of a preset are told of their size, device and threads by environment variables."""
    cpu = preset == "laptop"
    # One thread a rank: a rank stands for a device, and two ranks on two cores must not fight for them.
    threads = "1" if cpu else os.environ.get("OMP_NUM_THREADS", "8")
    env = {"HANDSON_PRESET": preset, "HANDSON_DEVICE": "cpu" if cpu else "cuda", "OMP_NUM_THREADS": threads}
    return env | ({"CUDA_VISIBLE_DEVICES": ""} if cpu else {})


def time_limit(given: float) -> float:
    """Seconds after which a job is ended as hung: `given`, or what HANDSON_TIMEOUT says.

    Raises:
        ValueError: when HANDSON_TIMEOUT, or `given`, is no time above 0.
    """
    asked = os.environ.get("HANDSON_TIMEOUT")
    try:
        limit = float(asked or given)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        named = f"HANDSON_TIMEOUT={asked}" if asked else f"timeout={given:g}"
        raise ValueError(f"{named} is no time limit: give seconds above 0, such as 1200")
    return limit


@contextlib.contextmanager
def reserved_port(wanted: int | None) -> Iterator[int]:
    """A free port, or the wanted one, that stays ours until the job ends.

    The socket is bound but does not listen; with SO_REUSEADDR on both sides rank 0 may still listen there, while
    the kernel gives the number to nobody else who asks for any free port. So two builds do not collide. It is bound
    to every address, as rank 0's will be: a port can be free on the loopback and taken on another interface.
    """
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("", wanted or 0))
        except (OSError, OverflowError) as error:
            raise RunFailed(
                f"port {wanted} cannot be used ({getattr(error, 'strerror', error)}): "
                "name another, or name none and a free one is taken"
            ) from None
        yield holder.getsockname()[1]


class _LocalJob(Job):
    """A job whose ranks the forkserver of this process starts, on this host."""

    def __init__(self, server: _Server, title: str, ranks: int, on_line: Callable[[str], None]) -> None:
        super().__init__(title, ranks, on_line)
        self.server = server
        self.selector.register(server.control, selectors.EVENT_READ, None)

    def pump(self) -> None:
        for entry, _ in self.selector.select(0.1):
            if entry.data is not None:
                self.read(entry.fd, *entry.data)
                continue
            message = self.server.control.recv(1 << 16)
            if not message:
                raise RunFailed("the process that forks ranks died; its ranks ended with it")
            report = json.loads(message)
            self.exits[report["exit"]] = (time.monotonic(), os.waitstatus_to_exitcode(report["status"]))
        self.tick()

    def signal(self, number: int) -> None:
        self.server.control.send(json.dumps({"do": "signal", "rank": None, "signal": number}).encode())

    def reading(self) -> bool:
        return len(self.selector.get_map()) > 1 or len(self.exits) < self.ranks  # the one is the control socket


def run_ranks(
    script: Path,
    argv: list[str],
    *,
    ranks: int,
    flavour: str,
    env: dict[str, str],
    timeout: float,
    title: str,
    on_line: Callable[[str], None],
    port: int | None = None,
) -> Outcome:
    """Run `ranks` processes of `script` and return what they reported; a failure is in `Outcome.error`.

    Raises:
        RunFailed: when the forkserver itself cannot start.
        KeyboardInterrupt: after every rank has been ended.
    """
    killed: set[int] = set()
    with reserved_port(port) as port:
        server = _server(flavour)
        job = _LocalJob(server, title, ranks, on_line)
        try:
            for rank in range(ranks):
                _fork(job, rank, script, argv, {**env, "MASTER_PORT": str(port)})
            return finish(job, timeout, killed)
        except BaseException:
            end(job, killed)
            raise


def _fork(job: _LocalJob, rank: int, script: Path, argv: list[str], env: dict[str, str]) -> None:
    channels, theirs = ("out", "err", "rows"), []
    for channel in channels:
        reader, writer = os.pipe()
        theirs.append(writer)
        job.selector.register(reader, selectors.EVENT_READ, (rank, channel))
    order = {
        "do": "fork",
        "rank": rank,
        "script": str(script),
        "argv": argv,
        "cwd": str(script.parent),
        "env": {**env, "RANK": str(rank), "LOCAL_RANK": str(rank)},
    }
    try:
        socket.send_fds(job.server.control, [json.dumps(order).encode()], theirs)
    finally:
        for fd in theirs:
            os.close(fd)
