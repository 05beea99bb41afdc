"""Who may use which device now: one lock file a device, shared by every build and every process of this host.

Independent lessons run side by side where there are devices enough; a device serves one job at a time, so what is
measured on it is not disturbed. On a host without GPUs the cores are one device: two jobs there would slow each
other down. On one with GPUs each has a share of the cores, and jobs without GPUs have one: what the host does for a
GPU (starting kernels, serving requests, updating offloaded weights) is measured too. A lock is the kernel's (flock): it
ends with the process that holds it, however that ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from handson import provenance

CPU = "cpu"
WITHIN = "HANDSON_WITHIN_JOB"  # set for every rank
CORES = "HANDSON_CORES"  # those that a rank may compute on, where it may not use all
LEAST_CORES = 4  # fewer would slow down what a job does alone
POLL_SECONDS, PATIENCE_SECONDS = 0.05, 1.0


def folder() -> Path:
    """Where the lock files lie: HANDSON_LEASES, else one folder of this user for the whole host."""
    told = os.environ.get("HANDSON_LEASES")
    place = Path(told) if told else Path(tempfile.gettempdir()) / f"handson-leases-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return tuple(str(number) for number in range(len(provenance.gpus())))
    return tuple(entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1"))


def _take(path: Path) -> IO | None:
    """The file, locked, or none when another holds its lock. Closing it lets go."""
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextlib.contextmanager
def hold(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock of a file while the block runs; `waiting` is called where another process has it first.

    The file stays: removing it would let a process that waits for it and one that comes later hold two locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _take(path)
    if file is None:
        waiting()
        file = path.open("a")
        fcntl.flock(file, fcntl.LOCK_EX)
    with file:
        yield


@contextlib.contextmanager
def lease(
    count: int, devices: Sequence[str], *, waiting: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, ...]]:
    """Take `count` of these devices while the block runs, waiting until as many are free.

    Only who has the turn takes devices, and keeps the turn until it has all: so two waiting jobs cannot each hold
    what the other needs, and a job of many devices is not put off for ever by jobs of few. GPUs and cores have a turn
    each, as no job takes both. `waiting` is called once, when it takes longer than a second.

    Raises:
        ValueError: when there are fewer devices than asked for.
    """
    if count > len(devices):
        raise ValueError(f"{count} devices were asked for, and there are {len(devices)}")
    place, patience = folder(), time.monotonic() + PATIENCE_SECONDS
    whose = place / ("turn-cores" if CPU in devices else "turn-gpus")
    with contextlib.ExitStack() as held:
        taken: set[str] = set()
        turn = None
        while len(taken) < count:
            if turn is None and (turn := _take(whose)) is not None:
                held.enter_context(turn)
            for device in devices if turn is not None else ():
                if len(taken) < count and device not in taken and (file := _take(place / f"device-{device}")):
                    held.enter_context(file)
                    taken.add(device)
            if len(taken) < count:
                if time.monotonic() > patience:
                    waiting()
                    patience = float("inf")
                time.sleep(POLL_SECONDS)
        if turn is not None:
            turn.close()
        yield tuple(device for device in devices if device in taken)


def devices_for(ranks: int, device: str) -> tuple[int, tuple[str, ...]]:
    """How many devices a job of so many ranks takes, and out of which: GPUs one a rank, or all cores as one.

    A job within a job shares what the outer one has: waiting for it would never end.
    """
    if WITHIN in os.environ:
        return 0, (CPU,) if device == "cpu" else gpus()
    return (ranks, gpus()) if device == "cuda" else (1, (CPU,))


def cores_of(devices: Sequence[str]) -> list[int]:
    """The cores of a job that holds these devices, where each GPU has its own; none where all jobs use all cores."""
    lanes = (*gpus(), CPU)
    cores = sorted(os.sched_getaffinity(0))
    share = len(cores) // len(lanes)
    if len(lanes) == 1 or share < LEAST_CORES:
        return []
    shares = {lane: cores[number * share : (number + 1) * share] for number, lane in enumerate(lanes)}
    return [core for device in devices for core in shares.get(device, ())]
