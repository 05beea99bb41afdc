"""Ordinary ResNet-50 code, traced, planned by an ILP solver, sharded as planned, and trained.

    colossalai run --nproc_per_node 4 auto_parallel_with_resnet.py -s
    torchrun --nproc_per_node 4 auto_parallel_with_resnet.py -s
    torchrun --nproc_per_node 2 auto_parallel_with_resnet.py -s --mesh 1x2

Not a line of the network knows that it will be divided. Rank 0 measures the links, lets the solver choose a strategy
for each node, and tells the others; then every rank trains its blocks on the same global batch of synthetic images.

    --check      compares output, gradients and five steps with the same model on one device
    --measure    times the plan, plain data parallelism and full replication, and measures their memory
    --budgets N  does so for plans under N smaller memory budgets
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import sharded
from handson import worker

# What a laptop runs in seconds, and what keeps an H200 busy: images of a step, their height and width.
SIZES = {"laptop": (16, 32), "gpu": (256, 224)}
CLASSES = 1000
LEAST = {"batch": 1, "size": 32, "steps": 1, "memory": 0, "budgets": 0}


def main() -> None:
    """Join the mesh, plan, train; then compare and measure, where that is asked for."""
    args = read_arguments()
    mesh = sharded.read_mesh(args.mesh, worker.place().world_size)
    batch, size = SIZES[worker.preset()]
    args.batch, args.size = args.batch or batch, args.size or size
    refuse_impossible(args)
    if args.batch % worker.place().world_size:
        worker.refuse(
            f"--batch {args.batch} cannot be shared by {worker.place().world_size} ranks; use a multiple of it"
        )
    device_mesh = sharded.join(mesh)

    import sharded_run
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    job = sharded_run.Job(args.model, CLASSES, args.batch, args.size, mesh, device_mesh)
    search, plan = sharded_run.find_plan(job, speeds=args.speeds, memory_budget=args.memory * 2**20)
    if args.csv and worker.place().rank == 0:
        sharded_run.write_csv(plan, Path(args.csv))
    if args.check:
        import sharded_parity

        sharded_parity.check(job, plan)
    if args.measure:
        import sharded_measure

        sharded_measure.measure(job, search, plan)
    if args.budgets:
        import sharded_measure

        sharded_measure.measure_budgets(job, search, plan, args.budgets)
    if not (args.check or args.measure or args.budgets):
        sharded_run.train(job, plan, args.steps)
    torch.distributed.destroy_process_group()


def refuse_impossible(args: argparse.Namespace) -> None:
    """Answer a number or a folder that cannot be before anything heavy is loaded."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if not least <= value < math.inf:
            worker.refuse(f"--{name} {value:g} cannot be; give {least} or more")
    if args.speeds and not (min(args.speeds[:2]) > 0 and args.speeds[2] >= 0 and all(map(math.isfinite, args.speeds))):
        given = " ".join(f"{speed:g}" for speed in args.speeds)
        worker.refuse(f"--speeds {given} cannot be; give MAC/s and bytes/s above 0 and a latency of 0 s or more")
    if args.csv and not Path(args.csv).absolute().parent.is_dir():
        worker.refuse(f"--csv {args.csv} is in a folder that does not exist; make it, or name another")


def read_arguments() -> argparse.Namespace:
    """The command line; a wrong one is answered in one sentence, by rank 0."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-s", "--synthetic", action="store_true", required=True, help="train on synthetic images")
    parser.add_argument("--mesh", default="", metavar="AxB", help="how the ranks are arranged; 2x2 for four")
    parser.add_argument("--model", default="resnet50", choices=("resnet18", "resnet50"))
    parser.add_argument("--batch", type=int, default=0, help="images of a step, of all ranks together")
    parser.add_argument("--size", type=int, default=0, help="height and width of an image, 32 or more")
    parser.add_argument("--steps", type=int, default=10, help="steps to train")
    parser.add_argument("--memory", type=float, default=0, metavar="MIB", help="memory budget of the plan, a device")
    parser.add_argument(
        "--speeds",
        type=float,
        nargs=3,
        metavar=("MAC_PER_S", "BYTES_PER_S", "LATENCY_S"),
        help="plan for a device and links of these speeds, in place of measured ones",
    )
    parser.add_argument("--csv", default="", metavar="FILE", help="write the plan's nodes here, its edges beside it")
    parser.add_argument("--check", action="store_true", help="compare with the same model on one device")
    parser.add_argument("--measure", action="store_true", help="measure the plan, and what one would do without it")
    parser.add_argument("--budgets", type=int, default=0, metavar="N", help="measure plans under N memory budgets")
    parser.error = lambda message: worker.refuse(f"{message}; {' '.join(parser.format_usage().split())}")
    return parser.parse_args()


if __name__ == "__main__":
    main()
