"""What runs on each host of a job that spans several: torchrun, watched, and its ranks' words carried to the launcher.

    python -P host_agent.py              what `handson run --hosts` starts on a host, and talks to over a pipe
    python -P host_agent.py SCRIPT ...   what torchrun starts for each rank: the script, and a parent that watches it

torchrun brings the hosts together (its c10d rendezvous) and starts the ranks. This file makes a host end well: when the
launcher is silent, or gone, when torchrun ends, or when it is told to, everything below this process is killed. It
needs Python's standard library and, for the ranks themselves, what the script imports.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import selectors
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SILENCE_SECONDS = 15.0  # without a word from the launcher: it is gone, or the network to it is
REACH_SECONDS = 120.0  # for the first host's torchrun to listen: it imports torch, from a slow disk perhaps
# torchrun itself waits without end for a store whose host or network is gone, and so do its ranks. So an idle
# connection to the first host is kept, which the kernel probes: after as many seconds without an answer it is lost.
PROBE_SECONDS, PROBES = 3, 4
BEAT_SECONDS = 1.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
SIOCGIFADDR = 0x8915
SOCKET = "HANDSON_HOST_SOCKET"


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value)


def own_address(peer: str | None) -> str:
    """The IPv4 address that this host's kernel would send from to reach `peer`; the loopback without a peer.

    Raises:
        OSError: when the peer's name is unknown here, or no route leads there.
    """
    if peer is None:
        return "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # sends nothing: a datagram socket only looks up the route
        return probe.getsockname()[0]


def interface_of(address: str) -> str | None:
    """The network interface that has this IPv4 address, as gloo and NCCL want it named."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with contextlib.suppress(OSError):  # an interface without an address
                asked = struct.pack("256s", name.encode()[:15])
                if socket.inet_ntoa(fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24]) == address:
                    return name
    return None


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


class Agent:
    """One host's part of a job. It speaks JSON lines: orders come on stdin, what happens here goes to stdout."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.orders = Lines(0)
        self.selector.register(0, selectors.EVENT_READ, self.orders)
        os.set_blocking(1, False)  # a launcher that reads no more must not keep this process from ending the ranks
        self.waiting = b""
        self.heard = self.said = time.monotonic()
        self.folder = tempfile.TemporaryDirectory(prefix="handson-")
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(f"{self.folder.name}/ranks")
        self.listener.listen(1024)
        self.selector.register(self.listener, selectors.EVENT_READ, None)
        self.speakers: dict[int, dict[str, Any]] = {}  # by descriptor: the rank and the channel of a connection
        self.processes: dict[int, int] = {}  # of each rank that runs here
        self.torchrun: subprocess.Popen | None = None
        self.tail: list[str] = []
        self.start: dict[str, Any] = {}
        self.address, self.holder = "", None
        self.wire: socket.socket | None = None  # to where the hosts meet
        self.ending = False

    def refuse(self, why: str) -> None:
        """Say why there can be no job here, or none any more, and end."""
        self.say(refused=why)
        self.ending = True

    def say(self, **message: object) -> None:
        self.waiting += (json.dumps({**message, "at": time.monotonic()}) + "\n").encode()
        self.said = time.monotonic()
        self.flush()

    def flush(self) -> None:
        try:
            while self.waiting:
                self.waiting = self.waiting[os.write(1, self.waiting) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self.ending = True

    def serve(self) -> int:
        """Take orders until the job has ended here, or there is nobody to work for; then leave nothing behind."""
        _prctl(PR_SET_CHILD_SUBREAPER, 1)
        try:
            while not self.ending:
                for entry, _ in self.selector.select(0.1):
                    self.take(entry)
                now = time.monotonic()
                if now - self.heard > SILENCE_SECONDS:
                    return 1
                if now - self.said > BEAT_SECONDS:
                    self.say(alive=True)
                self.flush()
                if self.start and self.torchrun is None:
                    self.try_to_start()
                if self.torchrun is not None and self.torchrun.poll() is not None and not self.speakers:
                    self.say(torchrun=self.torchrun.returncode, tail=self.tail[-40:])
                    break
        finally:
            end_all_below()
            self.leave()
        return 0

    def leave(self) -> None:
        """Say of each rank that was killed here that it has ended, and hand over what is still to be said."""
        for rank in self.processes:
            self.say(exit=rank, code=-signal.SIGKILL, ended=True)
        limit = time.monotonic() + 2
        while self.waiting and not self.ending and time.monotonic() < limit:
            time.sleep(0.01)
            self.flush()
        self.folder.cleanup()

    def take(self, entry: selectors.SelectorKey) -> None:
        if entry.fileobj is self.wire:
            self.feel()
            return
        if entry.fileobj is self.listener:
            connection = self.listener.accept()[0]
            self.selector.register(connection, selectors.EVENT_READ, Lines(connection.fileno()))
            return
        lines = entry.data.read()
        for line in lines:
            if entry.fd == 0:
                self.obey(json.loads(line))
            elif self.torchrun is not None and entry.fileobj is self.torchrun.stderr:
                self.tail.append(line)
            elif entry.fd not in self.speakers:
                self.speakers[entry.fd] = json.loads(line)
                if "pid" in self.speakers[entry.fd]:
                    self.processes[self.speakers[entry.fd]["rank"]] = self.speakers[entry.fd]["pid"]
                    self.say(began=self.speakers[entry.fd]["rank"])
            else:
                self.carry(line, **self.speakers[entry.fd])
        if entry.data.ended:
            self.selector.unregister(entry.fileobj)
            if entry.fd == 0:
                self.ending = True
            elif self.speakers.pop(entry.fd, None):
                entry.fileobj.close()

    def feel(self) -> None:
        """The connection to the first host has ended: its torchrun ended (which it says itself), or it is lost."""
        try:
            self.wire.recv(1)
        except ConnectionError:
            pass
        except OSError as error:  # no answer to the probes, no route
            where = f"{self.start['endpoint'][0]}:{self.start['endpoint'][1]}"
            self.refuse(f"lost the network to {where}, where the hosts meet ({error.strerror})")
        self.selector.unregister(self.wire)

    def carry(self, line: str, rank: int, channel: str, pid: int = 0) -> None:
        """Hand on what a rank wrote, and its end."""
        end = json.loads(line) if channel == "rows" and line.startswith('{"kind": "_exit"') else None
        if end is None:
            self.say(rank=rank, channel=channel, line=line)
            return
        group = self.processes.pop(rank)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)  # whatever the rank itself started and left behind
        self.say(exit=rank, code=end["code"], ended=end["ended"])

    def obey(self, order: dict[str, Any]) -> None:
        self.heard = time.monotonic()
        if order["do"] == "hello":
            self.introduce(order)
        elif order["do"] == "start":
            self.start = order
            self.give_up = time.monotonic() + REACH_SECONDS
        elif order["do"] == "signal":
            if order["signal"] == signal.SIGKILL:
                self.ending = True
            for pid in self.processes.values():
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, order["signal"])

    def introduce(self, order: dict[str, Any]) -> None:
        """Say what this host is: its address in this job, a port for the hosts to meet, its devices and its code."""
        from handson import provenance, sources
        from handson.ranks import RunFailed, reserved_port

        try:
            self.address = own_address(order["peer"])
        except OSError as error:
            self.refuse(f"cannot reach the host {order['peer']} ({error.strerror or error})")
            return
        script = Path(order["script"])
        if not script.is_file():
            self.refuse(f"has no file {script}: the code must lie in the same folder on every host")
            return
        port = 0
        if order["first"]:
            self.holder = contextlib.ExitStack()
            try:
                port = self.holder.enter_context(reserved_port(order["port"]))
            except RunFailed as error:
                self.refuse(f"says: {error}")
                return
        self.say(
            hello=True,
            address=self.address,
            port=port,
            gpus=list(provenance.gpus()),
            versions=provenance.versions(),
            cpu=provenance.cpu(),
            processor=f"the CPU ({os.cpu_count()} cores, {provenance.cpu()})",
            files=sources.files_of(script, order["argv"]),
        )

    def try_to_start(self) -> None:
        """Start torchrun; on the other hosts as soon as the first host's is there to be met."""
        order = self.start
        endpoint = order["endpoint"]
        if not order["first"]:
            try:
                self.wire = socket.create_connection(endpoint, timeout=1)
            except OSError as error:
                refused = error.errno == errno.ECONNREFUSED  # it is reached, and its torchrun still imports
                if time.monotonic() > self.give_up or (not refused and time.monotonic() > self.give_up - 90):
                    why = error.strerror or "no answer"
                    where = f"{endpoint[0]}:{endpoint[1]}"
                    self.refuse(f"cannot reach {where}, where the hosts meet ({why}): is a firewall between them?")
                return
            self.wire.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, PROBE_SECONDS), (socket.TCP_KEEPINTVL, PROBE_SECONDS)):
                self.wire.setsockopt(socket.IPPROTO_TCP, option, value)
            self.wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, PROBES)
            self.selector.register(self.wire, selectors.EVENT_READ, None)
        environment = {**os.environ, **order["env"], SOCKET: f"{self.folder.name}/ranks"}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(Path(__file__).resolve().parent.parent), environment.get("PYTHONPATH")])
        )
        interface = interface_of(self.address)
        if interface is not None:
            environment.setdefault("GLOO_SOCKET_IFNAME", interface)
            environment.setdefault("NCCL_SOCKET_IFNAME", interface)
        conf = f"is_host={int(order['first'])},join_timeout={REACH_SECONDS:.0f}"
        command = [sys.executable, "-P", "-m", "torch.distributed.run", f"--nnodes={order['hosts']}"]
        command += [f"--nproc-per-node={order['ranks']}", "--rdzv-backend=c10d", f"--rdzv-id={order['id']}"]
        command += [f"--rdzv-endpoint={endpoint[0]}:{endpoint[1]}", f"--rdzv-conf={conf}"]
        command += [f"--local-addr={self.address}", "--no-python", sys.executable, "-P", __file__]
        self.torchrun = subprocess.Popen(
            [*command, order["script"], *order["argv"]],
            env=environment,
            cwd=Path(order["script"]).parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: _prctl(PR_SET_PDEATHSIG, signal.SIGKILL),
        )
        self.selector.register(self.torchrun.stderr, selectors.EVENT_READ, Lines(self.torchrun.stderr.fileno()))


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
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    out, err, rows = (_connect(rank, channel) for channel in ("out", "err", "rows"))
    wait_here, go_on = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
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
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    sys.exit(run_rank(sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else Agent().serve())
