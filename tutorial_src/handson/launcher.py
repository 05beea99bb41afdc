"""`launch(script, *argv, ranks=4) -> Run`: the one call a lesson makes.

It decides how to get the run (made live by real ranks, read from this host's cache, or read from what a GPU host
recorded), says what it does on the terminal, and prints rank 0's log line by line.
"""

from __future__ import annotations

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from handson import jobs, leases, lessons, provenance, sources, store
from handson.ranks import ready, run_ranks, time_limit, told
from handson.run import Run
from handson.watching import RunFailed, status

__all__ = ["RunFailed", "launch"]

PRESETS = ("auto", "gpu", "laptop")


def launch(
    script: str,
    *argv: str,
    ranks: int = 1,
    preset: str = "auto",
    timeout: float = 600.0,
    expect_failure: bool = False,
    quiet: bool = False,
    port: int | None = None,
    without: tuple[str, ...] = (),
) -> Run:
    """Get the run of a training script on `ranks` ranks.

    Args:
        script: the training script, relative to the current folder or to the tutorial's sources; arguments may
            follow in the same string, as on the command line.
        argv: further arguments, each whole.
        ranks: number of processes (world size).
        preset: `gpu`, `laptop`, or `auto` (gpu where the host has a GPU for each rank, or a recording has).
        timeout: seconds after which the job is ended and reported as hung.
        expect_failure: the lesson shows an error on purpose; the failed `Run` is returned with `.error` set.
        quiet: do not print rank 0's log.
        port: where the ranks meet; a free one by default.
        without: names of repairs to leave out, to show the fault; those in HANDSON_WITHOUT are left out too.

    Raises:
        RunFailed: with the first failing rank's traceback; or when an expected failure did not happen.
        StoreError: when the policy is `recorded` and there is no fresh recording, naming the run.
        FileNotFoundError: when there is no such script.
        ValueError: for an impossible number of ranks or time limit, or an unknown preset.
    """
    script, *first = shlex.split(script)
    argv = (*first, *argv)
    if preset not in PRESETS:
        raise ValueError(f"preset={preset!r} is unknown: use one of {', '.join(PRESETS)}")
    if ranks < 1:
        raise ValueError(f"ranks={ranks}: a job has at least one rank")
    path = sources.find_script(script)
    here = "gpu" if preset != "laptop" and len(provenance.gpus()) >= ranks else "laptop"
    asked = os.environ.get("HANDSON_WITHOUT", "").split(",")
    without = tuple(sorted({*without, *filter(None, asked)}))
    policy, note, run, made = store.policy(), "", None, False
    if policy == "recorded" or (policy == "auto" and here == "laptop" and preset != "laptop"):
        run, note = _recorded(store.Request(path, argv, ranks, preset, without))
        if run is None and policy == "recorded":
            raise store.StoreError(
                f"{note}. Make it again on a host with the accelerators (`python -m handson record`), "
                "or build with --runs=auto"
            )
    if run is None and preset == "gpu" and here != "gpu":
        raise RunFailed(
            f"the gpu preset on {ranks} ranks needs {ranks} GPUs, this host has {len(provenance.gpus())}: "
            "use preset='laptop', or a host with more GPUs"
        )
    request = store.Request(path, argv, ranks, run.preset if run else here, without)
    if run is None:
        with lessons.only_here(request):
            run = store.cached(request) if policy == "auto" else lessons.made_now(request)
            if made := run is None:
                run = _live(request, timeout, quiet, port)
                if expect_failure or run.error is None:
                    _keep(run, request)
    if not made and run.log and not quiet:
        print(*run.log, sep="\n")
    if note:
        run.note = f"These numbers are this host's: {note}."
    lessons.note_use(request, run, preset == "auto")
    if run.error and not expect_failure:
        raise RunFailed(f"{run.title()}: {run.error}\n\nTo see it alone: {_alone(request)}")
    if expect_failure and not run.error:
        raise RunFailed(f"{run.title()} was expected to fail, but it ended well")
    return run


def _recorded(asked: store.Request) -> tuple[Run | None, str]:
    """The fresh recording at the gpu preset, else (where any preset is asked for) at the laptop preset."""
    reasons = []
    for size in ("gpu", "laptop") if asked.preset == "auto" else (asked.preset,):
        run, reason = store.recorded(dataclasses.replace(asked, preset=size))
        if run is not None and (size in (asked.preset, "gpu") or store.policy() == "recorded"):
            return run, ""
        reasons.append(reason)
    stale = [reason for reason in reasons if "stale" in reason]
    return None, (stale or reasons)[0]


def _command(request: store.Request) -> str:
    """The same run by hand, in the training script's folder."""
    arguments = shlex.join([request.script.name, *request.argv])
    starter = f"torchrun --nproc_per_node {request.ranks}" if request.ranks > 1 else "python"
    return f"{_left_out(request)}{starter} {arguments}"


def _left_out(request: store.Request) -> str:
    return f"HANDSON_WITHOUT={','.join(request.without)} " if request.without else ""


def _alone(request: store.Request) -> str:
    return (
        f"{_left_out(request)}python -m handson run --ranks {request.ranks} --preset {request.preset} "
        f"{shlex.join([request.name, *request.argv])}"
    )


def _live(request: store.Request, timeout: float, quiet: bool, port: int | None) -> Run:
    cpu = request.preset == "laptop"
    timeout = time_limit(timeout)
    files, key = request.files, request.key
    env = {
        **os.environ,
        "WORLD_SIZE": str(request.ranks),
        "LOCAL_WORLD_SIZE": str(request.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "HANDSON_WITHOUT": ",".join(request.without),
        leases.WITHIN: "1",
        **told(request.preset),
    }
    if Path("/sys/class/net/lo").exists():
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")  # all ranks are on this host; its name may resolve to nothing
    command = _command(request)
    made = provenance.describe(
        device="cpu" if cpu else "cuda",
        ranks=request.ranks,
        command=command,
        folder=sources.CHECKOUT or sources.KIT,
    )
    title = f"{request.name} {' '.join(request.argv)} x{request.ranks}"
    flavour = "cpu" if cpu else "gpu"
    if provenance.gpus():
        # No device is held for the imports. Where the cores are the device they are part of the first job: beside
        # another job they would disturb what it measures.
        ready(flavour)
    count, devices = leases.devices_for(request.ranks, "cpu" if cpu else "cuda")
    asked = time.time()
    with leases.lease(
        count,
        devices,
        seconds=store.seconds_before(request),
        waiting=lambda: status(f"{title}: waiting for {count} of {_named(devices)}"),
    ) as mine:
        status(f"{title} ({request.preset} preset)")
        # Ranks take the first GPUs by themselves; other ones have to be named.
        if not cpu and mine != devices[:count]:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        if cores := leases.cores_of(mine):
            env[leases.CORES] = ",".join(map(str, cores))
        began, started = time.monotonic(), time.time()
        failed = True
        try:
            outcome = run_ranks(
                request.script,
                list(request.argv),
                ranks=request.ranks,
                flavour=flavour,
                env=env,
                timeout=timeout,
                title=title,
                on_line=(lambda line: None) if quiet else _say,
                port=port,
            )
            failed = outcome.error is not None
        finally:
            jobs.note(
                "job", lesson=lessons.current_lesson(), script=request.name, argv=list(request.argv),
                ranks=request.ranks, preset=request.preset, without=list(request.without), key=key,
                devices=list(mine), asked=asked, began=started, ended=time.time(), failed=failed,
            )  # fmt: skip
    run = Run(
        script=request.name,
        argv=list(request.argv),
        ranks=request.ranks,
        preset=request.preset,
        command=command,
        key=key,
        files=files,
        provenance=made,
        log=outcome.log,
        data=outcome.data,
        seconds=round(time.monotonic() - began, 3),
        error=outcome.error,
        without=list(request.without),
    )
    return run


def _named(devices: Sequence[str]) -> str:
    return "this host's cores" if leases.CPU in devices else f"GPU {', '.join(devices)}"


def _keep(run: Run, request: store.Request) -> None:
    try:
        store.keep(run, request)
    except OSError as error:
        raise store.StoreError(
            f"{run.title()}: the run ended well, but the build folder cannot hold it ({error.strerror})"
        ) from None


def _say(line: str) -> None:
    print(line)
    sys.stdout.flush()
