"""Gemini and the Adam that Colossal-AI wrote for it: chunks on a host without a GPU, and clipping that is heeded.

Gemini tells its two tiers of memory, the device's and the host's, apart by the words "cuda" and "cpu". Where the
device is the CPU there is one tier: every chunk stays on the device, and offloading has no meaning.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from handson.repairs import Repair


def _on_the_cpu() -> bool:
    from colossalai.accelerator import get_accelerator

    return get_accelerator().name == "cpu"


def _tells_tiers_by_name() -> bool:
    from colossalai.zero.gemini.chunk import Chunk

    return _on_the_cpu() and 'self.shard_device.type == "cpu"' in inspect.getsource(Chunk.close_chunk)


def _one_tier() -> None:
    """A chunk that was not asked to the host stays on the device; moving it does nothing, as there is nowhere to go."""
    import torch
    from colossalai.zero.gemini.chunk import Chunk

    close_chunk = Chunk.close_chunk

    @functools.wraps(close_chunk)
    def close_on_the_device(self: Any) -> None:
        close_chunk(self)
        if not self.keep_gathered and self.cuda_shard is None:
            self.cuda_shard, self.cpu_shard = self.cpu_shard, None

    def device_type(self: Any) -> str:
        return self.chunk_temp.device.type if self.chunk_temp is not None else "cuda"

    def shard_move(self: Any, device: torch.device, force_copy: bool = False, non_blocking: bool = False) -> None:
        if device.type != "cpu":
            raise ValueError(f"on a host without a GPU a chunk cannot move to {device}")

    Chunk.close_chunk, Chunk.device_type, Chunk.shard_move = close_on_the_device, property(device_type), shard_move


class _SpeaksDivScale:
    """Stands for a set of optimizer types: those whose `step` takes `div_scale`, which is all that Gemini asks."""

    def __contains__(self, kind: type) -> bool:
        return "div_scale" in inspect.signature(kind.step).parameters

    def __iter__(self) -> Iterator[str]:
        yield "any optimizer whose step() takes div_scale"

    def __repr__(self) -> str:
        return f"{{{', '.join(self)}}}"


def _lists_optimizers() -> bool:
    from colossalai.zero.gemini import gemini_optimizer

    return isinstance(gemini_optimizer._AVAIL_OPTIM_LIST, set)


def _ask_for_div_scale() -> None:
    from colossalai.zero.gemini import gemini_optimizer

    gemini_optimizer._AVAIL_OPTIM_LIST = _SpeaksDivScale()


def _prints() -> bool:
    from colossalai.zero.gemini.memory_tracer import memstats_collector

    return "print(" in inspect.getsource(memstats_collector.MemStatsCollector.finish_collection)


def _print_nothing() -> None:
    from colossalai.zero.gemini.memory_tracer import memstats_collector

    memstats_collector.print = lambda *words: None  # shadows the builtin in that module alone


def _ignores_div_scale() -> bool:
    from colossalai.nn.optimizer import CPUAdam

    return "div_scale" not in inspect.getsource(inspect.unwrap(CPUAdam.torch_adam_update))


def _divide_by_div_scale() -> None:
    from colossalai.nn.optimizer import CPUAdam, HybridAdam

    update = CPUAdam.torch_adam_update

    @functools.wraps(update)
    def torch_adam_update(self: Any, data: Any, grad: Any, *others: Any, **named: Any) -> None:
        scale = getattr(self, "_div_scale", -1)
        update(self, data, grad.to(data.dtype) / scale if scale > 0 else grad, *others, **named)

    def heeding(step: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(step)
        def step_and_divide(self: Any, closure: Any = None, div_scale: float = -1) -> Any:
            self._div_scale = div_scale
            return step(self, closure, div_scale)

        return step_and_divide

    CPUAdam.torch_adam_update = torch_adam_update
    CPUAdam.step, HybridAdam.step = heeding(CPUAdam.step), heeding(HybridAdam.step)


def _frees_what_is_being_reduced() -> bool:
    from colossalai.accelerator import get_accelerator
    from colossalai.zero.gemini.chunk import Chunk

    return get_accelerator().name == "cuda" and "record_stream" not in inspect.getsource(inspect.unwrap(Chunk.reduce))


def _free_after_the_reduction() -> None:
    """Order the reduction before the freeing, on the stream that reduces; the stream that computes goes on as before.

    A chunk's memory belongs to the computing stream, and the allocator gives it away there as soon as it is freed,
    unless it knows which other stream still uses it. A reduction that is asynchronous even to its own stream would
    end after what the allocator waits for. Upstream waits for it next anyway, in the gradient's hook.
    """
    import torch
    from colossalai.zero.gemini.chunk import Chunk

    reduce = Chunk.reduce

    @functools.wraps(reduce)
    def reduce_in_order(self: Any, async_op: bool = False) -> None:
        if async_op:
            self.cuda_global_chunk.record_stream(torch.cuda.current_stream())
        reduce(self, async_op=False)

    Chunk.reduce = reduce_in_order


REPAIRS = (
    Repair(
        name="geminitier",
        area="Gemini",
        symptom="AssertionError in zero/gemini/chunk/chunk.py:522, __gather, at the first forward pass, when the "
        "device is the CPU",
        cause='zero/gemini/chunk/chunk.py:194, :313 and :349 take "cpu" for the host\'s tier, also where the CPU is '
        "the device, and put every chunk where no layer can use it",
        upstream="",
        where="CPU",
        needed=_tells_tiers_by_name,
        patch=_one_tier,
    ),
    Repair(
        name="geminioptimizers",
        area="Gemini",
        symptom="AssertionError: You should use an optimizer in the available list: FusedAdam, CPUAdam, HybridAdam, "
        "for any other optimizer, a subclass of theirs included; these compile CUDA kernels when they are made",
        cause="zero/gemini/gemini_optimizer.py:121 compares exact types, although all that Gemini asks of an optimizer "
        "is a step() that takes div_scale",
        upstream="",
        where="CPU and CUDA",
        needed=_lists_optimizers,
        patch=_ask_for_div_scale,
    ),
    Repair(
        name="geminireduce",
        area="Gemini",
        symptom="a loss that is off by 5 × 10⁻² after eight steps of OPT 1.3B on two GPUs, with weights and states in "
        "the host's memory, 50 times as much as under any other strategy; no error",
        cause="zero/gemini/chunk/chunk.py:417 frees a chunk of gradients while another stream reduces it "
        "(enable_async_reduce, the default): the next chunk of weights is fetched into the same memory",
        upstream="",
        where="CUDA, more than one rank",
        needed=_frees_what_is_being_reduced,
        patch=_free_after_the_reduction,
    ),
    Repair(
        name="geminiprint",
        area="Gemini",
        symptom="finish_collection 77, printed by every rank after the first step of placement auto",
        cause="zero/gemini/memory_tracer/memstats_collector.py:66 prints it, for debugging",
        upstream="",
        where="CUDA",
        needed=_prints,
        patch=_print_nothing,
    ),
    Repair(
        name="adamclip",
        area="Gemini",
        symptom="max_norm clips nothing, without a word: offloaded states and bf16 gradients train by CPUAdam and "
        "HybridAdam as if the gradients were small",
        cause="nn/optimizer/cpu_adam.py:158 and hybrid_adam.py:126 update bf16 gradients in PyTorch instead of by the "
        "kernel, and that way leaves out div_scale",
        upstream="",
        where="CPU and CUDA",
        needed=_ignores_div_scale,
        patch=_divide_by_div_scale,
    ),
)
