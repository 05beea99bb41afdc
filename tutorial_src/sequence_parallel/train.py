"""Train a BERT whose sequences are shared among ranks, beside data and pipeline parallelism, or any mix of them.

    colossalai run --nproc_per_node 4 train.py -s
    torchrun --nproc_per_node 4 train.py -s
    torchrun --nproc_per_node 4 train.py -s PIPELINE_SIZE=2
    torchrun --nproc_per_node 2 train.py --text alice.txt ATTENTION=ring_online
    python train.py -s SEQUENCE_PARALLEL_SIZE=1

`-s` trains on made-up sentences in two languages, without it on a book (`--text FILE`, by default alice.txt).
`config.py` says how the ranks are divided; KEY=value replaces a line of it. Instead of training,

    --check      takes 5 SGD steps beside plain BERT on one device, and fails if a loss differs by over 1e-5
    --measure    times steps, and counts the memory and the communication of one step
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import bert_settings
from handson import worker

if TYPE_CHECKING:
    from collections.abc import Iterator

    from bert_settings import Settings
    from colossalai.legacy.engine import Engine
    from masked_text import Batch
    from mesh import Mesh


def main() -> None:
    """Read the settings, join the mesh, build this rank's part of the model; then train, check or measure it."""
    args = read_arguments()
    settings = read_settings(args)

    # The heavy modules are loaded from here on, with the repairs that this host needs.
    import mesh as meshes

    mesh = meshes.join(
        sequence=settings.sequence_parallel_size,
        pipeline=settings.pipeline_size,
        seed=settings.seed,
        config=settings.colossalai(worker.place().world_size),
    )
    import engine
    import masked_text
    import parity
    import report
    import torch

    batches = partial(masked_text.synthetic, settings)
    if not args.synthetic:
        batches = partial(masked_text.book, find_text(args.text), settings)

    model = engine.build(settings, mesh)
    report.describe(model, settings, mesh)
    if args.check:
        learner = engine.make_engine(model, settings, mesh, "sgd", settings.check_learning_rate)
        parity.check(model, settings, mesh, learner, next(batches(mesh)), next(batches(meshes.ALONE)))
    if args.measure:
        # Measured steps start afresh: another optimizer, and nothing left of the check.
        model = engine.build(settings, mesh) if args.check else model
        learner = engine.make_engine(model, settings, mesh, settings.optimizer, settings.learning_rate)
        report.measure(model, settings, mesh, learner, next(batches(mesh)))
    if not (args.check or args.measure):
        learner = engine.make_engine(model, settings, mesh, settings.optimizer, settings.learning_rate)
        train(settings, mesh, learner, batches(mesh))
    torch.distributed.destroy_process_group()


def read_arguments() -> argparse.Namespace:
    """The command line; a wrong one is answered in one sentence, by rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", default="config.py", help="a file of settings (default: config.py)")
    data = parser.add_mutually_exclusive_group()
    data.add_argument("-s", "--synthetic", action="store_true", help="made-up sentences in two languages")
    data.add_argument("--text", default="alice.txt", metavar="FILE", help="a text to learn (default: alice.txt)")
    parser.add_argument("--check", action="store_true", help="compare with the same model on one device")
    parser.add_argument("--measure", action="store_true", help="measure time, memory and communication")
    parser.add_argument("overrides", nargs="*", metavar="KEY=value", help="replaces a line of the configuration")
    parser.error = lambda message: worker.refuse(f"{message}; {' '.join(parser.format_usage().split())}")
    return parser.parse_intermixed_args()


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings of this run, refused before anything heavy is loaded if they cannot work."""
    file = bert_settings.FILE
    names, gpu_names = file.read(args.config, file.assignments(args.overrides))
    world_size = worker.place().world_size
    bert_settings.settle(names, world_size)
    settings = bert_settings.settle(names | (gpu_names if worker.preset() == "gpu" else {}), world_size)
    if args.check and settings.dropout:
        worker.refuse(f"--check needs the same model step by step, which DROPOUT={settings.dropout} is not; use 0.0")
    if not args.synthetic:
        find_text(args.text)
    return settings


def find_text(name: str) -> Path:
    """The text to learn, in the current folder or beside this script."""
    for path in (Path(name), Path(__file__).resolve().parent / name):
        if path.is_file():
            return path
    worker.refuse(f"there is no text {name}; the tutorial's own is alice.txt, and -s needs none")


def train(settings: Settings, mesh: Mesh, learner: Engine, batches: Iterator[Batch]) -> None:
    """The training loop: a step, and a line about it."""
    from engine import mean_loss, take_step

    for number in range(1, settings.steps + 1):
        batch = next(batches)
        began = time.perf_counter()
        loss = mean_loss(take_step(learner, batch), mesh)
        milliseconds = (time.perf_counter() - began) * 1e3
        worker.log(f"step {number:>3}/{settings.steps}   loss {loss:.4f}   {milliseconds:.3g} ms")
        worker.progress(number, settings.steps)
        if mesh.is_first():
            worker.record("loss", step=number, loss=loss)


if __name__ == "__main__":
    main()
