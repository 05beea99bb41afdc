"""What is known of a job over several hosts while it runs: each host, and what its agent says (see `hosts`)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handson.host_agent import BEAT_SECONDS, SILENCE_SECONDS
from handson.processes import Lines
from handson.watching import Job, RunFailed

PLAIN = re.compile(r"[\w./+@:,=-]+")  # needs no quotes in any shell


@dataclass
class Host:
    """One host of a job: how it is entered, how the others reach it, and the process through which it is reached."""

    name: str
    address: str
    process: subprocess.Popen | None = None
    hello: dict[str, Any] = field(default_factory=dict)
    ranks: set[int] = field(default_factory=set)
    heard: float = 0.0
    behind: float = float("inf")  # this host's clock minus that one's, at least
    errors: list[str] = field(default_factory=list)
    left: bool = False  # its part of the job has ended, as it should

    def __str__(self) -> str:
        if not self.ranks:
            return f"the host {self.name}"
        held = ", ".join(map(str, sorted(self.ranks)))
        return f"the host {self.name} (rank{'s' * (len(self.ranks) > 1)} {held})"


class HostsJob(Job):
    """A job whose ranks are started by torchrun on several hosts."""

    def __init__(self, hosts: list[Host], title: str, count: int, on_line: Callable[[str], None]) -> None:
        super().__init__(title, count, on_line)
        self.hosts = hosts
        self.ended: set[int] = set()  # ranks that torchrun ended because another failed
        self.lost: str | None = None  # the sentence on a host that went away
        self.unmet: str | None = None  # the sentence on a torchrun that ended by itself
        self.beat = 0.0
        self.stopping = False

    def enter(self, via: str) -> None:
        """Start the agent on every host."""
        command = [sys.executable, "-P", str(Path(__file__).with_name("host_agent.py"))]
        for word in command:
            if not PLAIN.fullmatch(word):
                raise RunFailed(f"{word!r} cannot be named to another host: use a folder without spaces and quotes")
        for host in self.hosts:
            entered = [word.replace("{host}", host.name) for word in shlex.split(via)]
            try:
                host.process = subprocess.Popen(
                    [*entered, *command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C reaches the launcher alone, which then ends the ranks in order
                )
            except OSError as error:
                raise RunFailed(f"`{shlex.join(entered)}` cannot be started: {error.strerror}") from None
            host.heard = time.monotonic()
            for pipe in (host.process.stdout, host.process.stderr):
                self.selector.register(pipe, selectors.EVENT_READ, (host, Lines(pipe.fileno())))

    def send(self, host: Host, **order: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            host.process.stdin.write((json.dumps(order) + "\n").encode())
            host.process.stdin.flush()

    def pump(self) -> None:
        for entry, _ in self.selector.select(0.1):
            host, lines = entry.data
            for line in lines.read():
                if entry.fileobj is host.process.stdout:
                    self.hear(host, line)
                else:
                    host.errors.append(line)
            if lines.ended:
                self.selector.unregister(entry.fileobj)
                if entry.fileobj is host.process.stdout:
                    self.miss(host)
        now = time.monotonic()
        if now > self.beat + BEAT_SECONDS:
            self.beat = now
            for host in self.hosts:
                if host.process is not None and not host.left:
                    self.send(host, do="alive")
        for host in self.hosts:
            if host.hello and not (host.left or self.stopping) and now > host.heard + SILENCE_SECONDS:
                self.lose(host, f"went away: no word from it for {SILENCE_SECONDS:.0f} s")
        self.tick()

    def hear(self, host: Host, line: str) -> None:
        """Take one message of a host."""
        try:
            message = json.loads(line)
            at = message["at"]
        except (ValueError, TypeError, KeyError):
            host.errors.append(line)  # a login script that prints, say
            return
        host.heard = time.monotonic()
        # Clocks of two hosts start at any time; the quickest message so far tells the difference best.
        host.behind = min(host.behind, host.heard - at)
        if "hello" in message:
            host.hello = message
        elif "refused" in message:
            self.lose(host, message["refused"])
        elif "began" in message:
            host.ranks.add(message["began"])
        elif "line" in message:
            self.take(message["line"], message["rank"], message["channel"])
            if message["channel"] == "rows" and self.failures and self.failures[-1]["rank"] == message["rank"]:
                self.failures[-1]["at"] = at + host.behind
        elif "exit" in message:
            self.exits[message["exit"]] = (at + host.behind, message["code"])
            if message["ended"]:
                self.ended.add(message["exit"])
        elif "torchrun" in message:
            host.left = True
            if message["torchrun"]:
                self.unmet = self.unmet or _why_torchrun_ended(host, self.hosts[0], message["tail"])

    def miss(self, host: Host) -> None:
        """A host's process has closed its end."""
        if host.left or self.stopping:
            return
        with contextlib.suppress(subprocess.TimeoutExpired, BlockingIOError):
            host.process.wait(2)
            os.set_blocking(host.process.stderr.fileno(), False)
            host.errors += host.process.stderr.read().decode(errors="replace").splitlines()
        code = host.process.returncode
        last = next((line for line in reversed(host.errors) if line.strip()), "")
        how = f"ended by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with {code}"
        if host.hello:
            self.lose(host, f"went away: its connection {how}{f' ({last})' if last else ''}")
        else:
            entered = shlex.join(host.process.args[:-3])
            self.lose(host, f"cannot be entered by `{entered}`: {last or how}")

    def lose(self, host: Host, why: str) -> None:
        host.left = True
        others = [str(other) for other in self.hosts if other is not host and other.ranks]
        ended = f"; the job was ended on {' and '.join(others)}" if others else ""
        self.lost = self.lost or f"{host} {why}{ended}"

    def failed(self) -> bool:
        return bool(self.lost or self.unmet) or super().failed()

    def verdict(self, killed: set[int]) -> str | None:
        # A host that goes away takes its peers' connections along; what they say of that is no cause.
        return self.lost or super().verdict(killed | self.ended) or self.unmet

    def signal(self, number: int) -> None:
        self.stopping = self.stopping or number == signal.SIGKILL
        for host in self.hosts:
            if host.process is not None and not host.left:
                self.send(host, do="signal", signal=number)

    def reading(self) -> bool:
        return bool(self.selector.get_map())

    def close(self) -> None:
        """End what connects the hosts to this one; an agent whose connection ends kills what is below it."""
        self.selector.close()
        for host in self.hosts:
            if host.process is None:
                continue
            with contextlib.suppress(BrokenPipeError):
                host.process.stdin.close()
            try:
                host.process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(host.process.pid, signal.SIGKILL)
                host.process.wait()
            host.process.stdout.close()
            host.process.stderr.close()
            host.process = None


def _why_torchrun_ended(host: Host, first: Host, tail: list[str]) -> str:
    """The sentence on a torchrun that failed by itself: its last error, or that the hosts lost each other."""
    errors = [line for line in tail if re.search(r"\w*(Error|Exception)\b", line)]
    if host is not first and any("Rendezvous" in line or "Dist" in line for line in errors):
        meets = first.hello["address"]
        return (
            f"{host} lost {first.name} ({meets}), where the hosts meet, and its torchrun ended: "
            f"look at the network between them, and whether {first.name} is up; the job was ended on every host"
        )
    return f"torchrun on {host} ended: {errors[-1].strip() if errors else 'it said nothing'}"
