"""LARS under Colossal-AI, and what large batches need of its plugins on the CPU.

LARS (You et al. 2017, arXiv:1708.03888) moves every layer by the same share of its own size. Upstream's step loses that
in three ways: its momentum, its clamp, and any plugin that hands it parts of tensors.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Callable, Iterator
from typing import Any

from handson import worker
from handson.repairs import Repair

_cured: set[str] = set()  # which of LARS' repairs are in force: one step serves both


def upstream_lars_step() -> Callable[..., Any]:
    """Upstream's own `Lars.step`, whether or not it is repaired in this process."""
    import torch
    from colossalai.nn.optimizer import Lars

    return torch.no_grad()(inspect.unwrap(Lars.step))


def _upstream_says(text: str) -> bool:
    from colossalai.nn.optimizer import Lars

    return text in inspect.getsource(inspect.unwrap(Lars.step))


def _cure(name: str) -> None:
    from colossalai.nn.optimizer import Lars

    _cured.add(name)
    Lars.step = functools.wraps(inspect.unwrap(Lars.step))(_lars_step)


def _lars_step(self: Any, closure: Callable[[], Any] | None = None) -> Any:
    """LARS with the local learning rate inside the momentum, as in the paper's algorithm 1; nothing waits for a GPU."""
    import torch

    loss = None
    if closure is not None:
        with torch.enable_grad():
            loss = closure()
    with torch.no_grad():
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    _lars_update(p, group, self.state[p])
    return loss


def _lars_update(p: Any, group: dict[str, Any], state: dict[str, Any]) -> None:
    import torch

    update, rate = p.grad, 1.0
    if group["lars"]:
        weight, gradient = torch.linalg.vector_norm(p), torch.linalg.vector_norm(p.grad)
        local = group["eeta"] * weight / (gradient + group["weight_decay"] * weight + group["epsilon"])
        rate = torch.where((weight > 0) & (gradient > 0), local, torch.ones_like(local)).clamp_(0.0, 50.0)
        update = update.add(p, alpha=group["weight_decay"])
    if "larsclamp" not in _cured:
        update = update.clamp(-10.0, 10.0)
    if "larsmomentum" in _cured:
        update, rate = update * rate, 1.0
    if group["momentum"]:
        if "momentum_buffer" in state:
            update = state["momentum_buffer"].mul_(group["momentum"]).add_(update)
        else:
            update = state["momentum_buffer"] = update.clone()
    p.sub_(update * (rate * group["lr"]))


# --- plugins that divide tensors ----------------------------------------------------------------------------------


def cannot_be_divided(optimizer: Any) -> str:
    """Why this optimizer is wrong where a rank holds parts of tensors, or "": it takes norms of what it is given."""
    from colossalai.nn.optimizer import FusedLAMB, Lamb, Lars

    if isinstance(optimizer, Lars | FusedLAMB):
        return f"{type(optimizer).__name__} would take each tensor's norms from the part that a rank holds"
    if isinstance(optimizer, Lamb) and optimizer.adam:
        return "Lamb(adam=True) would become DistributedLamb, which has no such option and scales by trust ratios"
    return ""


DIVIDED = (
    "{why}, and train something else without a word; use TorchDDPPlugin, or LAMB, whose distributed form adds the "
    "parts' squares up"
)


def _divides(plugin: Any) -> bool:
    """Whether a plugin's ranks hold parts of tensors."""
    import torch.distributed as dist

    if hasattr(plugin, "tp_size"):  # HybridParallelPlugin and what derives from it
        return plugin.tp_size > 1 or (plugin.zero_stage > 0 and plugin.dp_size > 1)
    return dist.get_world_size() > 1  # LowLevelZeroPlugin


def _plugins() -> list[type]:
    from colossalai.booster.plugin import HybridParallelPlugin, LowLevelZeroPlugin, MoeHybridParallelPlugin

    return [LowLevelZeroPlugin, HybridParallelPlugin, MoeHybridParallelPlugin]


def _refuse_to_divide() -> None:
    def guarded(configure: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(configure)
        def configure_or_refuse(self: Any, model: Any, optimizer: Any = None, *others: Any, **named: Any) -> Any:
            why = cannot_be_divided(optimizer)
            if why and _divides(self):
                worker.refuse(f"{type(self).__name__}: {DIVIDED.format(why=why)}")
            return configure(self, model, optimizer, *others, **named)

        return configure_or_refuse

    for plugin in _plugins():
        plugin.configure = guarded(plugin.configure)


# --- on the CPU ---------------------------------------------------------------------------------------------------


def _on_the_cpu() -> bool:
    from colossalai.accelerator import get_accelerator

    return get_accelerator().name == "cpu"


def _batch_norm_wants_gpus() -> bool:
    from colossalai.booster.plugin import TorchDDPPlugin

    return _on_the_cpu() and "convert_sync_batchnorm" in inspect.getsource(inspect.unwrap(TorchDDPPlugin.configure))


def _synchronise_on_the_cpu() -> None:
    import torch
    import torch.distributed as dist
    from torch import nn

    class Gather(torch.autograd.Function):
        """Every rank's tensor, stacked; a rank's gradient is what all ranks together have for its own."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
            dist.all_gather(parts, x.contiguous())
            return torch.stack(parts)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            gradient = gradient.clone()
            dist.all_reduce(gradient)
            return gradient[dist.get_rank()]

    def forward(self: nn.modules.batchnorm._BatchNorm, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return type(self).forward(self, x)
        # The ranks' parts of a batch are equally large, so the mean of their means is the batch's.
        shape = [1, -1] + [1] * (x.dim() - 2)
        local = torch.var_mean(x, [0, *range(2, x.dim())], correction=0)
        variances, means = Gather.apply(torch.stack(local)).unbind(1)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            count = x.numel() // x.shape[1] * dist.get_world_size()
            share = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, share)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), share)
        scale = (variance + self.eps).rsqrt() * self.weight
        return x * scale.view(shape) + (self.bias - mean * scale).view(shape)

    def convert_sync_batchnorm(module: nn.Module, process_group: object = None) -> nn.Module:
        for part in module.modules():
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.forward = types.MethodType(forward, part)
        return module

    nn.SyncBatchNorm.convert_sync_batchnorm = staticmethod(convert_sync_batchnorm)


def _zero_wants_a_device() -> bool:
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    return _on_the_cpu() and "device is required" in inspect.getsource(LowLevelZeroOptimizer._sanity_checks)


def _let_zero_use_the_cpu() -> None:
    from colossalai.zero.low_level import LowLevelZeroOptimizer

    def _sanity_checks(self: Any) -> None:
        unlike = {p.dtype for group in self.optim.param_groups for p in group["params"]} - {self._dtype}
        if unlike:
            raise TypeError(f"ZeRO was told that parameters are {self._dtype}, but some are {unlike}")

    LowLevelZeroOptimizer._sanity_checks = _sanity_checks


def _cpu_has_no_streams() -> bool:
    from colossalai.accelerator import CpuAccelerator

    return _on_the_cpu() and "raise" in inspect.getsource(CpuAccelerator.current_stream)


def _stand_in_for_streams() -> None:
    """The CPU runs one thing after the other, so a stream there is nothing; overlapping must be switched off."""
    from colossalai.accelerator import CpuAccelerator

    @contextlib.contextmanager
    def stream(self: Any, stream_: None) -> Iterator[None]:
        yield

    CpuAccelerator.stream = stream
    CpuAccelerator.Stream = CpuAccelerator.current_stream = lambda self, *args, **named: None


REPAIRS = (
    Repair(
        name="larsmomentum",
        area="large batch",
        symptom="LARS loses accuracy as the batch grows: one step may move a layer by several times lr × eeta of its "
        "size / (1 − momentum), the bound of the paper's algorithm",
        cause="nn/optimizer/lars.py:88 multiplies the whole momentum, gradients of earlier steps, by the trust ratio "
        "of the present gradient alone",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: _upstream_says("p.add_(decayed_grad, alpha=-scaled_lr)"),
        patch=functools.partial(_cure, "larsmomentum"),
    ),
    Repair(
        name="larsclamp",
        area="large batch",
        symptom="LARS takes another step when the loss is multiplied by 1000, although only the gradient's direction "
        "counts in it",
        cause="nn/optimizer/lars.py:77 clamps each element of the gradient to ±10 after it has taken the norm",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: _upstream_says("torch.clamp(decayed_grad, -10.0, 10.0)"),
        patch=functools.partial(_cure, "larsclamp"),
    ),
    Repair(
        name="larsparts",
        area="large batch",
        symptom="LARS under ZeRO or tensor parallelism trains something else than on one device, without a word",
        cause="nn/optimizer/lars.py:66 takes norms of what a rank holds; nn/optimizer/__init__.py:40 has a distributed "
        "form of LAMB, none of LARS and FusedLAMB, and drops Lamb(adam=True)",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_refuse_to_divide,
    ),
    Repair(
        name="syncbn",
        area="large batch",
        symptom="ValueError: SyncBatchNorm layers only work with GPU modules, for any model with batch norm under "
        "TorchDDPPlugin",
        cause="booster/plugin/torch_ddp_plugin.py:286 turns every batch norm into SyncBatchNorm, which torch has for "
        "GPUs alone",
        upstream="",
        where="CPU",
        needed=_batch_norm_wants_gpus,
        patch=_synchronise_on_the_cpu,
    ),
    Repair(
        name="zerodevice",
        area="large batch",
        symptom="AssertionError: device is required, for ZeRO over gloo",
        cause="zero/low_level/low_level_optim.py:254 asserts CUDA or an NPU",
        upstream="",
        where="CPU",
        needed=_zero_wants_a_device,
        patch=_let_zero_use_the_cpu,
    ),
    Repair(
        name="zerostreams",
        area="large batch",
        symptom="RuntimeError: this method is not supported for cpu accelerator, for ZeRO over gloo",
        cause="accelerator/cpu_accelerator.py:242 raises for Stream and current_stream, which "
        "zero/low_level/bookkeeping/bucket_store.py:22 asks for also where nothing overlaps",
        upstream="",
        where="CPU",
        needed=_cpu_has_no_streams,
        patch=_stand_in_for_streams,
    ),
)
