"""Colossal-AI's auto-parallel, the search: tracing, listing strategies, working out costs, solving the ILP.

The ILP solver is found without a system package, and the search does nothing twice.
"""

from __future__ import annotations

import functools
import inspect
import math
from types import ModuleType
from typing import Any

from handson.repairs import Repair


class Instead(ModuleType):
    """A module as one caller should see it: `instead` first, all else from the real one."""

    def __init__(self, real: ModuleType, **instead: Any) -> None:
        super().__init__(real.__name__)
        self.__dict__.update(instead, _real=real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)


def _use_the_cbc_inside_pulp() -> None:
    import pulp
    from colossalai.auto_parallel.tensor_shard.solver import solver

    # What upstream writes down in the middle of a function; a caller may change it here.
    settings: dict[str, Any] = {"timeLimit": 600.0}

    def coin_cmd(mip: bool, msg: bool, timeLimit: int, threads: int) -> pulp.COIN_CMD:
        # Never msg: CBC would write to the process's standard output, past every log.
        return pulp.COIN_CMD(path=pulp.PULP_CBC_CMD().path, mip=mip, msg=False, **settings)

    problems: list[pulp.LpProblem] = []

    def lp_problem(*arguments: Any) -> pulp.LpProblem:
        problems[:] = [pulp.LpProblem(*arguments)]
        return problems[0]

    solver.LpProblem = lp_problem
    solver.pulp = Instead(
        pulp, COIN_CMD=coin_cmd, listSolvers=lambda onlyAvailable: ["COIN_CMD"], settings=settings, problems=problems
    )


def _differences_are_rebuilt() -> bool:
    from colossalai.tensor.sharding_spec import _DimSpec

    return _DimSpec._DIFFERENCE_DICT is None


def _build_the_differences_once() -> None:
    from colossalai.tensor.sharding_spec import _DimSpec

    # The property asks for this attribute of the class, then stores its own on the instance.
    _DimSpec._DIFFERENCE_DICT = _DimSpec._build_difference_2d_dict()


def _paths_are_searched_again() -> bool:
    from colossalai.tensor.shape_consistency import ShapeConsistencyManager

    return "cached_spec_pairs_transform_path[spec_pairs] = (None, None)" in inspect.getsource(
        ShapeConsistencyManager.shape_consistency
    )


def _search_each_path_once() -> None:
    from colossalai.device.device_mesh import DeviceMesh
    from colossalai.tensor.shape_consistency import ShapeConsistencyManager
    from colossalai.tensor.sharding_spec import ShardingSpec

    original = ShapeConsistencyManager.shape_consistency
    known: dict[tuple, tuple] = {}

    def split(spec: ShardingSpec) -> tuple:
        return tuple(tuple(dimension.shard_list) for dimension in spec.sharding_sequence)

    def values(mesh: DeviceMesh) -> tuple:
        # Strategies deep-copy their mesh, so meshes are told apart by what they are, not by id().
        if not hasattr(mesh, "_ranks"):
            mesh._ranks = (tuple(mesh.shape), tuple(mesh._logical_mesh_id.flatten().tolist()), mesh._device)
        return mesh._ranks, mesh.mesh_alpha, mesh.mesh_beta, mesh.is_initialized

    @functools.wraps(original)
    def shape_consistency(self, source_spec, target_spec):
        shape, mesh = tuple(source_spec.entire_shape), values(source_spec.device_mesh)
        key = (mesh, self.forward_only, shape, split(source_spec), split(target_spec))
        if key not in known:
            known[key] = original(self, source_spec, target_spec)
        path, actions, cost = known[key]
        return list(path), list(actions), dict(cost)

    ShapeConsistencyManager.shape_consistency = shape_consistency


def _infinity_is_finite() -> bool:
    from colossalai.auto_parallel.tensor_shard.constants import INFINITY_COST

    return math.isfinite(INFINITY_COST)


def _let_no_cost_be_infinite() -> None:
    from colossalai.auto_parallel.tensor_shard.solver import cost_graph, solver

    cost_graph.INFINITY_COST = solver.INFINITY_COST = math.inf


def _solutions_are_numpy_integers() -> bool:
    from colossalai.auto_parallel.tensor_shard import initialize

    return "solution = list(ret[0])" in inspect.getsource(initialize.solve_solution)


def _solve_in_plain_integers() -> None:
    from colossalai.auto_parallel.tensor_shard import initialize

    original = initialize.solve_solution

    @functools.wraps(original)
    def solve_solution(*arguments, **options):
        return [int(index) for index in original(*arguments, **options)]

    initialize.solve_solution = solve_solution


def _addmm_hides_the_weight() -> bool:
    from colossalai._analyzer.fx.tracer import bias_addition

    return ".transpose(0, 1)" in inspect.getsource(bias_addition.addmm_impl)


def _transpose_by_function() -> None:
    import torch
    from colossalai._analyzer.fx.tracer.tracer import register_tracer_impl
    from torch.nn import functional as F

    def addmm(input, mat1, mat2, beta=1, alpha=1):
        # As a function: a communication of the weight's gradient is moved to the weight through functions alone.
        product = F.linear(mat1, torch.transpose(mat2, 0, 1))
        return (product if alpha == 1 else product * alpha) + (input if beta == 1 else input * beta)

    for traced in (torch.addmm, torch.Tensor.addmm):
        register_tracer_impl(traced, name="_bias_addition_impl")(addmm)


def _gathers_along_the_mesh_axis() -> bool:
    from colossalai.auto_parallel.tensor_shard.node_handler.strategy import DefaultReshapeGenerator

    return ".gather_dim = total_mesh_dim_list" in inspect.getsource(DefaultReshapeGenerator.collate_strategies)


def _gather_along_the_dimension_that_is_split() -> None:
    from colossalai.auto_parallel.tensor_shard.node_handler.strategy import DefaultReshapeGenerator
    from colossalai.tensor.comm_spec import CommSpec

    original = DefaultReshapeGenerator.collate_strategies

    @functools.wraps(original)
    def collate_strategies(self):
        found = original(self)
        for strategy in found:
            for data, action in strategy.communication_actions.items():
                if isinstance(action.comm_spec, CommSpec):
                    (dimension,) = strategy.sharding_specs[data].dim_partition_dict
                    action.comm_spec.gather_dim = action.comm_spec.shard_dim = dimension
        return found

    DefaultReshapeGenerator.collate_strategies = collate_strategies


def _a_failed_trace_leaves_its_patches() -> bool:
    from colossalai._analyzer.fx.tracer.tracer import ColoTracer

    return "finally" not in inspect.getsource(ColoTracer._tracer_override)


def _undo_a_failed_trace() -> None:
    import torch
    import torch.utils.checkpoint
    from colossalai._analyzer._subclasses import _TorchFactoryMethod
    from colossalai._analyzer.fx.tracer.proxy import ColoProxy
    from colossalai._analyzer.fx.tracer.tracer import ColoTracer

    original = ColoTracer.trace

    @functools.wraps(original)
    def trace(self, *arguments, **options):
        checkpoint = torch.utils.checkpoint
        patched = [(torch, name) for name in _TorchFactoryMethod]
        patched += [(checkpoint.CheckpointFunction, "apply"), (checkpoint, "_checkpoint_without_reentrant")]
        before = [(owner, name, vars(owner).get(name)) for owner, name in patched]
        try:
            return original(self, *arguments, **options)
        finally:
            for owner, name, value in before:
                if value is not None:
                    setattr(owner, name, value)
                elif name in vars(owner):
                    delattr(owner, name)  # it was inherited, or not there at all
            ColoProxy._func_dispatch = {}

    ColoTracer.trace = trace


REPAIRS = (
    Repair(
        name="cbc",
        area="auto-parallel",
        symptom="AssertionError: Please install ILP solvers by 'sudo apt install coinor-cbc'",
        cause="auto_parallel/tensor_shard/solver/solver.py:438 looks for a system cbc, though pulp's wheel holds one",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,  # a system cbc would be found, but not its gap and its time limit set
        patch=_use_the_cbc_inside_pulp,
    ),
    Repair(
        name="difference",
        area="auto-parallel",
        symptom="no error, and a search that takes much longer: the same table of 16 entries is built a million times",
        cause="tensor/sharding_spec.py:57 stores on the instance what belongs to the class",
        upstream="",
        where="CPU and CUDA",
        needed=_differences_are_rebuilt,
        patch=_build_the_differences_once,
    ),
    Repair(
        name="paths",
        area="auto-parallel",
        symptom="no error: ResNet-50's strategies take six times as long, and each sharded step searches again",
        cause="tensor/shape_consistency.py:579 writes a cache that nothing reads",
        upstream="",
        where="CPU and CUDA",
        needed=_paths_are_searched_again,
        patch=_search_each_path_once,
    ),
    Repair(
        name="infinity",
        area="auto-parallel",
        symptom="UserWarning: Detect unexpected behaviors in the auto-sharding pass; a cost over 1e13 MAC, a part of "
        "a second of a fast GPU, counts as infinite",
        cause="auto_parallel/tensor_shard/constants.py:125: INFINITY_COST = 1e13",
        upstream="",
        where="CPU and CUDA",
        needed=_infinity_is_finite,
        patch=_let_no_cost_be_infinite,
    ),
    Repair(
        name="addmm",
        area="auto-parallel",
        symptom="no error, and wrong weight gradients of torch.addmm (Hugging Face's Conv1D): they are not reduced",
        cause="_analyzer/fx/tracer/bias_addition.py:151 transposes the weight by a method, which "
        "runtime_preparation_pass.py:110 does not look through",
        upstream="",
        where="CPU and CUDA",
        needed=_addmm_hides_the_weight,
        patch=_transpose_by_function,
    ),
    Repair(
        name="gather_dim",
        area="auto-parallel",
        symptom="RuntimeError: a and b must have same reduction dim, but got [32, 1024] X [2048, 250], where a tensor "
        "that is pooled or flattened is split over axis 0 along dimension 1, or the other way round",
        cause="auto_parallel/tensor_shard/node_handler/strategy/reshape_generator.py:357 takes the mesh's axis for the "
        "tensor's dimension",
        upstream="",
        where="CPU and CUDA",
        needed=_gathers_along_the_mesh_axis,
        patch=_gather_along_the_dimension_that_is_split,
    ),
    Repair(
        name="solution",
        area="auto-parallel",
        symptom="UnpicklingError: Weights only load failed, from autoparallelize(load_solver_solution=True)",
        cause="auto_parallel/tensor_shard/initialize.py:144 saves numpy integers, which torch.load refuses",
        upstream="",
        where="CPU and CUDA",
        needed=_solutions_are_numpy_integers,
        patch=_solve_in_plain_integers,
    ),
    Repair(
        name="trace",
        area="auto-parallel",
        symptom="after a failed trace torch.arange and its like record into a graph that is gone",
        cause="_analyzer/fx/tracer/tracer.py:213,247 restore what they patched only if nothing was raised",
        upstream="",
        where="CPU and CUDA",
        needed=_a_failed_trace_leaves_its_patches,
        patch=_undo_a_failed_trace,
    ),
)
