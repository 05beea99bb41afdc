"""Which block of each parameter a rank holds: a pure function of the layer's class and the rank's place in the mesh.

`Mesh` is that place. Global shapes are those of the model on one device, where a linear layer's weight is
[out_features, in_features]; the 2D, 2.5D and 3D layers store their block as [in, out], so it is marked transposed.

The same function cuts every rank's shard out of one full set of weights (equal seeds do not give equal weights: each
rank draws numbers for its own block), draws the sharding table, and tells the parity check what to compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from math import prod

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """This rank's index on each axis of the mesh, and each axis' size."""

    index: dict[str, int]
    size: dict[str, int]

    def is_first(self) -> bool:
        """Whether this is rank 0, the one that reports."""
        return not any(self.index.values())


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one rank holds of the model: its module, its place, the global shapes, and its stage's layers.

    `stage_layers` are the names on one device of the layers in this pipeline stage; None without a pipeline.
    """

    model: nn.Module
    mesh: Mesh
    shapes: dict[str, tuple[int, ...]]
    stage_layers: list[str] | None


@dataclass(frozen=True)
class Shard:
    """One rank's part of a global tensor: [start, stop) of each global dimension.

    `live` is False where the layer never reads this copy: it takes another rank's, and this one keeps old values.
    """

    block: tuple[tuple[int, int], ...]
    transposed: bool = False
    live: bool = True
    note: str = ""

    def of(self, full: torch.Tensor) -> torch.Tensor:
        """This part of the full tensor, laid out as the layer stores it."""
        part = full[tuple(slice(start, stop) for start, stop in self.block)]
        return part.transpose(0, 1) if self.transposed else part


@dataclass(frozen=True)
class Held:
    """A parameter as this rank holds it: its name on one device, the layer it belongs to, and the tensor itself."""

    name: str
    layer: nn.Module
    key: str
    tensor: nn.Parameter = field(repr=False)


def mesh_of_this_rank() -> Mesh:
    """Read the mesh from Colossal-AI's global context, under the names that the papers use."""
    from colossalai.legacy.context import ParallelMode as Axis
    from colossalai.legacy.core import global_context as gpc

    # A "row" group holds the ranks of one row, so this rank's index in it is its column.
    axes = {
        "data": Axis.DATA,
        "pipeline": Axis.PIPELINE,
        "tensor": Axis.TENSOR,
        "row": Axis.PARALLEL_2D_COL,
        "col": Axis.PARALLEL_2D_ROW,
        "input": Axis.PARALLEL_3D_INPUT,
        "weight": Axis.PARALLEL_3D_WEIGHT,
        "output": Axis.PARALLEL_3D_OUTPUT,
    }
    if gpc.is_initialized(Axis.PARALLEL_2P5D_DEP):
        axes |= {"row": Axis.PARALLEL_2P5D_COL, "col": Axis.PARALLEL_2P5D_ROW, "dep": Axis.PARALLEL_2P5D_DEP}
    alone = ("data", "pipeline", "tensor")  # these three are always named, also with one rank each
    there = {name: axis for name, axis in axes.items() if gpc.is_initialized(axis)}
    index = dict.fromkeys(alone, 0) | {name: gpc.get_local_rank(axis) for name, axis in there.items()}
    size = dict.fromkeys(alone, 1) | {name: gpc.get_world_size(axis) for name, axis in there.items()}
    return Mesh(index=index, size=size)


def held_parameters(part: Part) -> Iterator[Held]:
    """The parameters of this rank under their names on one device.

    Titans' layers come wrapped once or twice (`.module`), and a pipeline stage numbers its layers from 0.
    """
    modules = dict(part.model.named_modules())
    for path, tensor in part.model.named_parameters():
        parent, _, key = path.rpartition(".")
        names = [name for name in path.split(".") if name != "module"]
        if part.stage_layers is not None:
            _, position, *names = names  # "_module_list", "3", ...
            names = [part.stage_layers[int(position)], *names]
        yield Held(".".join(names), modules[parent], key, tensor)


def shard_of(layer: nn.Module, key: str, shape: tuple[int, ...], mesh: Mesh) -> Shard:
    """The part of the global tensor `key` (of this shape) that the rank at this place of the mesh holds."""
    kind = type(layer).__name__
    at, size = mesh.index, mesh.size
    # dimension -> (this rank's block, number of blocks)
    cuts: dict[int, tuple[int, int]] = {}
    transposed, live, note = False, True, ""
    last = len(shape) - 1
    features = last if key in ("cls_token", "pos_embed") else 0

    if kind == "Linear1D_Col":
        cuts = {0: (at["tensor"], size["tensor"])}
    elif kind in ("Linear1D_Row", "Classifier1D") and key == "weight":
        cuts = {1: (at["tensor"], size["tensor"])}
    elif kind.endswith("2D") or kind.endswith("2p5D"):
        q = size["row"]
        row, col = at["row"], at["col"]
        both = (col * q + row, q * q)  # a vector goes over the whole square, column by column
        if kind.startswith("Linear") and key == "weight":
            cuts, transposed = {0: (col, q), 1: (row, q)}, True
        elif kind.startswith("PatchEmbedding"):
            cuts = {features: both}
        elif kind.startswith("Classifier"):
            cuts = {last: both} if key == "weight" else {}
        elif kind.endswith("2D"):
            cuts = {0: both}
        else:
            cuts, live = {0: (col, q)}, row == 0
            note = "row 0's copy is used, the other rows keep their first values"
    elif kind.endswith("3D"):
        q = size["weight"]
        # Input and output swap roles from one linear layer to the next; each layer knows its own.
        into, out = _axis(layer.input_parallel_mode), _axis(layer.output_parallel_mode)
        if kind == "Linear3D" and key == "weight":
            cuts, transposed = {0: (at[into], q), 1: (at[out] * q + at["weight"], q * q)}, True
        elif kind == "Linear3D":
            cuts = {0: (at[into], q)}
        elif kind == "Classifier3D":
            if key == "weight":
                cuts, live = {1: (at[out], q)}, at[into] == at[out]
                note = f"updated where {into} = {out}, copied to the others in each forward pass"
        else:
            cuts = {features: (at[out], q)}

    block = []
    for dim, length in enumerate(shape):
        which, of = cuts.get(dim, (0, 1))
        block.append((length * which // of, length * (which + 1) // of))
    return Shard(tuple(block), transposed, live, note)


def _axis(mode: object) -> str:
    """The mesh's name, "input" or "output", of Colossal-AI's PARALLEL_3D_INPUT or PARALLEL_3D_OUTPUT."""
    return mode.name.rpartition("_")[2].lower()


def full_weights(
    shapes: dict[str, tuple[int, ...]], seed: int, names: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """These tensors of one full set of weights, the same on every rank and under every division.

    Each tensor's numbers follow from its name and the seed alone. None of them starts at 0 or 1 throughout, so that a
    block in the wrong place changes the loss.
    """
    for name in filter(names.__contains__, shapes):
        shape = shapes[name]
        generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
        uniform = torch.rand(shape, generator=generator).mul_(2).sub_(1)
        if len(shape) in (2, 4):  # linear layers and the patch embedding: PyTorch's own bound
            yield name, uniform.div_(prod(shape[1:]) ** 0.5)
        elif ".norm" in f".{name}" and name.endswith("weight"):
            yield name, uniform.mul_(0.05).add_(1)
        else:
            yield name, uniform.mul_(0.05)


def load_shards(part: Part, seed: int) -> None:
    """Give this rank's model its part of the full weights.

    Raises:
        ValueError: naming the parameter, when the layer's tensor has another shape than the rule says.
    """
    held = {mine.name: mine for mine in held_parameters(part)}
    if unknown := held.keys() - part.shapes.keys():
        raise ValueError(f"this model has parameters that no rule speaks of: {', '.join(sorted(unknown))}")
    for name, full in full_weights(part.shapes, seed, held.keys()):
        mine = held[name]
        block = shard_of(mine.layer, mine.key, part.shapes[name], part.mesh).of(full)
        if block.shape != mine.tensor.shape:
            kind = type(mine.layer).__name__
            raise ValueError(f"{name} ({kind}) is {list(mine.tensor.shape)} here, the rule says {list(block.shape)}")
        with torch.no_grad():
            mine.tensor.copy_(block)
