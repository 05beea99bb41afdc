"""colossalai.legacy asks CUDA for things that every device has; without a GPU it cannot start. Five small cures.

The random number generator of the CPU, the CPU as "current device", and no waiting for a stream that is not there
stand in for CUDA's, in exactly the modules that ask. The rest of torch stays as it is.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

from handson.repairs import Repair

RNG_MODULES = ("context.random.seed_manager", "context.random._helper", "pipeline.pipelinable")
DEVICE_MODULES = (
    "communication.utils",
    "utils.common",
    "engine.gradient_handler._pipeline_parallel_gradient_handler",
)


class _OnCpu(ModuleType):
    """A module as these callers should see it: `instead` first, all else from the real one."""

    def __init__(self, real: ModuleType, **instead: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(instead, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _torch_on_cpu() -> ModuleType:
    import torch

    cuda = _OnCpu(
        torch.cuda,
        get_rng_state=torch.get_rng_state,
        set_rng_state=torch.set_rng_state,
        manual_seed=torch.manual_seed,
        current_device=lambda: torch.device("cpu"),
    )
    return _OnCpu(torch, cuda=cuda)


def _give(modules: tuple[str, ...]) -> None:
    for name in modules:
        importlib.import_module(f"colossalai.legacy.{name}").torch = _torch_on_cpu()


def _register_seeds() -> None:
    from colossalai.legacy.context import ParallelMode
    from colossalai.legacy.context.parallel_context import ParallelContext
    from colossalai.legacy.context.random import add_seed, set_mode

    original = ParallelContext.set_seed

    def set_seed(self: ParallelContext, seed: int) -> None:
        original(self, seed)
        # As on CUDA: one stream that all tensor-parallel ranks share, and one of each rank's own.
        add_seed(ParallelMode.DATA, seed)
        if self.is_initialized(ParallelMode.TENSOR):
            stage = self._local_ranks.get(ParallelMode.PIPELINE, 0)
            add_seed(ParallelMode.TENSOR, seed + self.get_local_rank(ParallelMode.TENSOR) + 1024 * stage)
        set_mode(ParallelMode.DATA)

    ParallelContext.set_seed = set_seed


def _ddp_without_device_ids() -> None:
    from torch.nn.parallel import DistributedDataParallel

    # By its path: `from colossalai.legacy import initialize` gives the function of that name.
    initialize = importlib.import_module("colossalai.legacy.initialize")

    class DistributedDataParallelOnCpu(DistributedDataParallel):
        """DDP wants no `device_ids` for a model on the CPU."""

        def __init__(self, *args: Any, device_ids: object = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    initialize.DDP = DistributedDataParallelOnCpu
    initialize.torch = _torch_on_cpu()


def _synchronize_nothing() -> None:
    from colossalai.accelerator import CpuAccelerator

    CpuAccelerator.synchronize = lambda self, device=None: None


def _without_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


NO_CUDA = "AssertionError: Torch not compiled with CUDA enabled"

REPAIRS = (
    Repair(
        name="rng",
        area="legacy on CPU",
        symptom=f"{NO_CUDA}, from SeedManager and PipelinableContext",
        cause="torch.cuda.get_rng_state() in legacy/context/random/seed_manager.py:80, pipeline/pipelinable.py:56",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=lambda: _give(RNG_MODULES),
    ),
    Repair(
        name="seed",
        area="legacy on CPU",
        symptom="KeyError: <ParallelMode.TENSOR: 'tensor'> when a tensor-parallel layer initialises its weights",
        cause="legacy/context/parallel_context.py:550 registers the seeds only if torch.cuda.is_available()",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=_register_seeds,
    ),
    Repair(
        name="dev",
        area="legacy on CPU",
        symptom=f"{NO_CUDA}, from a pipeline between 1D tensor-parallel stages and from gradient clipping",
        cause="legacy/communication/utils.py:124, legacy/utils/common.py:122: torch.cuda.current_device()",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=lambda: _give(DEVICE_MODULES),
    ),
    Repair(
        name="ddp",
        area="legacy on CPU",
        symptom=f"{NO_CUDA}, from legacy.initialize as soon as there are two data-parallel ranks",
        cause="legacy/initialize.py:391: DDP(device_ids=[torch.cuda.current_device()])",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=_ddp_without_device_ids,
    ),
    Repair(
        name="sync",
        area="legacy on CPU",
        symptom="RuntimeError: this method is not supported for cpu accelerator, at the first transfer of a pipeline",
        cause="accelerator/cpu_accelerator.py:61 raises; legacy/communication/p2p.py:174 calls it after every transfer",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=_synchronize_nothing,
    ),
)
