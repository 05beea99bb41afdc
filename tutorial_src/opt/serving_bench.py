"""Fine-tune a small OPT, serve it as a user would, send it load, and check and record what comes back.

    python serving_bench.py                 # one device: batching on and off, latency, other engines
    python serving_bench.py --tp 2          # the same model divided over two ranks
    python serving_bench.py --hold 120      # 64 clients for two minutes at the end, every answer checked

Beside this file and `run_clm.py`, which fine-tunes, everything is in `inference/`: the server (`opt_fastapi.py`), the
load generator (`load.py`) and the comparison with transformers' own engines (`compare_continuous.py`).
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handson import worker
from inference import bench_steps, load

if TYPE_CHECKING:
    # Started as processes, never imported; named so that a change of any of them makes this run's recording stale.
    import run_clm  # noqa: F401
    from inference import (  # noqa: F401
        answers,
        api,
        batcher,
        body_limit,
        checks,
        compare_continuous,
        engine,
        follower,
        followers,
        metrics,
        model_part,
        opt_fastapi,
        options,
        sampling,
        server,
        slots,
    )

# One device has the room for plain data parallelism, and in single precision no answer hangs on a rounding.
PLAIN = ("--strategy", "ddp", "--precision", "fp32", "--clip", "1")
ROWS = 32  # --max_batch_size
QUESTIONS = 64
COPIES = 12  # of the sentences in the text to learn, so that each stands at many places of a sequence
SHOWN = 12  # requests in the picture that opens the lesson
CROWD = 64  # clients of the last and longest load


@dataclass(frozen=True)
class Plan:
    """What is served and how much is asked of it."""

    model: str  # of run_clm.py, and after "opt-" of opt_fastapi.py
    fine_tune: tuple[str, ...]  # further arguments of run_clm.py
    lengths: tuple[int, ...]  # tokens of an answer, in turn
    clients: tuple[int, ...]  # with batching
    seconds: float  # of each load
    hold: float  # seconds of the last one, by a crowd of clients


PLANS = {
    "laptop": Plan(
        "tiny",
        (*PLAIN, "--steps", "160", "--batch_size", "8", "--sequence", "48", "--lr", "4e-3"),
        (8, 16, 24, 32),
        (1, 4, 16, 32),
        1.5,
        6.0,
    ),
    "gpu": Plan(
        "125m",
        (*PLAIN, "--steps", "160", "--batch_size", "16", "--sequence", "48", "--lr", "3e-4"),
        (8, 16, 32, 64),
        (1, 2, 4, 8, 16, 32),
        2.0,
        30.0,
    ),
}


def main() -> None:
    """Read the command line, fine-tune, then measure."""
    plan, device = PLANS[worker.preset()], "cuda" if worker.preset() == "gpu" else "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tp", type=int, default=1, help="ranks that share the model; above 1, only that is measured")
    parser.add_argument("--text", type=Path, default=load.TEXT, help="what the model learns a few sentences of")
    parser.add_argument("--hold", type=float, default=plan.hold, help="seconds of the last load, by 64 clients")
    parser.error = lambda message: worker.refuse(f"{message}; python serving_bench.py --help says what there is")
    options = parser.parse_args()
    if options.tp < 1 or options.hold <= 0:
        worker.refuse("--tp and --hold must be above 0")
    try:
        learned = load.excerpt(COPIES, options.text)
    except (OSError, ValueError) as error:
        worker.refuse(f"--text {options.text}: {error}")
    if worker.place().rank:
        return  # the server starts its ranks by itself; a job of as many ranks only says how many devices it may use
    with tempfile.TemporaryDirectory(prefix="opt-") as folder:
        checkpoint = bench_steps.fine_tune(plan.model, plan.fine_tune, learned, Path(folder, "tuned"))
        asked = load.with_truth(load.questions(QUESTIONS, plan.lengths, options.text), str(checkpoint), device=device)
        bench = bench_steps.Bench(f"opt-{plan.model}", checkpoint, asked, device, ROWS)
        if options.tp == 1:
            one_device(bench, plan, options.hold)
        else:
            divided(bench, plan, options.tp)


def one_device(bench: bench_steps.Bench, plan: Plan, hold: float) -> None:
    """One request at a time, then batches: what it answers, refuses, and how fast; then other engines."""
    with bench.server("one at a time", max_batch_size=1) as alone:
        bench.timeline(alone, SHOWN)
        bench.load(alone, 1, seconds=plan.seconds)
        bench.load(alone, ROWS, each=1)
    with bench.server("batched", max_batch_size=ROWS) as batched:
        bench.examples(batched)
        bench.refusals(batched)
        bench.timeline(batched, SHOWN)
        bench.parity(batched)
        for clients in plan.clients:
            bench.load(batched, clients, seconds=plan.seconds)
        bench.engine(batched)
        bench.load(batched, CROWD, seconds=hold)
        bench.metrics(batched)
        bench.drain(batched)
    bench.other_engines()


def divided(bench: bench_steps.Bench, plan: Plan, tp: int) -> None:
    """The same model, questions and loads on a server of several ranks."""
    with bench.server(f"tp {tp}", max_batch_size=ROWS, tp=tp) as server:
        bench.parity(server)
        for clients in (1, ROWS):
            bench.load(server, clients, seconds=plan.seconds)


if __name__ == "__main__":
    main()
