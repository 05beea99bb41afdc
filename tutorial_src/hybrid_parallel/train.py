"""Train one vision transformer under data, pipeline, 1D, 2D, 2.5D or 3D tensor parallelism, or any mix of them.

    colossalai run --nproc_per_node 4 train.py --config config.py -s
    torchrun --nproc_per_node 4 train.py --config config.py -s
    torchrun --nproc_per_node 4 train.py --config config.py -s \\
        PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=4 TENSOR_PARALLEL_MODE=2d
    python train.py --config config.py -s PIPELINE_SIZE=1 TENSOR_PARALLEL_SIZE=1

`-s` trains on synthetic images of CIFAR-10's shape, `--data DIR` on CIFAR-10 itself (fetched into DIR if it is not
there). `config.py` says how the ranks are divided; KEY=value replaces a line of it. Instead of training,

    --check      takes 5 SGD steps beside the same model on one device, and fails if a loss differs by over 1e-5
    --measure    times steps, and measures the memory and the communication of one step
    --trace      records when each rank computes and sends in a step, in the orders that a pipeline may follow

The model is titans' ViT, unchanged: Colossal-AI's layers ask the global context how they are divided.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import settings as config
from handson import repairs, worker
from handson.repairs import legacy_cpu, legacy_engine, legacy_launch, legacy_layers, noise, titans_imports

if TYPE_CHECKING:
    from colossalai.legacy.engine import Engine
    from images import Batch
    from settings import Settings
    from sharding import Mesh


def main() -> None:
    """Read the settings, join the mesh, build this rank's part of the model; then train, check, measure or trace it."""
    args = read_arguments()
    settings = read_settings(args)

    # The heavy modules are loaded from here on, with the repairs that this host needs.
    repairs.apply(noise, titans_imports, legacy_launch, legacy_cpu, legacy_engine, legacy_layers)
    mesh = join_mesh(settings)

    import images
    import parity
    import report
    import torch
    import tracing
    from engine import engine_of, make_engine
    from vit import build_part

    part = build_part(settings, mesh)
    report.describe(part, settings)
    if args.check:
        parity.check(part, settings, make_engine(part.model, "sgd", settings.check_learning_rate))
    if args.measure:
        # Measured steps start afresh: another optimizer, and nothing left of the check.
        part = build_part(settings, mesh) if args.check else part
        report.measure(part, settings, engine_of(part, settings))
    if args.trace:
        part = build_part(settings, mesh) if args.check or args.measure else part
        tracing.trace(part, settings, engine_of(part, settings))
    if not (args.check or args.measure or args.trace):
        batches = images.cifar10(args.data, settings, mesh) if args.data else images.synthetic(settings, mesh)
        train(settings, mesh, engine_of(part, settings), batches)
    torch.distributed.destroy_process_group()


def read_arguments() -> argparse.Namespace:
    """The command line; a wrong one is answered in one sentence, by rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a file of settings, such as config.py")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument("-s", "--synthetic", action="store_true", help="synthetic images of CIFAR-10's shape")
    data.add_argument("--data", metavar="DIR", help="the folder that holds CIFAR-10, or that it is fetched into")
    parser.add_argument("--check", action="store_true", help="compare with the same model on one device")
    parser.add_argument("--measure", action="store_true", help="measure time, memory and communication")
    parser.add_argument("--trace", action="store_true", help="record when each rank computes and sends")
    parser.add_argument("overrides", nargs="*", metavar="KEY=value", help="replaces a line of the configuration")
    parser.error = lambda message: worker.refuse(f"{message}; {' '.join(parser.format_usage().split())}")
    return parser.parse_intermixed_args()


def read_settings(args: argparse.Namespace) -> Settings:
    """The settings of this run, refused before anything heavy is loaded if they cannot work."""
    names, gpu_names = config.read(args.config, args.overrides)
    world_size = worker.place().world_size
    config.check_division(names, world_size)
    settings = config.settle(names | (gpu_names if worker.preset() == "gpu" else {}), world_size)
    if args.check and settings.dropout:
        worker.refuse(f"--check needs the same model step by step, which DROPOUT={settings.dropout} is not; use 0.0")
    if args.trace and settings.pipeline_size == settings.data_parallel_size(world_size) == 1:
        worker.refuse("--trace draws a pipeline or data-parallel ranks, and here is neither; use PIPELINE_SIZE=2")
    return settings


def join_mesh(settings: Settings) -> Mesh:
    """Join the process group, let Colossal-AI divide it, and say where this rank stands."""
    place, backend = worker.place(), worker.backend()
    if backend == "gloo":
        # Colossal-AI asks torch whether there is a GPU; a job on the CPU must not see one that it cannot share.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch
    from colossalai import legacy
    from sharding import mesh_of_this_rank

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    tensor = dict(size=settings.tensor_parallel_size, mode=settings.tensor_parallel_mode)
    if settings.tensor_parallel_mode == "2.5d":
        tensor["depth"] = settings.tensor_parallel_depth
    legacy.launch(
        config=dict(
            parallel=dict(pipeline=dict(size=settings.pipeline_size), tensor=tensor),
            NUM_MICRO_BATCHES=settings.num_micro_batches,
            clip_grad_norm=settings.clip_grad_norm,
        ),
        rank=place.rank,
        world_size=place.world_size,
        host=place.host,
        port=place.port,
        backend=backend,
        local_rank=place.local_rank,
        seed=settings.seed,
        verbose=False,
    )
    return mesh_of_this_rank()


def train(settings: Settings, mesh: Mesh, engine: Engine, batches: Iterator[Batch]) -> None:
    """Take STEPS steps and log each one's loss, averaged over the data-parallel ranks, and its time."""
    from engine import mean_loss, take_step

    for number in range(1, settings.steps + 1):
        batch = next(batches)
        began = time.perf_counter()
        loss = mean_loss(take_step(engine, batch), mesh)
        milliseconds = (time.perf_counter() - began) * 1e3
        worker.log(f"step {number:>3}/{settings.steps}   loss {loss:.4f}   {milliseconds:.3g} ms")
        worker.progress(number, settings.steps)
        if mesh.is_first():
            worker.record("loss", step=number, loss=loss)


if __name__ == "__main__":
    main()
