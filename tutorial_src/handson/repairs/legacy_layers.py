"""The parallel layers of colossalai.legacy: 1D's LayerNorm, 2.5D's depth, 3D's gradients, checkpoints, broadcasts.

`dep2p5d` is the silent one: with depth > 1 the copies of the model along the depth never spoke to each other.
"""

from __future__ import annotations

import importlib.util
import inspect
from types import ModuleType
from typing import TYPE_CHECKING, Any

from handson.repairs import Repair, rebind

if TYPE_CHECKING:
    import torch


def _layer_norm_needs_a_compiler() -> bool:
    from colossalai.legacy.nn.layer.parallel_1d import layers
    from colossalai.nn.layer.layernorm import MixedFusedLayerNorm

    return layers.LayerNorm is MixedFusedLayerNorm and importlib.util.find_spec("colossalai._C.layer_norm") is None


def _torch_layer_norm() -> None:
    from colossalai.legacy.nn.layer.parallel_1d import layers
    from torch import nn

    layers.LayerNorm = nn.LayerNorm


def _checkpoint_is_a_module() -> bool:
    from colossalai.legacy.nn.layer.utils import common

    return isinstance(common.checkpoint, ModuleType)


def _checkpoint_function() -> None:
    from colossalai.legacy.nn.layer.utils import common
    from colossalai.legacy.utils.activation_checkpoint import checkpoint

    common.checkpoint = checkpoint


def _hook_expects_a_gradient() -> bool:
    from colossalai.legacy.nn.layer.parallel_3d import _utils

    return "grad.add_(pop_async_grad(param_id))" in inspect.getsource(_utils._async_grad_hook)


def _hook_accepts_no_gradient() -> None:
    from colossalai.legacy.nn.layer.parallel_3d import _utils

    original = _utils._async_grad_hook

    def async_grad_hook(grad: torch.Tensor | None, param_id: int) -> torch.Tensor | None:
        # Classifier3D computes its weight's gradient only where input rank == output rank.
        return None if grad is None else original(grad, param_id)

    _utils._async_grad_hook = async_grad_hook


def _depth_is_silent() -> bool:
    from colossalai.legacy.nn.layer.parallel_2p5d import _operation

    return "PARALLEL_2P5D_DEP" not in inspect.getsource(_operation.split_batch_2p5d)


def _join_the_depth() -> None:
    """2.5D over depth d is d copies of a 2D grid, each working on 1/d of the batch with the same weights.

    So: the batch is split over the depth too, the loss is the mean over it, the copies start equal, and each step
    adds their gradients (the loss was divided by d already).
    """
    import colossalai.legacy.nn  # noqa: F401 - loads every module that holds the two functions by name
    import torch
    import torch.distributed as dist
    from colossalai.legacy.context import ParallelMode
    from colossalai.legacy.core import global_context as gpc
    from colossalai.legacy.engine import Engine
    from colossalai.legacy.engine.gradient_handler import BaseGradientHandler
    from colossalai.legacy.nn.layer.parallel_2p5d import _operation
    from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

    depth_axis = ParallelMode.PARALLEL_2P5D_DEP

    def depth() -> int:
        return gpc.get_world_size(depth_axis) if gpc.is_initialized(depth_axis) else 1

    split, reduce = _operation.split_batch_2p5d, _operation.reduce_by_batch_2p5d

    def split_batch_2p5d(input_: torch.Tensor, dim: int = 0) -> torch.Tensor:
        mine = split(input_, dim)
        return mine.chunk(depth(), dim)[gpc.get_local_rank(depth_axis)].contiguous() if depth() > 1 else mine

    class SumOverDepth(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
            total = value.clone()
            dist.all_reduce(total, group=gpc.get_group(depth_axis))
            return total

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return gradient

    def reduce_by_batch_2p5d(input_: torch.Tensor, reduce_mean: bool = False) -> torch.Tensor:
        over_columns = reduce(input_, reduce_mean)
        if depth() == 1:
            return over_columns
        total = SumOverDepth.apply(over_columns)
        return total / depth() if reduce_mean else total

    class DepthGradientHandler(BaseGradientHandler):
        """Adds up the gradients of the copies along the depth."""

        def handle_gradient(self) -> None:
            gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
            together = _flatten_dense_tensors(gradients)
            dist.all_reduce(together, group=gpc.get_group(depth_axis))
            for gradient, total in zip(gradients, _unflatten_dense_tensors(together, gradients), strict=True):
                gradient.copy_(total)

    initialise = Engine.__init__

    def init(self: Engine, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        if depth() > 1:
            first = gpc.get_ranks_in_group(depth_axis)[0]
            for parameter in self.model.parameters():
                dist.broadcast(parameter.data, src=first, group=gpc.get_group(depth_axis))
            self._gradient_handlers.append(DepthGradientHandler(self.model, self.optimizer))

    rebind("colossalai", split, split_batch_2p5d)
    rebind("colossalai", reduce, reduce_by_batch_2p5d)
    Engine.__init__ = init


def _broadcast_is_recorded() -> bool:
    from colossalai.legacy.communication import collective

    return "no_grad" not in inspect.getsource(collective.broadcast)


def _broadcast_outside_autograd() -> None:
    import colossalai.legacy.nn  # noqa: F401 - loads every module that holds the two functions by name
    import torch
    from colossalai.legacy.communication import collective
    from colossalai.legacy.utils import common

    for function in (collective.broadcast, common.sync_model_param):
        rebind("colossalai", function, torch.no_grad()(function))


REPAIRS = (
    Repair(
        name="ln1d",
        area="legacy layers",
        symptom="RuntimeError: No usable kernel found for LayerNormLoader on the current machine",
        cause="legacy/nn/layer/parallel_1d/layers.py:25 takes a fused kernel that is built in the first forward pass",
        upstream="",
        where="CPU, and CUDA where the kernel is not built yet",
        needed=_layer_norm_needs_a_compiler,
        patch=_torch_layer_norm,
    ),
    Repair(
        name="ckpt",
        area="legacy layers",
        symptom="TypeError: 'module' object is not callable, in the first forward pass of a model with checkpoint=True",
        cause="legacy/nn/layer/utils/common.py:13 imports the package legacy/utils/checkpoint instead of the function",
        upstream="",
        where="CPU and CUDA",
        needed=_checkpoint_is_a_module,
        patch=_checkpoint_function,
    ),
    Repair(
        name="async3d",
        area="legacy layers",
        symptom="AttributeError: 'NoneType' object has no attribute 'add_', in the backward pass of 3D",
        cause="legacy/nn/layer/parallel_3d/_utils.py:98; _operation.py:140 leaves the classifier's weight without one",
        upstream="",
        where="CPU and CUDA",
        needed=_hook_expects_a_gradient,
        patch=_hook_accepts_no_gradient,
    ),
    Repair(
        name="dep2p5d",
        area="legacy layers",
        symptom="no error: with depth 2 both copies compute the same batch, from different weights that never meet",
        cause="legacy/nn/layer/parallel_2p5d/_operation.py:1016 splits by columns only; nothing uses PARALLEL_2P5D_DEP",
        upstream="",
        where="CPU and CUDA",
        needed=_depth_is_silent,
        patch=_join_the_depth,
    ),
    Repair(
        name="nograd",
        area="legacy layers",
        symptom="UserWarning: c10d::broadcast_: an autograd kernel was not registered to the Autograd key(s)",
        cause="legacy/utils/common.py:55 and legacy/nn/layer/*/layers.py broadcast parameters without torch.no_grad()",
        upstream="",
        where="CPU and CUDA",
        needed=_broadcast_is_recorded,
        patch=_broadcast_outside_autograd,
    ),
)
