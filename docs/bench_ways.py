"""The two ways to start a job that bench.py compares, and whether what came of it both ways is the same."""

from __future__ import annotations

import importlib.util
import json
import math
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from handson import launch, sources, store
from handson.ranks import reserved_port, time_limit, told
from handson.run import Run
from handson.side_by_side import run_each

BIN = Path(sys.executable).parent
TIMEOUT_SECONDS = 600.0  # of a job, as launch has it
SHOWN_LINES = 60  # torchrun and colossalai run say much after the traceback
CLOSE = 1e-3  # relative: on GPUs a sum may be taken in another order each time
Rows = list[dict[str, Any]]


class Failed(Exception):
    """A job failed, or was not the same job both ways; the text says which and how."""


def title(request: store.Request) -> str:
    """A job in one line."""
    return f"{' '.join([request.name, *request.argv])} x{request.ranks}"


# --- by colossalai run --------------------------------------------------------------------------------------------


def one_by_one(requests: Sequence[store.Request], place: Path, said: str = "") -> Iterator[tuple[float, Rows]]:
    """Start each job by `colossalai run` and wait for its end; give its seconds, and what its ranks recorded."""
    for number, request in enumerate(requests, 1):
        job = f"{said}colossalai run, job {number} of {len(requests)}: {title(request)} ..."
        print(job, end=" ", flush=True)
        seconds, rows = by_colossalai_run(request, place)
        print(f"{seconds:.1f} s", flush=True)
        yield seconds, rows


def by_colossalai_run(request: store.Request, place: Path) -> tuple[float, Rows]:
    """Run one job as the tutorial says it, with files in the folder `place`.

    Raises:
        Failed: with the end of its output, when it fails or passes its time limit.
    """
    rows, output = place / "rows.jsonl", place / "output"
    rows.write_text("")
    limit = time_limit(TIMEOUT_SECONDS)
    env = environment(request) | {"HANDSON_ROWS": str(rows)}
    program = shutil.which("colossalai", path=env["PATH"])
    if importlib.util.find_spec("colossalai") is None:
        raise Failed("this Python has no colossalai: install it with `python -m handson install`")
    with reserved_port(None) as port, output.open("w") as out:
        # Where packages were unpacked and not installed there is no such program, but what it would start is.
        command = [program] if program else [sys.executable, "-m", "colossalai.cli.cli"]
        command += ["run", "--nproc_per_node", str(request.ranks), "--master_port", str(port)]
        # It hands one line of text to a shell, which takes an argument's quotes away once more.
        command += [request.script.name, *map(shlex.quote, request.argv)]
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=request.script.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that Ctrl-C reaches this process alone, which then ends all of them
        )
        try:
            code = process.wait(limit)
            problem = f"failed with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            problem = f"did not end within {limit:g} s"
        finally:
            seconds = time.perf_counter() - began
            _end(process)
    if problem:
        last = output.read_text(errors="replace").rstrip().splitlines()[-SHOWN_LINES:]
        raise Failed("\n  ".join([f"by colossalai run, {title(request)} {problem}; its last lines:", *last]))
    return seconds, [json.loads(line) for line in rows.read_text().splitlines()]


def environment(request: store.Request) -> dict[str, str]:
    """What the kit tells its ranks of size, device, threads and repairs, for ranks that the kit does not start."""
    path = os.pathsep.join(filter(None, [str(BIN), os.environ.get("PATH")]))  # colossalai run looks for torchrun there
    modules = os.pathsep.join(filter(None, [str(sources.KIT.parent), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PATH": path, "PYTHONPATH": modules, **told(request.preset), "HANDSON_WITHOUT": ""}
    if Path("/sys/class/net/lo").exists():
        env.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return env


def _end(process: subprocess.Popen) -> None:
    """End what is left of it. Its ranks have sessions of their own: torchrun, when it is told to end, ends them."""
    for number, patience in ((signal.SIGTERM, 40.0), (signal.SIGKILL, 5.0)):
        limit = time.monotonic() + patience
        try:
            os.killpg(process.pid, number)
            while time.monotonic() < limit:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


# --- through the kit ----------------------------------------------------------------------------------------------


def through_the_kit(
    requests: Sequence[store.Request], workers: int, place: Path, said: str = ""
) -> tuple[float, list[Run]]:
    """Run all jobs in a new process (and so many workers of it); its seconds from start to end, and the runs.

    Raises:
        Failed: when a job fails.
    """
    print(f"{said}the kit, {f'{workers} jobs at once' if workers > 1 else 'one job after another'} ...", flush=True)
    process = multiprocessing.get_context("spawn").Process(target=_serve, args=(requests, workers, place, said))
    began = time.perf_counter()
    process.start()
    try:
        process.join()
    except KeyboardInterrupt:
        process.join(15)  # it got the same signal, and is ending its ranks
        process.kill()  # its ranks would end with it
        raise
    seconds = time.perf_counter() - began
    if process.exitcode:
        failure = place / "failure"
        why = failure.read_text() if failure.is_file() else f"the process ended with exit code {process.exitcode}"
        raise Failed(f"through the kit, {why}")
    return seconds, [store.load(place / "build" / "runs" / request.file)[0] for request in requests]


def _serve(requests: Sequence[store.Request], workers: int, place: Path, said: str) -> None:
    """In the new process: its runs are made now, and are not those of any build; it waits for no other's jobs."""
    for name in ("HANDSON_WITHOUT", "HANDSON_SINCE", "HANDSON_JOBS", "HANDSON_LESSON"):
        os.environ.pop(name, None)
    os.environ |= {"HANDSON_RUNS": "live", "HANDSON_QUIET": "1"}
    os.environ |= {"HANDSON_BUILD": str(place / "build"), "HANDSON_LEASES": str(place / "leases")}
    # Jobs on GPUs first: those on the cores then run beside them.
    ordered = sorted(requests, key=lambda request: request.preset != "gpu")
    try:
        for number, (request, ended) in enumerate(run_each(_start, ordered, workers), 1):
            if isinstance(ended, BaseException):
                (place / "failure").write_text(str(ended))
                sys.exit(1)
            print(f"{said}the kit, job {number} of {len(requests)}: {title(request)} {ended:.1f} s", flush=True)
    except KeyboardInterrupt:
        sys.exit(130)


def _start(request: store.Request) -> float:
    script = shlex.quote(str(request.script))
    return launch(script, *request.argv, ranks=request.ranks, preset=request.preset, quiet=True).seconds


# --- the same job? ------------------------------------------------------------------------------------------------


def agreed(request: store.Request, one: Rows, other: Rows) -> int:
    """How many recorded values two runs of a job agree in: words, whole numbers, losses. Not what they measured.

    Raises:
        Failed: naming the first value that differs, or when there is none to compare.
    """
    first, second = _told(one), _told(other)
    for place in sorted(first.keys() | second.keys()):
        pairs = zip(first.get(place, []), second.get(place, []), strict=False)
        differ = [f"{a[0]} {a[1]} and {b[1]}" for a, b in pairs if not _alike(a, b)]
        if len(first.get(place, [])) != len(second.get(place, [])):
            differ.append(f"{len(first.get(place, []))} and {len(second.get(place, []))} values")
        if differ:
            said = f"by colossalai run and through the kit, rank {place[0]} recorded in its {place[1]}"
            raise Failed(f"{title(request)} was not the same job both ways: {said}: {differ[0]}")
    count = sum(map(len, first.values()))
    if not count:
        raise Failed(f"{title(request)} recorded nothing by which its two runs could be compared: leave its lesson out")
    return count


def _told(rows: Rows) -> dict[tuple[int, str], list[tuple[str, Any]]]:
    """The values to compare, by rank and kind of row, in order, each with its name."""
    found: dict[tuple[int, str], list[tuple[str, Any]]] = {}
    for row in rows:
        if "method" not in row:
            values = found.setdefault((row["rank"], row["kind"]), [])
            values += [value for name in sorted(row.keys() - {"rank", "kind"}) for value in _values(name, row[name])]
    return found


def _values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for inner in sorted(value):
            yield from _values(f"{name}.{inner}", value[inner])
    elif isinstance(value, list):
        yield f"{name}, length", len(value)
        for what in value:
            yield from _values(name, what)
    elif not isinstance(value, float) or name.rpartition(".")[2] in ("loss", "losses"):
        yield name, value


def _alike(one: tuple[str, Any], other: tuple[str, Any]) -> bool:
    if isinstance(one[1], float) and isinstance(other[1], float):
        return one[0] == other[0] and math.isclose(one[1], other[1], rel_tol=CLOSE)
    return one == other
