"""Today's colossalai (Booster and its plugins) on the CPU, over gloo: four small cures.

Its CPU accelerator was written before shardformer asked it for random numbers, and its pipeline asks torch for a
backend that torch does not know. With a GPU for each rank none of this shows.
"""

from __future__ import annotations

import inspect
import os

from handson import worker
from handson.repairs import Repair


def _cpu_was_asked_for() -> bool:
    """Whether this rank must stay on the CPU of a host that has GPUs: they are too few, or not wanted."""
    import torch

    return torch.cuda.is_available() and "RANK" in os.environ and worker.backend() == "gloo"


def _use_the_cpu() -> None:
    from colossalai.accelerator import set_accelerator

    set_accelerator("cpu")


def _on_the_cpu(fault: str, method: str) -> bool:
    from colossalai.accelerator import CpuAccelerator, get_accelerator

    return isinstance(get_accelerator(), CpuAccelerator) and fault in inspect.getsource(getattr(CpuAccelerator, method))


def _get_rng_state_of_the_cpu() -> None:
    import torch
    from colossalai.accelerator import CpuAccelerator

    CpuAccelerator.get_rng_state = lambda self, device=None: torch.get_rng_state()


def _seed_the_cpu() -> None:
    import torch
    from colossalai.accelerator import CpuAccelerator

    def manual_seed(self: CpuAccelerator, seed: int) -> None:
        torch.manual_seed(seed)

    CpuAccelerator.manual_seed = manual_seed


def _asks_for_hccl() -> bool:
    import torch.distributed as dist
    from colossalai.pipeline import p2p

    return not hasattr(dist, "is_hccl_available") and "is_hccl" in inspect.getsource(p2p._check_for_nccl_hccl_backend)


def _ask_for_nccl_alone() -> None:
    from colossalai.pipeline import p2p

    p2p._check_for_nccl_hccl_backend = p2p.check_for_nccl_backend


REPAIRS = (
    Repair(
        name="backend",
        area="booster on CPU",
        symptom="CUDA error: invalid device ordinal, with more ranks than GPUs, although backend='gloo' was asked for",
        cause="initialize.py:52 replaces launch_from_torch's argument `backend` by that of the first device it finds",
        upstream="",
        where="CPU, on a host that has GPUs",
        needed=_cpu_was_asked_for,
        patch=_use_the_cpu,
    ),
    Repair(
        name="rngstate",
        area="booster on CPU",
        symptom="RuntimeError: Failed to replace dropout of type Dropout with DropoutForReplicatedInput with the "
        "exception: get_rng_state() takes 0 positional arguments but 1 was given, as soon as TP > 1",
        cause="accelerator/cpu_accelerator.py:106 passes a device to torch.get_rng_state",
        upstream="",
        where="CPU",
        needed=lambda: _on_the_cpu("get_rng_state(device)", "get_rng_state"),
        patch=_get_rng_state_of_the_cpu,
    ),
    Repair(
        name="manualseed",
        area="booster on CPU",
        symptom="RuntimeError: Failed to replace dropout of type Dropout with DropoutForReplicatedInput with the "
        "exception: this method is not supported for cpu accelerator, as soon as TP > 1",
        cause="accelerator/cpu_accelerator.py:130 raises; shardformer/layer/utils.py:159 seeds each layer by it",
        upstream="",
        where="CPU",
        needed=lambda: _on_the_cpu("raise", "manual_seed"),
        patch=_seed_the_cpu,
    ),
    Repair(
        name="hccl",
        area="booster on CPU",
        symptom="AttributeError: module 'torch.distributed' has no attribute 'is_hccl_available', in a pipeline; on a "
        "CUDA build: type object 'Backend' has no attribute 'HCCL'",
        cause="pipeline/p2p.py:159 asks for Huawei's HCCL, which torch knows only beside torch_npu",
        upstream="",
        where="CPU, and CUDA when the ranks talk over gloo",
        needed=_asks_for_hccl,
        patch=_ask_for_nccl_alone,
    ),
)
