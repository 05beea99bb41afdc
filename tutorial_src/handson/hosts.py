"""A job over several hosts: `python -m handson run --hosts a,b --ranks 4 SCRIPT ...`.

Each host is entered (`ssh {host}`, or whatever `--via` says) and runs `host_agent.py`, which starts torchrun there; the
hosts meet by torchrun's own rendezvous. This side is to several hosts what `ranks` is to one: rank 0's log line by
line, the failing rank's traceback, bounded time, nothing left behind. A host that is not heard of for
`SILENCE_SECONDS` has gone away, and ends the job on the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
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

from handson import provenance, ranks, sources, store
from handson.host_agent import BEAT_SECONDS, SILENCE_SECONDS, Lines
from handson.ranks import RunFailed
from handson.run import Run

VIA = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host}"
ENTER_SECONDS = 40.0
# What a rank on another host may need to know of this one's environment; the rest of it stays here.
CARRIED = ("HANDSON_", "NCCL_", "GLOO_", "NVSHMEM_", "OMP_", "MKL_", "PYTHON", "TORCH_", "PYTORCH_")
PLAIN = re.compile(r"[\w./+@:,=-]+")


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


def read_hosts(text: str) -> list[Host]:
    """`a,b` or `a=10.0.0.1,b=10.0.0.2`: how each host is entered, and its address where its name is not known to all.

    Raises:
        ValueError: with one sentence, when there is no host, or one twice, or an address is missing.
    """
    found = []
    for word in filter(None, (word.strip() for word in text.split(","))):
        name, equals, address = word.partition("=")
        if not name or (equals and not address) or not PLAIN.fullmatch(word) or name.startswith("-"):
            raise ValueError(f"--hosts: {word!r} is no host: write NAME, or NAME=ADDRESS, separated by commas")
        found.append(Host(name, address or name.rpartition("@")[2]))
    if not found:
        raise ValueError("--hosts names no host: write --hosts a,b")
    names = [host.name for host in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--hosts names {name} twice: a host starts all of its ranks at once")
    return found


class _HostsJob(ranks.Job):
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


def run_on_hosts(
    script: str,
    argv: list[str],
    *,
    hosts: list[Host],
    count: int,
    preset: str = "auto",
    timeout: float = 600.0,
    via: str = VIA,
    port: int | None = None,
    quiet: bool = False,
) -> Run:
    """Run a training script on `count` ranks, divided equally over the hosts; it is always made live.

    The checkout (or the installed kit) and the Python must lie at the same place on every host, as torchrun and
    `colossalai run` need them too; a host with other code is named and refused.

    Args:
        script: the training script, as for `launch`.
        argv: its arguments.
        hosts: what `read_hosts` gave.
        count: number of processes on all hosts together (world size).
        preset: `gpu`, `laptop`, or `auto` (gpu where each host has a GPU for each of its ranks).
        timeout: seconds after which the job is ended and reported as hung.
        via: how a host is entered: a command, with {host} for its name, that runs the command appended to it there.
        port: where the hosts meet on the first of them; a free one by default.
        quiet: do not print rank 0's log.

    Raises:
        RunFailed: with the first failing rank's traceback, or the sentence on the host that failed.
        ValueError: when the ranks cannot be divided equally, or `via` names no host.
        FileNotFoundError: when there is no such script.
    """
    if count < 1 or count % len(hosts):
        raise ValueError(f"--ranks {count} on {len(hosts)} hosts: use a multiple of {len(hosts)}")
    if "{host}" not in via:
        raise ValueError(f"--via {via!r} names no host: write {{host}} where its name belongs")
    if preset not in ("auto", "gpu", "laptop"):
        raise ValueError(f"preset={preset!r} is unknown: use one of auto, gpu, laptop")
    path, each = sources.find_script(script), count // len(hosts)
    title = f"{sources.name_of(path)} {' '.join(argv)} x{count} on {', '.join(host.name for host in hosts)}"
    job, killed = _HostsJob(hosts, title, count, (lambda line: None) if quiet else _say), set()
    try:
        job.enter(via)
        preset = _meet(job, path, argv, each, preset, port)
        ranks.status(f"{title} ({preset} preset)")
        request = store.Request(path, tuple(argv), count, preset)
        made = _describe(job, preset, each, request)
        outcome = ranks.finish(job, ranks.time_limit(timeout), killed)
    except BaseException:
        ranks.end(job, killed)
        raise
    if outcome.error:
        raise RunFailed(f"{title}: {outcome.error}")
    return Run(
        script=request.name,
        argv=list(argv),
        ranks=count,
        preset=preset,
        command=made["command"],
        key=request.key,
        files=request.files,
        provenance=made,
        log=outcome.log,
        data=outcome.data,
        seconds=round(outcome.seconds, 3),
    )


def _say(line: str) -> None:
    print(line, flush=True)


def _meet(job: _HostsJob, script: Path, argv: list[str], each: int, preset: str, port: int | None) -> str:
    """Learn what each host is, see that they can do this job together, and start it; the preset that they take."""
    hosts, files = job.hosts, sources.files_of(script, argv)
    for host in hosts:
        peer = next((other.address for other in hosts if other is not host), None)
        job.send(host, do="hello", script=str(script), argv=argv, peer=peer, first=host is hosts[0], port=port)
    limit = time.monotonic() + ENTER_SECONDS
    while not all(host.hello for host in hosts) and not job.lost:
        job.pump()
        if time.monotonic() > limit:
            silent = next(host for host in hosts if not host.hello)
            raise RunFailed(f"{silent} did not answer within {ENTER_SECONDS:.0f} s of being entered")
    if job.lost:
        raise RunFailed(job.lost)
    for host in hosts:
        theirs = host.hello["files"]
        changed = sorted(name for name in {*files, *theirs} if files.get(name) != theirs.get(name))
        if changed:
            raise RunFailed(f"{host} has other code than this one: {', '.join(changed)} differ")
        if host.hello["versions"] != hosts[0].hello["versions"]:
            pairs = host.hello["versions"].items() - hosts[0].hello["versions"].items()
            differ = ", ".join(f"{name} {version}" for name, version in sorted(pairs))
            raise RunFailed(f"{host} has {differ}, unlike {hosts[0].name}: the hosts need the same versions")
    fewest = min(hosts, key=lambda host: len(host.hello["gpus"]))
    if preset == "gpu" and len(fewest.hello["gpus"]) < each:
        raise RunFailed(
            f"the gpu preset on {each} ranks a host needs {each} GPUs there, {fewest.name} has "
            f"{len(fewest.hello['gpus'])}: use --preset laptop, or other hosts"
        )
    preset = "gpu" if preset != "laptop" and len(fewest.hello["gpus"]) >= each else "laptop"
    env = {name: value for name, value in os.environ.items() if name.startswith(CARRIED)}
    env |= ranks.told(preset)
    meets = hosts[0].hello
    order = {"do": "start", "script": str(script), "argv": argv, "env": env, "hosts": len(hosts), "ranks": each}
    order |= {"endpoint": [meets["address"], meets["port"]], "id": secrets.token_hex(4)}
    for host in hosts:
        job.send(host, **order, first=host is hosts[0])
    job.began = time.monotonic()
    return preset


def _describe(job: _HostsJob, preset: str, each: int, request: store.Request) -> dict[str, Any]:
    """The provenance of a job over several hosts; like every provenance it names no host."""
    arguments = shlex.join([request.script.name, *request.argv])
    command = (
        f"torchrun --nnodes {len(job.hosts)} --nproc_per_node {each} --rdzv-backend c10d --rdzv-endpoint FIRST:29500"
        f" --rdzv-id 1 {arguments}"
    )
    hello, cuda = job.hosts[0].hello, preset == "gpu"
    made = provenance.describe(
        device="cuda" if cuda else "cpu", ranks=each, command=command, folder=sources.CHECKOUT or sources.KIT
    )
    kinds = sorted({f"{each} × {host.hello['gpus'][0]}" if cuda else host.hello["processor"] for host in job.hosts})
    many = f"{len(job.hosts)} host{'s' * (len(job.hosts) > 1)}, each"
    there = {"hardware": f"{many} {' or '.join(kinds)}", **hello["versions"], "cpu": hello["cpu"]}
    return {**made, **there, "accelerator": hello["gpus"][0] if cuda else None, "accelerators": request.ranks * cuda}
