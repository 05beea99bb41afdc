"""Who may use which device now: one lock file a device, shared by every build and every process of this host.

Independent lessons run side by side where there are devices enough; a device serves one job at a time, so what is
measured on it is not disturbed. On a host without GPUs the cores are one device: two jobs there would slow each
other down. On one with GPUs each has a share of the cores, and jobs without GPUs have one: what the host does for a
GPU (starting kernels, serving requests, updating offloaded weights) is measured too. A lock is the kernel's (flock): it
ends with the process that holds it, however that ends.

One of the jobs that wait has the turn. Where it must wait for more than are free, a shorter one may pass it:
one that is expected to end before the others that are needed become free ("EASY backfilling", Lifka 1995).
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
SOON = 2.0  # seconds: for a shorter wait, free devices are kept


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
    count: int,
    devices: Sequence[str],
    *,
    seconds: float | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Iterator[tuple[str, ...]]:
    """Take `count` of these devices while the block runs, waiting until as many are free.

    A job takes devices when it has the turn, and has it until it has all: so two waiting jobs cannot each hold what
    the other needs, and a job of many devices is not put off for ever by jobs of few. Without the turn a job takes
    devices only if it is expected to give them back before who has the turn could begin. GPUs and cores have a turn
    each, as no job takes both.

    Args:
        count: how many devices.
        devices: those that will do.
        seconds: how long the block is expected to run; None where nobody knows: then it passes no other, and none
            passes one that waits for it.
        waiting: called once, when it takes longer than a second.

    Raises:
        ValueError: when there are fewer devices than asked for.
    """
    if count > len(devices):
        raise ValueError(f"{count} devices were asked for, and there are {len(devices)}")
    place, patience = folder(), time.monotonic() + PATIENCE_SECONDS
    whose = place / ("turn-cores" if CPU in devices else "turn-gpus")
    taken: dict[str, IO] = {}
    with contextlib.ExitStack() as held:
        held.callback(lambda: _let_go(taken))
        turn = None
        while len(taken) < count:
            if turn is None and (turn := _take(whose)) is not None:
                held.enter_context(turn)
            if turn is not None or (seconds is not None and time.time() + seconds < _told(whose)):
                for device in devices:
                    if len(taken) < count and device not in taken and (file := _take(place / f"device-{device}")):
                        taken[device] = file
            if len(taken) == count:
                break
            free_at = _enough_free_at(place, [device for device in devices if device not in taken], count - len(taken))
            if turn is None or free_at > time.time() + SOON:
                _let_go(taken)  # until then others may use them
            if turn is not None:
                _tell(turn, free_at)
            if time.monotonic() > patience:
                waiting()
                patience = float("inf")
            time.sleep(POLL_SECONDS)
        for file in taken.values():
            _tell(file, time.time() + (seconds or 0.0))
        if turn is not None:
            _tell(turn, 0.0)
            turn.close()
        yield tuple(device for device in devices if device in taken)


def _let_go(taken: dict[str, IO]) -> None:
    while taken:
        with taken.popitem()[1] as file:
            _tell(file, 0.0)


def _enough_free_at(place: Path, busy: list[str], count: int) -> float:
    """When so many of these busy devices are expected to be free: a time of the past where that is not known."""
    return sorted(_told(place / f"device-{device}") for device in busy)[count - 1]


def _tell(file: IO, when: float) -> None:
    """Write a time into a file whose lock we hold; a full disk, where it cannot be told, is no reason to end a job."""
    with contextlib.suppress(OSError):
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), f"{when:.3f}".encode())


def _told(path: Path) -> float:
    """The time that who holds a file's lock has written there; 0 where there is none."""
    with contextlib.suppress(FileNotFoundError, ValueError):
        return float(path.read_text())
    return 0.0


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
