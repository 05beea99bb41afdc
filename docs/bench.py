"""The same jobs in the obvious way and through the kit, on this host: `python docs/bench.py [LESSON...]`.

The obvious way starts each job in turn by `colossalai run --nproc_per_node N script ...`, in its script's folder. The
kit starts the same jobs by `launch` in a new process, which imports torch and colossalai once; where the host has
GPUs enough for several jobs, they run side by side. The jobs are those of the lessons' recordings that end well.

What is compared, and what is not:

- The totals are seconds of wall clock from the start of the first process to the end of the last one. So the imports
  are in both: in every rank of the obvious way, and in the kit's first job. No run comes from a cache.
- The ranks' environment is the same: size, device, threads, repairs. A job that was recorded on more GPUs than this
  host has runs at the laptop preset, both ways.
- What the ranks recorded must agree: all words, whole numbers and losses, of every rank. Else it was not the same
  job, and there is no result. Rows that name the method of a measurement (time, memory) are left out: they may differ.
- What all jobs import is read from the disk once before, so that neither way pays for a cold one.
- Only starting differs. The longer its ranks compute, the less a job gains: the ratio is that of this set. The set
  taken where no lesson is named (one on the CPU, another on GPUs) has both kinds, short jobs and long ones.

A round is all jobs in the obvious way, then all through the kit; HANDSON_ROUNDS asks for several, and their medians
are compared. Other work on the host slows both ways, but not always alike: measure on a quiet one. The result is
written to docs/measured/, for the docs. The exit code is 1 where the kit misses its goal.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if importlib.util.find_spec("handson") is None:
    sys.path.insert(0, str(ROOT / "tutorial_src"))

import bench_ways as ways  # noqa: E402 - beside this file; it needs handson
from handson import measured, provenance, store  # noqa: E402
from handson.commands.record import resolve  # noqa: E402
from handson.forkserver import PRELOAD  # noqa: E402
from handson.ranks import time_limit  # noqa: E402
from handson.show import bench_report  # noqa: E402
from handson.side_by_side import workers_here  # noqa: E402

# On the CPU, many ranks for a moment and one process for long: two idle cores need about ten minutes for both ways. On
# GPUs, training on one and on two of them, and many ranks for a moment beside it.
LESSONS = {
    "cpu": ("multi_dimensional/plot_tensor_parallel", "auto_parallel/plot_plan_a_mesh"),
    "cuda": ("sequence/plot_data_pipeline_sequence",),
}
GOALS = {"cpu": 5.0, "cuda": 3.0}


def main(arguments: list[str]) -> int:
    """Measure, print the table, write the result; 1 where the goal is missed or a job failed, 2 for bad input."""
    rounds = os.environ.get("HANDSON_ROUNDS") or "1"
    if not rounds.isdecimal() or int(rounds) < 1:
        print(f"error: HANDSON_ROUNDS={rounds} is no number of rounds: use 1, 2, 3 ...", file=sys.stderr)
        return 2
    lessons = resolve(arguments or list(LESSONS["cuda" if provenance.gpus() else "cpu"]))
    if lessons is None:
        return 2
    lessons = list(dict.fromkeys(lessons))
    try:
        time_limit(ways.TIMEOUT_SECONDS)  # said now, not after the first minutes
        requests = jobs_of(lessons)
    except (store.StoreError, FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if not requests:
        print(f"error: no recording of {', '.join(lessons)} holds a job that ends well: name others", file=sys.stderr)
        return 2
    command = " ".join(["nox -s bench", *(["--", *arguments] if arguments else [])])
    try:
        bench = measure(requests, lessons, int(rounds), command)
    except ways.Failed as error:
        print(f"\nerror: {error}\nThere is no result; docs/measured/ is as it was.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: every rank was ended; docs/measured/ is as it was", file=sys.stderr)
        return 130
    path = folder() / f"bench-{'gpu' if bench.provenance['device'] == 'cuda' else 'cpu'}.json"
    store.write(path, measured.dump(bench))
    print(f"\n{bench_report.jobs(bench)}\n\n{bench_report.verdict(bench)}\nwritten to {os.path.relpath(path)}")
    return int(not bench.met)


def folder() -> Path:
    """Where results are kept: HANDSON_MEASURED, else docs/measured."""
    return Path(os.environ.get("HANDSON_MEASURED") or ROOT / "docs" / "measured")


def jobs_of(lessons: Sequence[str]) -> list[store.Request]:
    """The jobs that these lessons ask for, as this host can run them, each once, in a stable order.

    Raises:
        StoreError: when a recording cannot be read.
        FileNotFoundError: when the script of one is gone.
    """
    root, found = store.recordings(), {}
    runs = [store.load(path)[0] for path in sorted(root.rglob("*.json"))] if root else []
    for lesson in lessons:
        for run in runs:
            if lesson in run.lessons and not run.error and not run.without:
                request = store.Request.again(run)
                if request.ranks > len(provenance.gpus()):
                    request = dataclasses.replace(request, preset="laptop")
                found.setdefault(request.key, request)
    return list(found.values())


def measure(requests: Sequence[store.Request], lessons: Sequence[str], rounds: int, command: str) -> measured.Bench:
    """All jobs both ways, so many times.

    Raises:
        Failed: when a job fails, or was not the same job both ways.
    """
    on_gpus = sum(request.preset == "gpu" for request in requests)
    workers = min(workers_here(), len(requests))
    count = f"{len(requests)} job{'s' * (len(requests) != 1)}"
    print(f"{count} of {', '.join(lessons)}: {on_gpus} on GPUs, {len(requests) - on_gpus} on the CPU")
    read_the_disk()
    slow, fast, totals = [], [], []
    for number in range(1, rounds + 1):
        said = f"round {number} of {rounds}, " if rounds > 1 else ""
        with tempfile.TemporaryDirectory(prefix="handson-bench-") as place:
            theirs = list(ways.one_by_one(requests, Path(place), said))
            seconds, ours = ways.through_the_kit(requests, workers, Path(place), said)
        together = list(zip(requests, theirs, ours, strict=True))
        agreed = [ways.agreed(request, rows, run.data) for request, (_, rows), run in together]
        slow.append([taken for taken, _ in theirs])
        fast.append([run.seconds for run in ours])
        totals.append((sum(slow[-1]), seconds))
        print(f"{said}all jobs: {sum(slow[-1]):.1f} s by colossalai run, {seconds:.1f} s through the kit", flush=True)
    jobs = [
        measured.Job(
            script=request.name,
            argv=list(request.argv),
            ranks=request.ranks,
            preset=request.preset,
            without=list(request.without),
            key=request.key,
            agreed=agreed[index],
            colossalai_run=_median(taken[index] for taken in slow),
            kit=_median(taken[index] for taken in fast),
        )
        for index, request in enumerate(requests)
    ]
    device = "cuda" if on_gpus else "cpu"
    return measured.Bench(
        provenance=provenance.describe(device=device, ranks=len(provenance.gpus()), command=command, folder=ROOT),
        lessons=list(lessons),
        workers=workers,
        goal=GOALS[device],
        colossalai_run=[round(whole, 3) for whole, _ in totals],
        kit=[round(whole, 3) for _, whole in totals],
        jobs=jobs,
    )


def read_the_disk() -> None:
    """Import once what the jobs import, unmeasured."""
    print("importing once what the jobs import, so that no way pays for a cold disk ...", flush=True)
    lines = [f"try: import {name}\nexcept ImportError: pass" for name in PRELOAD]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], stderr=subprocess.DEVNULL)


def _median(seconds: object) -> float:
    return round(statistics.median(seconds), 3)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
