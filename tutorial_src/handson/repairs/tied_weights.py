"""Checkpoints of a model whose output head is its word embedding, one tensor with two names, on a CPU."""

from __future__ import annotations

import functools
from typing import Any

from handson.repairs import Repair, rebind


def _one_tensor_twice_is_refused() -> bool:
    """On a GPU each name's tensor is copied to the host by itself, so that nothing is shared any more."""
    import safetensors.torch
    import torch
    from colossalai.accelerator import get_accelerator

    shared = torch.zeros(1)
    try:
        safetensors.torch.save({"one": shared, "two": shared})
    except RuntimeError:
        return get_accelerator().name == "cpu"
    return False


def _copy_what_is_shared() -> None:
    """Write a tensor under each of its names, as happens on a GPU anyway; whoever loads it ties them again."""
    import torch
    from colossalai.checkpoint_io import utils
    from torch.utils._pytree import tree_leaves

    save_state_dict = utils.save_state_dict

    @functools.wraps(save_state_dict)
    def save_each_by_itself(state_dict: dict[str, Any], *args: Any, **options: Any) -> None:
        seen: set[int] = set()
        apart = {}
        for name, value in state_dict.items():
            stores = {leaf.untyped_storage()._cdata for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)}
            apart[name] = value.clone() if isinstance(value, torch.Tensor) and stores & seen else value
            seen |= stores
        save_state_dict(apart, *args, **options)

    utils.save_state_dict = save_each_by_itself
    rebind("colossalai", save_state_dict, save_each_by_itself)


REPAIRS = (
    Repair(
        name="tiedweights",
        area="checkpoints",
        symptom="saving OPT as safetensors: RuntimeError: Some tensors share memory, this will lead to duplicate "
        "memory on disk",
        cause="colossalai/checkpoint_io/utils.py:490 (save_state_dict) hands safetensors the word embedding and the "
        "output head, which are one tensor; on a GPU copying them to the host makes two of it",
        upstream="",
        where="CPU",
        needed=_one_tensor_twice_is_refused,
        patch=_copy_what_is_shared,
    ),
)
