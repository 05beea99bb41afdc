"""What keeps the auto-parallel solver from planning a GPT block: a missing rule, and one for the wrong axis.

Both decide which strategies a node has, so both must be in force before `solver.Search` lists them.
"""

from __future__ import annotations

import functools

from handson.repairs import Repair


def _gelu_has_no_strategy() -> bool:
    from colossalai.auto_parallel.tensor_shard.node_handler import operator_registry
    from torch import nn

    return not operator_registry.has(nn.GELU)


def _treat_gelu_as_elementwise() -> None:
    from colossalai.auto_parallel.meta_profiler.meta_registry.activation import elementwise_meta_info
    from colossalai.auto_parallel.meta_profiler.registry import meta_register
    from colossalai.auto_parallel.tensor_shard.node_handler import UnaryElementwiseHandler, operator_registry
    from torch import nn

    operator_registry.register(nn.GELU)(UnaryElementwiseHandler)
    if not meta_register.has(nn.GELU):
        meta_register.register(nn.GELU)(elementwise_meta_info(0, 0))


def _a_line_is_not_split() -> bool:
    import inspect

    from colossalai.auto_parallel.tensor_shard.node_handler.strategy import BatchedMatMulStrategyGenerator

    return "mesh_dim = self.device_mesh.shape.index(1)" in inspect.getsource(
        BatchedMatMulStrategyGenerator.collate_strategies
    )


def _split_along_the_line() -> None:
    from colossalai.auto_parallel.tensor_shard.node_handler.strategy import BatchedMatMulStrategyGenerator

    original = BatchedMatMulStrategyGenerator.collate_strategies

    @functools.wraps(original)
    def collate_strategies(self) -> list:
        found = original(self)
        shape = self.device_mesh.shape
        if len(shape) == 2 and 1 in shape:
            # Upstream's own choice, over the axis of one device, stays: it is the one where nothing is divided.
            found = [self.split_one_batch_dim(1 - list(shape).index(1)), *found]
        return found

    BatchedMatMulStrategyGenerator.collate_strategies = collate_strategies


REPAIRS = (
    Repair(
        name="gelu",
        area="auto-parallel",
        symptom="AssertionError: <class 'torch.nn.modules.activation.GELU'> not found in the operator registry",
        cause="auto_parallel/tensor_shard/node_handler/unary_elementwise_handler.py:13 leaves GELU out of its list",
        upstream="",
        where="CPU and CUDA",
        needed=_gelu_has_no_strategy,
        patch=_treat_gelu_as_elementwise,
    ),
    Repair(
        name="line",
        area="auto-parallel",
        symptom="no error: on a line of devices (a mesh of 1 x n) each computes the whole of every batched product",
        cause="tensor_shard/node_handler/strategy/matmul_strategy_generator.py:982 splits over the axis of one device",
        upstream="",
        where="CPU and CUDA",
        needed=_a_line_is_not_split,
        patch=_split_along_the_line,
    ),
)
