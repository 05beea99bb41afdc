"""Which block of each parameter every rank holds after `booster.boost`: looked up by its values, not by a rule."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from handson import worker
from vit import SIZES


def record_blocks(model: torch.nn.Module, whole: Mapping[str, torch.Tensor], index: int) -> None:
    """Record on rank 0 a row `parameter` for each parameter; layers that are divided alike share a row.

    Args:
        model: what this rank holds.
        whole: every parameter of the model on one device, with the same values.
        index: this rank's place among those that share a tensor.

    Raises:
        ValueError: naming the parameter, when a rank's tensor is not the block that it should be.
    """
    layers = {path: type(layer).__name__ for path, layer in model.named_modules()}
    mine = {
        name: (find_block(name, held.detach().cpu(), whole[name], index), layers[name.rpartition(".")[0]])
        for name, held in model.named_parameters()
    }
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    alike: dict[str, list[dict[str, Any]]] = {}
    for name, tensor in whole.items():
        holders = {rank: held[name] for rank, held in enumerate(everyone) if name in held}
        shards = [
            {"rank": rank, "local_shape": [stop - start for start, stop in block], "block": block}
            for rank, (block, _) in holders.items()
        ]
        row = {"name": name, "layer": next(iter(holders.values()))[1], "global_shape": list(tensor.shape)}
        row |= {"notes": "", "shards": shards}
        alike.setdefault(f"{re.sub(LAYER, 'layer.*.', name)} on {list(holders)}", []).append(row)
    if dist.get_rank() == 0:
        for rows in alike.values():
            worker.record("parameter", **rows[0] | {"name": shared_name(rows), "count": len(rows)})


LAYER = r"layer\.(\d+)\."


def shared_name(rows: list[dict[str, Any]]) -> str:
    """`encoder.layer.0-1.…` for rows of layers 0 and 1, with a star for all layers."""
    first, last = rows[0]["name"], rows[-1]["name"]
    if not re.search(LAYER, first):
        return first
    numbers = re.search(LAYER, first)[1], re.search(LAYER, last)[1]
    which = "*" if len(rows) == SIZES.layers else "-".join(dict.fromkeys(numbers))
    return re.sub(LAYER, f"layer.{which}.", first)


def find_block(name: str, part: torch.Tensor, whole: torch.Tensor, index: int) -> list[list[int]]:
    """Where `part` lies in `whole`: [start, stop) of each dimension. Parts lie side by side in the order of ranks."""
    block = [[0, size] for size in whole.shape]
    for dim, (size, full) in enumerate(zip(part.shape, whole.shape, strict=True)):
        if size != full:
            block[dim] = [index * size, (index + 1) * size]
    expected = whole[tuple(slice(start, stop) for start, stop in block)]
    if not torch.equal(expected, part):
        raise ValueError(f"{name} of rank {dist.get_rank()}, {list(part.shape)}, is not the block {block} of the whole")
    return block
