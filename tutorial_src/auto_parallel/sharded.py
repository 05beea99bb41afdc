"""A plan put to work: this rank's blocks of the parameters, and the communication between the nodes of the graph.

Colossal-AI's passes rewrite the traced graph: each module keeps its block of every parameter, each node whose input is
sharded otherwise than it wants gets a resharding before it, each gradient that is a sum over ranks gets a hook. What
they leave undone (batch norm over the whole batch, for one) is in handson/repairs/auto_parallel.py.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handson import repairs, worker
from solver import AREAS

if TYPE_CHECKING:
    from colossalai.device.device_mesh import DeviceMesh
    from colossalai.tensor.sharding_spec import ShardingSpec
    from solver import Plan, Search
    from torch import Tensor, nn


def read_mesh(text: str, ranks: int) -> tuple[int, int]:
    """`2x2` as (2, 2); without a text the most even mesh of these ranks. Refuses in one sentence what cannot be."""
    if not text:
        rows = max(size for size in range(1, math.isqrt(ranks) + 1) if ranks % size == 0)
        text = f"{rows}x{ranks // rows}"
    sizes = text.lower().split("x")
    if len(sizes) != 2 or not all(size.isdigit() and int(size) > 0 for size in sizes):
        worker.refuse(f"--mesh {text} is no mesh; write for example --mesh 2x2")
    mesh = (int(sizes[0]), int(sizes[1]))
    if math.prod(mesh) != ranks or ranks < 2:
        worker.refuse(
            f"a {mesh[0]}x{mesh[1]} mesh has {math.prod(mesh)} devices and this job has {ranks} "
            f"rank{'s' * (ranks != 1)}; a mesh needs two ranks or more, one for each device"
        )
    return mesh


def join(mesh: tuple[int, int]) -> DeviceMesh:
    """Join the process group and make Colossal-AI's mesh of its ranks, with a process group along each axis."""
    worker.place()
    backend = worker.backend()
    if backend == "gloo":
        # Colossal-AI asks torch whether there is a GPU; a job on the CPU must not see one that it cannot share.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""

    import torch
    import torch.distributed as dist

    if backend == "nccl":
        torch.cuda.set_device(worker.device())
    dist.init_process_group(backend)
    repairs.apply(*AREAS)
    from colossalai.device.device_mesh import DeviceMesh

    ranks = torch.arange(math.prod(mesh))
    return DeviceMesh(ranks, mesh, init_process_group=True, device=worker.device().type)


def shard(search: Search, plan: Plan) -> Sharded:
    """Rewrite the search's model as the plan says. The model is used up: its parameters become this rank's blocks."""
    from colossalai.auto_parallel.tensor_shard import initialize as upstream

    graph_module, specs = upstream.transform_to_sharded_model(
        search.graph_module, search.inputs, plan.solution, search.device_mesh, search._constructor
    )
    return Sharded(model=upstream.ModuleWrapper(graph_module, *specs), specs=_parameter_specs(graph_module))


@dataclass(frozen=True)
class Sharded:
    """A model that this rank trains its blocks of. `specs` says how each parameter, by its own name, is split."""

    model: nn.Module
    specs: dict[str, ShardingSpec]

    def block(self, name: str, full: Tensor) -> Tensor:
        """This rank's block of a full tensor that is split like the parameter of this name."""
        spec = self.specs[name]
        for dimension, mesh_axes in spec.dim_partition_dict.items():
            for axis in mesh_axes:
                group = spec.device_mesh.get_process_group(axis)
                full = full.chunk(group.size(), dimension)[group.rank()]
        return full

    def parameters(self) -> dict[str, nn.Parameter]:
        """This rank's blocks by the names that they have in the ordinary model."""
        return {name.removeprefix("module."): block for name, block in self.model.named_parameters()}


def _parameter_specs(graph_module: nn.Module) -> dict[str, ShardingSpec]:
    specs = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            for name, _ in graph_module.get_submodule(node.target).named_parameters():
                specs[f"{node.target}.{name}"] = node.best_strategy.get_sharding_spec_by_name(name)
        elif node.op == "get_attr":
            specs[node.target] = node.sharding_spec
    return specs
