"""The largest OPT that trains within a memory cap, under each strategy, found by search over the sizes.

    python largest.py
    python largest.py --caps 8,24 --strategies ddp,gemini-offload --host_gb 110 --seconds 300
    torchrun --nproc_per_node 4 largest.py

On a GPU the sizes are the published ones and the caps those of smaller GPUs, in GB; on the CPU the sizes are this
tutorial's own, and the caps MiB. On one rank the search climbs a staircase: a size that trains makes room for the next
size, one that does not for the next cap, since whatever fits within a cap fits within a larger one. On several ranks
the formula says which size to train, and one that does not fit after all makes room for the next smaller one: on GPUs
that is left to the formula, as a rank that runs out of memory would leave the others waiting. On one GPU each trial has
a process of its own, and what the formula puts far above a cap is not tried.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import strategies
from handson import worker


@dataclass(frozen=True)
class Preset:
    """What is searched: caps in `unit` bytes (none: a GPU's whole memory), and the task of each rank."""

    strategies: tuple[str, ...]
    caps: tuple[float, ...]
    unit: int
    batch: int
    sequence: int
    seconds: float


OFFLOADING = ("gemini-offload", "zero2-offload", "gemini-auto")
PRESETS = {
    # (preset, on one rank); on one rank ZeRO without offload is plain data parallelism
    ("gpu", True): Preset(("ddp", "gemini-static", *OFFLOADING), (8, 16, 24, 40), 10**9, 4, 512, 190),
    ("gpu", False): Preset(("ddp", "zero2", "gemini-static"), (), 10**9, 4, 1024, 100),
    ("laptop", True): Preset(("ddp", "gemini-static"), (6, 12, 24), 2**20, 2, 32, 600),
    ("laptop", False): Preset(("ddp", "zero1", "zero2", "gemini-static"), (12,), 2**20, 2, 32, 600),
}
HOST_GB = 110.0  # of the host's memory that offloading may take


def main(argv: list[str] | None = None) -> None:
    """Search for each strategy in turn."""
    place = worker.place()
    args = read(argv)
    from supervised import shared_folder

    if place.world_size == 1 and worker.preset() == "gpu":
        with shared_folder() as folder:
            climb(args, folder)
        return
    strategies.repair()
    import colossalai
    import torch.distributed as dist

    colossalai.launch_from_torch(verbose=False)
    climb(args)
    dist.destroy_process_group()


def climb(args: argparse.Namespace, folder: Path | None = None) -> None:
    """Search for one strategy after another; with a folder, each trial in a process of its own."""
    from search import Search

    search = Search(args, folder)
    search.describe()
    for done, strategy in enumerate(args.strategies, start=1):
        search.climb(strategy)
        worker.progress(done, len(args.strategies))


def read(argv: list[str] | None) -> argparse.Namespace:
    """The command line; a mistake is refused in one sentence."""
    ranks, preset = worker.place().world_size, worker.preset()
    usual = PRESETS[preset, ranks == 1]
    parser = argparse.ArgumentParser(description="The largest OPT that trains within a memory cap.")
    add = parser.add_argument
    add("--strategies", default=",".join(usual.strategies), help="separated by commas")
    add("--caps", default=",".join(f"{cap:g}" for cap in usual.caps), help="GB on a GPU, MiB on a CPU")
    add("--batch_size", type=int, default=usual.batch, help="sequences of one rank")
    add("--sequence", type=int, default=usual.sequence, help="tokens in a sequence")
    add("--host_gb", type=float, default=HOST_GB, help="the host's memory that offloading may take, in GB")
    add("--seconds", type=float, default=usual.seconds, help="what would take longer is not tried")
    parser.error = lambda message: worker.refuse(f"{message}; python largest.py --help says what there is")
    args = parser.parse_args(argv)
    args.strategies = tuple(args.strategies.split(","))
    for strategy in args.strategies:
        if refusal := strategies.why_not(strategy, "bf16"):
            worker.refuse(refusal)
    try:
        args.caps = (
            tuple(sorted(float(cap) for cap in args.caps.split(","))) if args.caps else (_whole_gpu(usual.unit),)
        )
    except ValueError:
        worker.refuse(f"--caps {args.caps} must be numbers, separated by commas")
    if min(args.caps[0], args.batch_size, args.sequence, args.host_gb, args.seconds) <= 0:
        worker.refuse("--caps, --batch_size, --sequence, --host_gb and --seconds must all be above 0")
    args.unit = usual.unit
    return args


def _whole_gpu(unit: int) -> float:
    import torch

    return torch.cuda.get_device_properties(worker.device()).total_memory // unit


if __name__ == "__main__":
    main()
