"""What runs on each host of a job that spans several: torchrun, watched, and its ranks' words carried to the launcher.

    python -P host_agent.py

`handson run --hosts` starts it on each host, and talks to it over a pipe. torchrun brings the hosts together (its c10d
rendezvous) and starts the ranks, each in a `host_rank.py`. This file makes a host end well: when the launcher is
silent, or gone, when torchrun ends, or when it is told to, everything below this process is killed. It needs Python's
standard library and, for the ranks themselves, what the script imports.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # this Python may know the kit by its folder alone
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from handson import host_rank
from handson.host_network import interface_of, own_address, probed_connection
from handson.processes import Lines, die_with_the_parent, end_all_below, inherit_orphans

SILENCE_SECONDS = 15.0  # without a word from the launcher: it is gone, or the network to it is
REACH_SECONDS = 120.0  # for the first host's torchrun to listen: it imports torch, from a slow disk perhaps
BEAT_SECONDS = 1.0


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
        inherit_orphans()
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
        from handson.ranks import reserved_port
        from handson.watching import RunFailed

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
                self.wire = probed_connection(endpoint)
            except OSError as error:
                refused = error.errno == errno.ECONNREFUSED  # it is reached, and its torchrun still imports
                if time.monotonic() > self.give_up or (not refused and time.monotonic() > self.give_up - 90):
                    why = error.strerror or "no answer"
                    where = f"{endpoint[0]}:{endpoint[1]}"
                    self.refuse(f"cannot reach {where}, where the hosts meet ({why}): is a firewall between them?")
                return
            self.selector.register(self.wire, selectors.EVENT_READ, None)
        environment = {**os.environ, **order["env"], host_rank.SOCKET: f"{self.folder.name}/ranks"}
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
        command += [f"--local-addr={self.address}", "--no-python", sys.executable, "-P", host_rank.__file__]
        self.torchrun = subprocess.Popen(
            [*command, order["script"], *order["argv"]],
            env=environment,
            cwd=Path(order["script"]).parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            preexec_fn=die_with_the_parent,
        )
        self.selector.register(self.torchrun.stderr, selectors.EVENT_READ, Lines(self.torchrun.stderr.fileno()))


if __name__ == "__main__":
    sys.exit(Agent().serve())
