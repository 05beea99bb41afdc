"""The bytes that a forward saves for its backward: every storage that autograd's graph keeps, counted once.

Hooks on autograd's saved tensors see each tensor that the graph takes; its storage counts with all its bytes, and
parameters, which exist anyway, are left out. A tensor that a `torch.autograd.Function` keeps as a plain attribute
instead of by `save_for_backward` is not seen. The count is the same in every run and on every device.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable

import torch


class SavedForBackward:
    """Context manager: the bytes that autograd's graph keeps alive for the backward, unique storages.

    `peak_bytes` is the most at one time (a pipeline that runs its backwards early keeps less than the sum),
    `total_bytes` the sum over everything that was saved inside the block. `exclude` names the tensors that
    exist anyway: the parameters.
    """

    def __init__(self, exclude: Iterable[torch.Tensor] = ()) -> None:
        self.peak_bytes = self.total_bytes = 0
        self._live = 0
        self._holders: Counter[int] = Counter()
        self._excluded = {storage_key(tensor) for tensor in exclude if has_storage(tensor)}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, _Saved.get)

    def __enter__(self) -> SavedForBackward:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)

    def _pack(self, tensor: torch.Tensor) -> _Saved:
        saved = _Saved(tensor)
        if has_storage(tensor) and (key := storage_key(tensor)) not in self._excluded:
            size = tensor.untyped_storage().nbytes()
            self._holders[key] += 1
            if self._holders[key] == 1:
                self._live += size
                self.total_bytes += size
                self.peak_bytes = max(self.peak_bytes, self._live)
            weakref.finalize(saved, self._release, key, size).atexit = False
        return saved

    def _release(self, key: int, size: int) -> None:
        self._holders[key] -= 1
        if self._holders[key] == 0:
            self._live -= size


class _Saved:
    """Stands for a saved tensor inside the graph; it dies when the graph lets go of the tensor."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def get(self) -> torch.Tensor:
        return self.tensor


def storage_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes that these tensors hold together, each storage once."""
    return sum({storage_key(t): t.untyped_storage().nbytes() for t in tensors if has_storage(t)}.values())


def storage_key(tensor: torch.Tensor) -> int:
    """Names the memory behind a tensor: views of one tensor have the same."""
    return tensor.untyped_storage()._cdata


def has_storage(value: object) -> bool:
    """Whether `value` is a tensor with memory behind it: not a fake, meta, sparse or wrapper tensor."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout == torch.strided
        and value.device.type != "meta"
        and torch._C._has_storage(value)
    )
