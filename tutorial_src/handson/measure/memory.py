"""The memory of one step on this rank, in bytes: its peak, and what the forward saves for the backward.

Peak. On CUDA it is the caching allocator's own peak (`reset_peak_memory_stats` before,
`max_memory_allocated` after). On the CPU, where the process's size says mostly how much Python was imported,
the live tensors are counted: a dispatch mode sees the storage of every operator's arguments and results,
adds its bytes when it is first seen, and a finalizer takes them off when the storage dies. Views share a
storage and count once. Scratch memory inside one operator is not seen, so the figure is a little below an
allocator's; it is the same in every run.

Saved for backward: see `saved.py`.
"""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from handson.measure.saved import SavedForBackward, has_storage, storage_bytes
from handson.measure.timing import uses_cuda

__all__ = ["PeakMemory", "SavedForBackward", "StepMemory", "step_memory", "storage_bytes"]

ALLOCATOR = "cuda allocator"
COUNTED = "live tensors, counted"


@dataclass(frozen=True)
class StepMemory:
    """Bytes of one step on one rank.

    `parameter_bytes`, `gradient_bytes` and `optimizer_bytes` are what is held after the step,
    `activation_bytes` the most that was saved for backward at one time, `peak_bytes` the most that was alive
    at one time, all kinds together; `method` says how the peak was found.
    """

    peak_bytes: int
    method: str
    parameter_bytes: int
    activation_bytes: int
    gradient_bytes: int
    optimizer_bytes: int

    def fields(self) -> dict[str, Any]:
        """The figures by name, ready for `worker.record("memory", **memory.fields())`."""
        return asdict(self)


def step_memory(
    step: Callable[[], object],
    *,
    model: torch.nn.Module | Iterable[torch.nn.Module | torch.Tensor],
    optimizer: Any = None,
    alive: Iterable[torch.Tensor] = (),
    device: torch.device | str | None = None,
) -> StepMemory:
    """Measure one call of `step`. Run at least one step before, so that optimizer states exist.

    Args:
        step: one whole step.
        model: the module or modules that this rank trains.
        optimizer: its optimizer, plain or wrapped (`.optim`, `.optimizer`), if it has one.
        alive: what else lives through the step and is this job's own: the batch, for example.
        device: where the step computes; by default CUDA when this process has started using it.
    """
    parts = [model] if isinstance(model, torch.nn.Module) else list(model)
    modules = [part for part in parts if isinstance(part, torch.nn.Module)]
    parameters = [part for part in parts if isinstance(part, torch.Tensor)]
    parameters += [parameter for module in modules for parameter in module.parameters()]
    buffers = [buffer for module in modules for buffer in module.buffers()]

    def gradients() -> list[torch.Tensor]:
        return [p.grad for p in parameters if p.grad is not None]

    held = [*parameters, *buffers, *gradients(), *_optimizer_tensors(optimizer), *alive]
    peak, saved = PeakMemory(alive=held, device=device), SavedForBackward(exclude=[*parameters, *buffers])
    del held  # a gradient that the step sets to None must be able to die
    with peak, saved:
        step()
    return StepMemory(
        peak_bytes=peak.peak_bytes,
        method=peak.method,
        parameter_bytes=storage_bytes(parameters),
        activation_bytes=saved.peak_bytes,
        gradient_bytes=storage_bytes(gradients()),
        optimizer_bytes=storage_bytes(_optimizer_tensors(optimizer)),
    )


class PeakMemory:
    """Context manager: the most bytes alive at one time inside the block.

    After the block, `peak_bytes` is the figure, `start_bytes` what was alive at its beginning, and `method`
    how it was found. `alive` names the tensors that exist already (the CPU cannot be asked for them);
    tensors that it leaves out count from their first use. Reference cycles are not collected inside the
    block, so that the figure does not depend on when Python chooses to look for them.
    """

    def __init__(self, alive: Iterable[torch.Tensor] = (), device: torch.device | str | None = None) -> None:
        self.on_cuda = uses_cuda(device)
        self.method = ALLOCATOR if self.on_cuda else COUNTED
        self.start_bytes = self.peak_bytes = 0
        self._device = torch.device(device or "cuda") if self.on_cuda else None
        self._counter = None if self.on_cuda else _LiveStorages()
        if self._counter:
            self._counter.see(alive)
        self._blocks = contextlib.ExitStack()

    def __enter__(self) -> PeakMemory:
        gc.collect()
        if gc.isenabled():
            gc.disable()
            self._blocks.callback(gc.enable)
        if self._counter:
            self.start_bytes = self._counter.live
            self._blocks.enter_context(self._counter)
        else:
            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self.start_bytes = torch.cuda.memory_allocated(self._device)
        return self

    def __exit__(self, *error: object) -> None:
        if self._counter:
            self.peak_bytes = self._counter.peak
            self._counter.stop()
        else:
            torch.cuda.synchronize(self._device)
            self.peak_bytes = torch.cuda.max_memory_allocated(self._device)
        self._blocks.close()


class _LiveStorages(TorchDispatchMode):
    """Adds a storage's bytes when an operator first touches it, and takes them off when it dies."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._finalizers: dict[int, weakref.finalize] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.see(tree_leaves((args, kwargs)))
        result = func(*args, **kwargs)
        self.see(tree_leaves(result))
        return result

    def see(self, values: Iterable[object]) -> None:
        """Count the storages among `values` that are new, and those that grew or shrank."""
        for value in values:
            if not has_storage(value) or value.device.type != "cpu":
                continue
            storage = value.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            known = self._sizes.get(key)
            if known is None:
                self._finalizers[key] = weakref.finalize(storage, self._died, key)
                self._finalizers[key].atexit = False
            if size != known:
                self._sizes[key] = size
                self.live += size - (known or 0)
                self.peak = max(self.peak, self.live)

    def stop(self) -> None:
        """Let go of the storages that are still alive."""
        for finalizer in self._finalizers.values():
            finalizer.detach()

    def _died(self, key: int) -> None:
        self.live -= self._sizes.pop(key)
        del self._finalizers[key]


def _optimizer_tensors(optimizer: Any) -> list[torch.Tensor]:
    """The tensors in an optimizer's state, through the wrappers that hold a plain one inside."""
    while optimizer is not None and not isinstance(getattr(optimizer, "state", None), dict):
        optimizer = getattr(optimizer, "optim", None) or getattr(optimizer, "optimizer", None)
    return [] if optimizer is None else [t for t in tree_leaves(list(optimizer.state.values())) if has_storage(t)]
