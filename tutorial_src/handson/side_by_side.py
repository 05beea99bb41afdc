"""Several lessons at once, each worker a process of its own. Which devices their jobs get, the leases decide."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import TypeVar

from handson import provenance

Item = TypeVar("Item")
Result = TypeVar("Result")
WAITING = 3


def workers_here() -> int:
    """How many lessons this host runs at once: more than it has GPUs, so that some wait for whichever becomes free.

    Without GPUs the cores are one device, and a second worker would only wait for it.
    """
    gpus = len(provenance.gpus())
    return gpus + WAITING if gpus else 1


def run_each(
    task: Callable[[Item], Result], items: Sequence[Item], workers: int
) -> Iterator[tuple[Item, Result | BaseException]]:
    """Run a function of a module over items, and give each with its result, or with what it raised, as they end.

    One worker is this process. Several are spawned, so that none inherits threads or sockets; each serves item after
    item. After Ctrl-C nothing new begins, and every worker has ended its ranks when KeyboardInterrupt goes on.
    """
    if workers == 1:
        for item in items:
            try:
                result = task(item)
            except (Exception, SystemExit) as error:
                result = error
            yield item, result
        return
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=spawning, initializer=_print_nothing)
    try:
        waiting = {pool.submit(task, item): item for item in items}
        for done in as_completed(waiting):
            yield waiting[done], done.exception() or done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _print_nothing() -> None:
    """What a lesson prints belongs on its page; the lines of several at once would be read by nobody."""
    sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115 - for as long as this process lives
