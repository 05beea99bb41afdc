"""How Colossal-AI divides the ranks into copies (data), pipeline stages, and rings that share a sequence.

Ranks count copy by copy, stage by stage, piece by piece: neighbours in a ring are neighbours in rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from handson import repairs, worker
from handson.repairs import legacy_cpu, legacy_engine, legacy_launch, legacy_layers, legacy_sequence, noise
from ring import Ring


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This rank's index on each axis ("data", "pipeline", "sequence"), each axis' size, and its ring.

    `repairs` names the repairs in force.
    """

    index: dict[str, int]
    size: dict[str, int]
    ring: Ring = field(repr=False)
    repairs: tuple[str, ...] = ()

    def is_first(self) -> bool:
        """Whether this is rank 0, the one that reports."""
        return not any(self.index.values())

    def gradient_ranks(self) -> int:
        """Over how many ranks Colossal-AI averages a gradient: all that hold the same weights."""
        return self.size["data"] * self.size["sequence"]

    def title(self) -> str:
        """The division in words: "data 2 x pipeline 1 x sequence 2"."""
        return " x ".join(f"{axis} {size}" for axis, size in self.size.items())


AXES = ("data", "pipeline", "sequence")
ALONE = Mesh(index=dict.fromkeys(AXES, 0), size=dict.fromkeys(AXES, 1), ring=Ring())


def join(*, sequence: int = 1, pipeline: int = 1, seed: int = 1024, config: dict[str, object] | None = None) -> Mesh:
    """Apply the repairs, join the process group and divide it; the ranks left over are data parallel.

    Args:
        sequence: how many ranks share a sequence.
        pipeline: how many stages a copy of the model has.
        seed: for Colossal-AI's random number generators.
        config: further entries of Colossal-AI's configuration, such as NUM_MICRO_BATCHES.

    Raises:
        ValueError: when the ranks cannot be divided so.
    """
    place, backend = worker.place(), worker.backend()
    if place.world_size % (sequence * pipeline):
        raise ValueError(f"{place.world_size} ranks cannot be divided into {pipeline} stages x {sequence} pieces")
    if backend == "gloo":
        # Colossal-AI asks torch whether there is a GPU; a job on the CPU must not see one that it cannot share.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    in_force = repairs.apply(noise, legacy_launch, legacy_cpu, legacy_engine, legacy_layers, legacy_sequence)

    import torch
    import torch.distributed as dist
    from colossalai import legacy
    from colossalai.legacy.context import ParallelMode as Axis
    from colossalai.legacy.core import global_context as gpc

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    legacy.launch(
        config=dict(parallel=dict(pipeline=dict(size=pipeline), tensor=dict(size=sequence, mode="sequence")))
        | (config or {}),
        rank=place.rank,
        world_size=place.world_size,
        host=place.host,
        port=place.port,
        backend=backend,
        local_rank=place.local_rank,
        seed=seed,
        verbose=False,
    )
    # NCCL wants all ranks of a group in its first call, and upstream's ring and pipeline send over the group of all.
    dist.all_reduce(torch.zeros(1, device=worker.device()))
    axes = {"data": Axis.DATA, "pipeline": Axis.PIPELINE, "sequence": Axis.SEQUENCE}
    there = {name: axis for name, axis in axes.items() if gpc.is_initialized(axis)}
    return Mesh(
        index=dict.fromkeys(axes, 0) | {name: gpc.get_local_rank(axis) for name, axis in there.items()},
        size=dict.fromkeys(axes, 1) | {name: gpc.get_world_size(axis) for name, axis in there.items()},
        ring=Ring(
            index=gpc.get_local_rank(Axis.SEQUENCE),
            ranks=tuple(gpc.get_ranks_in_group(Axis.SEQUENCE)),
            group=gpc.get_group(Axis.SEQUENCE),
        ),
        repairs=tuple(in_force),
    )
