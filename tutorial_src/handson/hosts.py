"""A job over several hosts: `python -m handson run --hosts a,b --ranks 4 SCRIPT ...`.

Each host is entered (`ssh {host}`, or whatever `--via` says) and runs `host_agent.py`, which starts torchrun there; the
hosts meet by torchrun's own rendezvous. This side is to several hosts what `ranks` is to one: rank 0's log line by
line, the failing rank's traceback, bounded time, nothing left behind. A host that is not heard of for
`SILENCE_SECONDS` has gone away, and ends the job on the others.
"""

from __future__ import annotations

import os
import secrets
import shlex
import time
from pathlib import Path
from typing import Any

from handson import provenance, sources, store
from handson.hosts_job import PLAIN, Host, HostsJob
from handson.ranks import time_limit, told
from handson.run import Run
from handson.watching import RunFailed, end, finish, status

VIA = "ssh -o BatchMode=yes -o ConnectTimeout=10 {host}"
ENTER_SECONDS = 40.0
# What a rank on another host may need to know of this one's environment; the rest of it stays here.
CARRIED = ("HANDSON_", "NCCL_", "GLOO_", "NVSHMEM_", "OMP_", "MKL_", "PYTHON", "TORCH_", "PYTORCH_")


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
    job, killed = HostsJob(hosts, title, count, (lambda line: None) if quiet else _say), set()
    try:
        job.enter(via)
        preset = _meet(job, path, argv, each, preset, port)
        status(f"{title} ({preset} preset)")
        request = store.Request(path, tuple(argv), count, preset)
        made = _describe(job, preset, each, request)
        outcome = finish(job, time_limit(timeout), killed)
    except BaseException:
        end(job, killed)
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


def _meet(job: HostsJob, script: Path, argv: list[str], each: int, preset: str, port: int | None) -> str:
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
    env |= told(preset)
    meets = hosts[0].hello
    order = {"do": "start", "script": str(script), "argv": argv, "env": env, "hosts": len(hosts), "ranks": each}
    order |= {"endpoint": [meets["address"], meets["port"]], "id": secrets.token_hex(4)}
    for host in hosts:
        job.send(host, **order, first=host is hosts[0])
    job.began = time.monotonic()
    return preset


def _describe(job: HostsJob, preset: str, each: int, request: store.Request) -> dict[str, Any]:
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
