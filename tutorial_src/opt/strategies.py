"""The ways to divide one model's training states: what each is called, what it divides, and how Colossal-AI does it.

Every strategy is data parallel: each rank reads its own part of the batch. They differ in what a rank keeps.

    ddp              everything, on every rank
    zero1            weights and gradients; its share of the optimizer's states
    zero2            weights; its share of gradients and states
    gemini-static    its share of everything, in chunks that are gathered when a layer needs them
    gemini-auto      the same; chunks and states live in the host's memory, and the GPU holds as many as fit
    zero1-offload    zero1 with the states in the host's memory, where they are updated
    zero2-offload    zero2 likewise
    gemini-offload   gemini-static with weights, gradients and states in the host's memory

Rajbhandari et al. 2020 (ZeRO, arxiv.org/abs/1910.02054), Ren et al. 2021 (ZeRO-Offload, arxiv.org/abs/2101.06840), Fang
et al. 2021 (PatrickStar, whose chunks Gemini uses, arxiv.org/abs/2108.05818).
"""

from __future__ import annotations

import gc
import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from handson import worker

if TYPE_CHECKING:
    import torch
    from torch import nn

PRECISIONS = ("fp32", "bf16")
NO_CAP = "a memory cap limits what a rank takes of its GPU, and this job runs on the CPU; use --mem_cap 0"
ASYNCHRONOUS = True  # reduce gradients beside the computation, where chunks are pinned
PINNED = 2**31  # parameters from which offloaded chunks are not pinned in the host's memory


@dataclass(frozen=True)
class Strategy:
    """`family` is ddp, zero or gemini; `stage` what of ZeRO it divides (0 to 3); `offload` and `moves` need a GPU."""

    family: str
    stage: int
    offload: bool = False
    moves: bool = False  # chunks go between GPU and host as memory demands


STRATEGIES = {
    "ddp": Strategy("ddp", 0),
    "zero1": Strategy("zero", 1),
    "zero2": Strategy("zero", 2),
    "gemini-static": Strategy("gemini", 3),
    "gemini-auto": Strategy("gemini", 3, moves=True),
    "zero1-offload": Strategy("zero", 1, offload=True),
    "zero2-offload": Strategy("zero", 2, offload=True),
    "gemini-offload": Strategy("gemini", 3, offload=True),
}


@dataclass
class Trained:
    """A model under a strategy: Colossal-AI's booster and what it made of model, optimizer and scheduler."""

    strategy: str
    precision: str
    booster: Any
    model: Any
    optimizer: Any
    scheduler: Any
    clip: float = 0.0  # what the training step must do about the norm of the gradients; most plugins do it themselves

    def close(self) -> None:
        """Let go of everything, so that the next model of this process finds the memory free."""
        import torch

        self.booster = self.model = self.optimizer = self.scheduler = None
        if STRATEGIES[self.strategy].family == "gemini":
            from colossalai.zero.gemini.gemini_mgr import GeminiManager
            from colossalai.zero.gemini.placement_policy import AutoPlacementPolicy

            # What these methods remember of past calls, for every model of the process, holds the chunks as well.
            GeminiManager._get_layout_info.cache_clear()
            AutoPlacementPolicy._sort_can_evict_chunks.cache_clear()
        gc.collect()
        gc.collect()  # the first removes the hooks that lead to the chunks, the second the chunks
        if worker.device().type == "cuda":
            torch.cuda.empty_cache()


def why_not(strategy: str, precision: str) -> str:
    """What stands against this strategy on this host, in one sentence, or ""."""
    if strategy not in STRATEGIES:
        return f"--strategy {strategy} is not known; use one of {', '.join(STRATEGIES)}"
    if precision not in PRECISIONS:
        return f"--precision {precision} is not known; use {' or '.join(PRECISIONS)}"
    chosen = STRATEGIES[strategy]
    if chosen.family == "gemini" and precision == "fp32":
        return f"{strategy} keeps its weights in 16 bits and fp32 copies of them beside; use --precision bf16"
    if worker.device().type == "cuda":
        return ""
    if chosen.offload:
        return f"{strategy} moves states from a GPU to the host's memory, and here is no GPU; use " + strategy.replace(
            "gemini-offload", "gemini-static"
        ).removesuffix("-offload")
    if chosen.moves:
        return f"{strategy} moves chunks as a GPU's memory fills, and here is no GPU; use gemini-static"
    return ""


def repair() -> None:
    """Apply every repair that training OPT by Colossal-AI needs on this host."""
    from handson import repairs
    from handson.repairs import booster_cpu, gemini, noise, optimizers

    repairs.apply(noise, booster_cpu, optimizers, gemini)


def cap_memory(gigabytes: float) -> None:
    """Let this process take no more than so many GB (10⁹ bytes) of its GPU; 0 means no cap.

    Raises:
        SystemExit: with one sentence, when there is no GPU, or it has less than that.
    """
    if not gigabytes:
        return
    device = worker.device()
    if device.type != "cuda":
        worker.refuse(NO_CAP)
    import torch
    from colossalai.legacy.utils.memory import colo_set_process_memory_fraction

    total = torch.cuda.get_device_properties(device).total_memory
    if not 0 < gigabytes * 1e9 <= total:
        worker.refuse(f"--mem_cap {gigabytes:g} must be between 0 and the GPU's own {total / 1e9:.1f} GB")
    colo_set_process_memory_fraction(gigabytes * 1e9 / total)  # Gemini's placement asks this; it tells torch too


def dtype_of(precision: str) -> Any:
    """The type of the weights that the layers compute with."""
    import torch

    return torch.bfloat16 if precision == "bf16" else torch.float32


def birthplace(strategy: str) -> torch.device:
    """Where a model should be made that this strategy will take: on the device, or in the host's memory if it stays."""
    import torch

    chosen = STRATEGIES[strategy]
    return torch.device("cpu") if chosen.offload or chosen.moves else worker.device()


def prepare(
    strategy: str,
    model: nn.Module,
    *,
    lr: float,
    precision: str = "bf16",
    steps: int | None = None,
    weight_decay: float = 0.0,
    clip: float = 0.0,
) -> Trained:
    """Put a model under a strategy, with AdamW and a learning rate that falls linearly to 0 over `steps`.

    The model may lie on any device and in any type; in bf16 every strategy updates fp32 master weights. `clip` is the
    largest norm of all gradients together; 0 leaves them as they are. Call `repair()` once before, after the process
    group exists.

    Raises:
        SystemExit: with one sentence, when the strategy cannot be had here.
    """
    if refusal := why_not(strategy, precision):
        worker.refuse(refusal)
    import torch
    from adam import AdamW
    from colossalai.booster import Booster
    from colossalai.logging import get_dist_logger

    get_dist_logger().set_level("ERROR")  # not that asynchronous reduction wants pinned memory
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*TypedStorage is deprecated", category=UserWarning)
    if worker.device().type == "cuda" and (STRATEGIES[strategy].offload or STRATEGIES[strategy].moves):
        _use_the_cores()
    if STRATEGIES[strategy].family == "ddp":
        model = model.to(dtype_of(precision))
    optimizer = AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)
    elements = sum(p.numel() for p in model.parameters())
    booster = Booster(plugin=_plugin(STRATEGIES[strategy], precision, elements, clip))
    model.train()
    model, optimizer, *_ = booster.boost(model, optimizer)
    inner = optimizer.optim
    fall = torch.optim.lr_scheduler.LambdaLR(inner, lambda step: max(0.0, 1 - step / steps) if steps else 1.0)
    by_hand = clip if STRATEGIES[strategy].family == "ddp" else 0.0
    return Trained(strategy, precision, booster, model, optimizer, fall, by_hand)


def _use_the_cores() -> None:
    """Let this rank update offloaded states by its share of the CPU's cores; a launcher may have said one thread."""
    import torch

    cores = len(os.sched_getaffinity(0)) // worker.place().local_world_size
    if torch.get_num_threads() < cores:
        torch.set_num_threads(cores)
        worker.log(f"states in the host's memory are updated by {cores} threads a rank")


def _plugin(chosen: Strategy, precision: str, elements: int, clip: float) -> Any:
    from colossalai.booster.plugin import GeminiPlugin, LowLevelZeroPlugin, TorchDDPPlugin

    on_gpu = worker.device().type == "cuda"
    if chosen.family == "ddp":
        return TorchDDPPlugin(gradient_as_bucket_view=True)  # else the buckets are a second copy of the gradients
    if chosen.family == "zero":
        return LowLevelZeroPlugin(
            stage=chosen.stage,
            precision=precision,
            max_norm=clip,
            cpu_offload=chosen.offload,
            overlap_communication=on_gpu,
        )
    # A chunk is at least this many Mi elements. With upstream's 32 a smaller model would stay whole on every rank.
    chunk = min(32.0, elements / 2**20 / 8)
    # Pinned memory travels faster, but a pinned block is rounded up to a power of two and each chunk keeps one for
    # good, also one that stays on the GPU; upstream's asynchronous reduction insists on it.
    pinned = on_gpu and (chosen.offload or chosen.moves) and elements < PINNED
    return GeminiPlugin(
        placement_policy="auto" if chosen.moves else "static",
        precision=precision,
        max_norm=clip,
        offload_optim_frac=1.0 if chosen.offload else 0.0,
        offload_param_frac=1.0 if chosen.offload else 0.0,
        min_chunk_size_m=chunk,
        search_range_m=chunk,
        pin_memory=pinned,
        enable_async_reduce=pinned and ASYNCHRONOUS,
    )
