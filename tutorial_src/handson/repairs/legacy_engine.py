"""How colossalai.legacy cuts a model into stages and takes a step: four faults, on the CPU and on CUDA.

`clip` is the dangerous one: training runs without an error and no weight ever moves.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from handson.repairs import Repair

if TYPE_CHECKING:
    import torch


def _clips_by_zero() -> bool:
    from colossalai.legacy.engine import Engine

    return "clip_grad_by_norm(self._clip_grad_norm)" in inspect.getsource(Engine.step)


def _clip_by_the_norm_of_the_whole_model() -> None:
    from colossalai.interface import OptimizerWrapper
    from colossalai.legacy.amp.naive_amp import NaiveAMPOptimizer
    from colossalai.legacy.engine import Engine
    from colossalai.legacy.utils import clip_grad_norm_fp32, common

    def step(self: Engine) -> Any:
        self._all_reduce_gradients()
        if self._clip_grad_norm > 0 and not isinstance(self.optimizer, NaiveAMPOptimizer):
            if type(self.optimizer) is OptimizerWrapper:
                clip_grad_norm_fp32(self.optimizer.parameters, self._clip_grad_norm)
            else:
                self.optimizer.clip_grad_by_norm(self._clip_grad_norm)
        return self.optimizer.step()

    Engine.step = step
    if common.fused_optim is None:
        common.fused_optim = PLAIN_KERNELS


def _l2_norm(chunk: int, overflow: object, tensors: list[list[torch.Tensor]], each: bool) -> tuple[Any, None]:
    import torch

    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors[0]))), None


def _scale(chunk: int, overflow: object, tensors: list[list[torch.Tensor]], factor: float) -> None:
    import torch

    source, target = tensors
    torch._foreach_copy_(target, torch._foreach_mul(source, factor))


# What clipping needs of `colossalai._C.fused_optim`, in plain torch: building the kernel takes a minute and a compiler.
PLAIN_KERNELS = SimpleNamespace(multi_tensor_l2norm=_l2_norm, multi_tensor_scale=_scale)


def _counts_shared_blocks_too_little() -> bool:
    from colossalai.legacy.nn.layer.parallel_2p5d.layers import LayerNorm2p5D

    return "self.weight, self.tesseract_dim)" in inspect.getsource(LayerNorm2p5D._set_tensor_parallel_attribute)


def _count_each_gradient_once() -> None:
    """Say of each parameter on how many ranks its gradient is *not* zero, for that is what the norm divides by."""
    from colossalai.legacy.nn.layer.parallel_2p5d.layers import LayerNorm2p5D, Linear2p5D
    from colossalai.legacy.nn.layer.parallel_3d.layers import Classifier3D
    from colossalai.legacy.nn.layer.utils import set_tensor_parallel_attribute_by_partition as set_partitions

    def correct(layer: type, method: str, size: str, names: tuple[str, ...]) -> None:
        original = getattr(layer, method)

        def set_attributes(self: Any) -> None:
            original(self)
            for parameter in filter(lambda p: p is not None, (getattr(self, name) for name in names)):
                set_partitions(parameter, getattr(self, size) ** 2)

        setattr(layer, method, set_attributes)

    correct(Linear2p5D, "_set_tensor_parallel_attributes", "tesseract_dim", ("bias",))
    correct(LayerNorm2p5D, "_set_tensor_parallel_attribute", "tesseract_dim", ("weight", "bias"))
    correct(Classifier3D, "_set_tensor_parallel_attributes", "depth", ("weight",))


def _lacks_from_torch_tensor() -> bool:
    from colossalai.tensor import ColoParameter

    return not hasattr(ColoParameter, "from_torch_tensor")


def _give_from_torch_tensor() -> None:
    from colossalai.tensor import ColoParameter

    def from_torch_tensor(tensor: torch.Tensor, requires_grad: bool = True) -> ColoParameter:
        return ColoParameter(tensor, requires_grad)

    ColoParameter.from_torch_tensor = staticmethod(from_torch_tensor)


def _debug_lines_walk_the_stack() -> bool:
    from colossalai.logging import DistributedLogger

    return "__get_call_info()" in inspect.getsource(DistributedLogger.debug)


def _walk_only_for_lines_that_are_shown() -> None:
    import logging

    from colossalai.logging import DistributedLogger

    original = DistributedLogger.debug

    def debug(self: DistributedLogger, message: str, ranks: list[int] | None = None) -> None:
        if logging.getLogger(self._name).isEnabledFor(logging.DEBUG):
            original(self, message, ranks)

    DistributedLogger.debug = debug


REPAIRS = (
    Repair(
        name="colo",
        area="legacy engine",
        symptom="AttributeError: type object 'ColoParameter' has no attribute 'from_torch_tensor'",
        cause="legacy/pipeline/pipelinable.py:120 calls a method that was removed",
        upstream="https://github.com/hpcaitech/ColossalAI/issues/5571",
        where="CPU and CUDA",
        needed=_lacks_from_torch_tensor,
        patch=_give_from_torch_tensor,
    ),
    Repair(
        name="clip",
        area="legacy engine",
        symptom="no error, and no weight moves: largest change after 5 SGD steps 0.0 (repaired: 0.08)",
        cause="legacy/engine/_base_engine.py:161 clips to norm 0.0 when clipping is off, else by each rank's own norm",
        upstream="",
        where="CPU and CUDA",
        needed=_clips_by_zero,
        patch=_clip_by_the_norm_of_the_whole_model,
    ),
    Repair(
        name="norm",
        area="legacy engine",
        symptom="no error: with clipping on, 2.5D and 3D see too small a gradient norm, and their losses go astray",
        cause="legacy/utils/common.py:323 divides by how many ranks hold a gradient; "
        "legacy/nn/layer/parallel_2p5d/layers.py:106,286,288 and parallel_3d/layers.py:407 say too many",
        upstream="",
        where="CPU and CUDA",
        needed=_counts_shared_blocks_too_little,
        patch=_count_each_gradient_once,
    ),
    Repair(
        name="stack",
        area="legacy engine",
        symptom="each micro-batch of a pipeline stage takes about 0.1 s more than its arithmetic",
        cause="logging/logger.py:158 calls inspect.stack() for each micro-batch's debug line, which is not shown",
        upstream="",
        where="CPU and CUDA",
        needed=_debug_lines_walk_the_stack,
        patch=_walk_only_for_lines_that_are_shown,
    ),
)
