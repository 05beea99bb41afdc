"""Colossal-AI's auto-parallel, the run: meshes and links on any device, and a sharded model that is the same model.

Every gradient is reduced and batch norm sees the whole batch, as the strategies say.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from typing import TYPE_CHECKING

from handson.repairs import Repair
from handson.repairs.auto_parallel import Instead

if TYPE_CHECKING:
    import torch
    from colossalai.device.device_mesh import DeviceMesh


def _flatten_forgets_the_device() -> bool:
    from colossalai.device.device_mesh import DeviceMesh

    return "device=" not in inspect.getsource(DeviceMesh.flatten)


def _flatten_once_and_on_the_same_device() -> None:
    from colossalai.device.device_mesh import DeviceMesh

    def flatten(self: DeviceMesh) -> DeviceMesh:
        """The mesh as one line of devices; always the same object, since making one makes a process group."""
        if getattr(self, "_flat", None) is None:
            self._flat = DeviceMesh(
                self._physical_mesh_id,
                (self.num_devices,),
                mesh_alpha=[max(self.mesh_alpha)],
                mesh_beta=[max(self.mesh_beta)],
                init_process_group=self._init_process_group,
                device=self._device,
            )
        return self._flat

    DeviceMesh.flatten = flatten


def _gradients_are_reduced_in_a_copy() -> bool:
    from colossalai.tensor import comm_spec

    return "tensor = tensor.contiguous()" in inspect.getsource(comm_spec._all_reduce)


def _reduce_the_gradient_itself() -> None:
    from colossalai.auto_parallel.passes import runtime_preparation_pass
    from colossalai.tensor import comm_spec

    original = comm_spec._all_reduce

    @functools.wraps(original)
    def _all_reduce(tensor, comm_spec, async_op=False):
        reduced = original(tensor, comm_spec, async_op and tensor.is_contiguous())
        # A gradient's hook looks at `tensor` alone, and drops what is returned.
        return tensor if reduced is tensor else tensor.copy_(reduced)

    comm_spec._all_reduce = runtime_preparation_pass._all_reduce = _all_reduce


def _without_gpu() -> bool:
    import torch

    return not torch.cuda.is_available()


def _overlap_nothing() -> None:
    import torch
    from colossalai.auto_parallel.passes import runtime_preparation_pass

    # A stream is made always, and used only where the caller asks to overlap, which needs CUDA.
    cuda = Instead(torch.cuda, Stream=lambda: None)
    runtime_preparation_pass.torch = Instead(torch, cuda=cuda)


def _sync_bn_is_a_label() -> bool:
    from colossalai.auto_parallel.passes import runtime_preparation_pass as upstream

    return "# gm = implicit_comm_action_apply(gm)" in inspect.getsource(upstream.runtime_preparation_pass)


def _synchronise_batch_norms() -> None:
    from colossalai.auto_parallel.tensor_shard import initialize

    original = initialize.transform_to_sharded_model

    @functools.wraps(original)
    def transform_to_sharded_model(gm, meta_args, solution, device_mesh, strategies_constructor, overlap=False):
        from handson.batch_norm import synchronise

        transformed = original(gm, meta_args, solution, device_mesh, strategies_constructor, overlap)
        for node in gm.graph.nodes:
            strategy = getattr(node, "best_strategy", None)
            if strategy is not None and strategy.name.endswith("WITH SYNC_BN"):
                # The axes that split the batch, and so each channel's values. The graph has been rewired since, so
                # the input is found by its kind: batch norm has one activation as argument.
                (spec,) = strategy.argument_sharding_specs.values()
                axes = spec.dim_partition_dict[0]
                mesh, axis = (device_mesh, axes[0]) if len(axes) == 1 else (device_mesh.flatten(), 0)
                synchronise(gm.get_submodule(node.target), mesh.get_process_group(axis))
        return transformed

    initialize.transform_to_sharded_model = transform_to_sharded_model


# What the profiler sends at most on a CPU; upstream sends 1 GiB, thirty times, between each two ranks.
CPU_MEGABYTES = 4


def _profile_on_cpu() -> None:
    import torch
    from colossalai.device import alpha_beta_profiler

    cuda = Instead(
        torch.cuda,
        current_device=lambda: torch.device("cpu"),
        synchronize=lambda: None,
        mem_get_info=lambda device: (CPU_MEGABYTES << 20, CPU_MEGABYTES << 20),
    )
    alpha_beta_profiler.torch = Instead(torch, cuda=cuda)
    alpha_beta_profiler.GB = CPU_MEGABYTES << 20


def _mesh_shape_is_a_stub() -> bool:
    from colossalai.auto_parallel.tensor_shard import initialize

    return "TODO: implement" in inspect.getsource(initialize.extract_alpha_beta_for_device_mesh)


def _take_the_slowest_link_of_each_axis() -> None:
    from colossalai.auto_parallel.tensor_shard import initialize

    def extract_alpha_beta_for_device_mesh(
        alpha_beta_dict: dict[tuple[int, int], tuple[float, float]], logical_mesh_shape: torch.Tensor
    ) -> tuple[list[float], list[float]]:
        """Latency and time a byte of each axis of the mesh (its caller gives the mesh of ranks, not its shape)."""
        mesh_alpha, mesh_beta = [], []
        for axis in range(logical_mesh_shape.dim()):
            lines = logical_mesh_shape.movedim(axis, -1).reshape(-1, logical_mesh_shape.shape[axis]).tolist()
            links = [alpha_beta_dict[pair] for line in lines for pair in itertools.pairwise(line)]
            mesh_alpha.append(max((alpha for alpha, _ in links), default=0.0))
            # As upstream's own extract_alpha_beta_for_device_mesh: enlarged, since computing is counted, not timed.
            mesh_beta.append(1e10 * max((beta for _, beta in links), default=0.0))
        return mesh_alpha, mesh_beta

    initialize.extract_alpha_beta_for_device_mesh = extract_alpha_beta_for_device_mesh


def _mesh_is_always_cuda() -> bool:
    from colossalai.auto_parallel.tensor_shard import initialize

    return _without_gpu() and "device=" not in inspect.getsource(initialize.initialize_device_mesh)


def _make_the_mesh_on_cpu() -> None:
    from colossalai.auto_parallel.tensor_shard import initialize
    from colossalai.device.device_mesh import DeviceMesh

    initialize.DeviceMesh = functools.partial(DeviceMesh, device="cpu")


REPAIRS = (
    Repair(
        name="flatten",
        area="auto-parallel",
        symptom="RuntimeError: No backend type associated with device type cpu, or: ProcessGroupNCCL is only supported "
        "with GPUs, no GPUs found!; on GPUs a process group more at each call",
        cause="device/device_mesh.py:492 drops device= and makes a new mesh at each call",
        upstream="",
        where="CPU and CUDA",
        needed=_flatten_forgets_the_device,
        patch=_flatten_once_and_on_the_same_device,
    ),
    Repair(
        name="stream",
        area="auto-parallel",
        symptom="RuntimeError: torch.cuda.Stream requires CUDA support",
        cause="auto_parallel/passes/runtime_preparation_pass.py:392 makes a stream also where nothing overlaps",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=_overlap_nothing,
    ),
    Repair(
        name="hook",
        area="auto-parallel",
        symptom="no error, and wrong gradients: those that are not contiguous in memory are not reduced",
        cause="tensor/comm_spec.py:80 reduces a contiguous copy; runtime_preparation_pass.py:424 drops it",
        upstream="",
        where="CPU and CUDA",
        needed=_gradients_are_reduced_in_a_copy,
        patch=_reduce_the_gradient_itself,
    ),
    Repair(
        name="sync_bn",
        area="auto-parallel",
        symptom="no error: `WITH SYNC_BN` normalises each rank's share of the batch by itself, and the loss differs",
        cause="auto_parallel/passes/runtime_preparation_pass.py:513: implicit_comm_action_apply is empty",
        upstream="",
        where="CPU and CUDA",
        needed=_sync_bn_is_a_label,
        patch=_synchronise_batch_norms,
    ),
    Repair(
        name="profiler",
        area="auto-parallel",
        symptom="AssertionError: Torch not compiled with CUDA enabled, from AlphaBetaProfiler",
        cause="device/alpha_beta_profiler.py:88 asks for torch.cuda.current_device(), then sends 1 GiB thirty times",
        upstream="",
        where="CPU",
        needed=_without_gpu,
        patch=_profile_on_cpu,
    ),
    Repair(
        name="mesh_shape",
        area="auto-parallel",
        symptom="TypeError: cannot unpack non-iterable NoneType object, from autoparallelize(logical_mesh_shape=...)",
        cause="auto_parallel/tensor_shard/initialize.py:62: extract_alpha_beta_for_device_mesh has no body",
        upstream="",
        where="CPU and CUDA",
        needed=_mesh_shape_is_a_stub,
        patch=_take_the_slowest_link_of_each_axis,
    ),
    Repair(
        name="mesh_device",
        area="auto-parallel",
        symptom="ProcessGroupNCCL is only supported with GPUs, no GPUs found!, from autoparallelize",
        cause="auto_parallel/tensor_shard/initialize.py:212 makes the mesh without saying on which device",
        upstream="",
        where="CPU",
        needed=_mesh_is_always_cuda,
        patch=_make_the_mesh_on_cpu,
    ),
)
