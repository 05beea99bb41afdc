"""What a rank keeps for training, in bytes: by the formulas of ZeRO, and counted on the tensors themselves.

Per parameter, mixed precision and Adam keep 2 bytes of weight and 2 of gradient, and in fp32 4 of master weight and
4 + 4 of the two moments: 16 in all (Rajbhandari et al. 2020, section 3.1). A strategy on w ranks divides some of them
by w. The count walks from the booster's objects to the tensors that they hold and adds up their storages, each once;
it takes nobody's word for a size.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from handson import worker
from handson.measure.memory import PeakMemory, SavedForBackward
from handson.measure.saved import storage_bytes
from strategies import STRATEGIES, Trained
from torch import Tensor
from train import step

KINDS = ("weights", "gradients", "master", "moments")


@dataclass(frozen=True)
class Memory:
    """Bytes of this rank: on its device, and `host_*` in the host's memory, where that is another.

    `gradients` is what there is between the backward pass and the update, the rest is there all the time;
    `activations` is what the forward pass saves for the backward, `peak` the most on the device at one time.
    """

    weights: int
    gradients: int
    master: int
    moments: int
    activations: int
    peak: int
    method: str
    host_weights: int
    host_gradients: int
    host_master: int
    host_moments: int

    def fields(self) -> dict[str, Any]:
        """The figures by name, for `worker.record`."""
        return asdict(self)


def formula(strategy: str, precision: str, ranks: int) -> dict[str, tuple[str, float]]:
    """Bytes per parameter and rank of each kind, with the words for it; w stands for the ranks.

    An offloaded kind has the same bytes, in the host's memory.
    """
    chosen, wide = STRATEGIES[strategy], precision == "fp32"
    size = 4 if wide else 2
    shared = {
        "weights": chosen.stage >= 3,
        "gradients": chosen.stage >= 2,
        "master": chosen.stage >= 1,
        "moments": chosen.stage >= 1,
    }
    each = {"weights": size, "gradients": size, "master": 4, "moments": 8}
    if chosen.family == "ddp" and wide:
        each["master"] = 0  # the weights are their own; ZeRO copies its share all the same
    if chosen.family == "gemini":
        each["gradients"] = 0  # a chunk's gradients take the place of its weights, which the masters can restore
    return {
        kind: (
            f"{each[kind]}/w" if shared[kind] and each[kind] else f"{each[kind]}",
            each[kind] / (ranks if shared[kind] else 1),
        )
        for kind in KINDS
    }


def activations(config: Any, batch: int, sequence: int, precision: str) -> float:
    """Bytes that the forward pass saves for the backward, for attention by torch's fused kernel and no dropout.

    Each layer keeps 8 tensors [b, s, h] (the two norms' inputs and outputs, query, key, value, what attention gives)
    and the MLP's inner one; the end keeps the last norm's two and, in fp32, the probabilities of every token. Left
    out: norms' statistics and token numbers, under 1 %. After Korthikanti et al. 2022, arxiv.org/abs/2205.05198.
    """
    tokens, size = batch * sequence, 4 if precision == "fp32" else 2
    a_layer = 8 * config.hidden_size + config.ffn_dim
    end = 2 * config.hidden_size
    return tokens * (size * (config.num_hidden_layers * a_layer + end) + 4 * config.vocab_size)


def held(trained: Trained) -> dict[str, list[Tensor]]:
    """The tensors that this rank holds now, by kind."""
    family, optimizer = STRATEGIES[trained.strategy].family, trained.optimizer
    states = [state for state in optimizer.optim.state.values()]
    found = {
        "weights": list(trained.model.parameters()),
        "gradients": [p.grad for p in trained.model.parameters() if p.grad is not None],
        "master": [state["master"] for state in states if "master" in state],
        "moments": [state[name] for state in states for name in ("exp_avg", "exp_avg_sq")],
    }
    if family == "zero":
        found["master"] = [p for group in optimizer._master_param_groups_of_current_rank.values() for p in group]
        found["gradients"] += list(_zero_gradients(optimizer))
    if family == "gemini":
        chunks = trained.model.chunk_manager.chunk_groups
        of_type = {name.rpartition("_")[0]: group for name, group in chunks.items()}
        found["weights"] = list(_chunk_tensors(of_type["fp16_param"]))
        found["master"] = list(_chunk_tensors(of_type["fp32_param"]))
        found["gradients"] = []
    return found


def _zero_gradients(optimizer: Any) -> Iterator[Tensor]:
    for store in optimizer.pg_to_grad_store.values():
        for of_group in store._grads_of_params.values():
            for pieces in of_group.values():
                yield from pieces


def _chunk_tensors(chunks: Iterable[Any]) -> Iterator[Tensor]:
    """What each chunk holds: itself whole, its share, and the copy of that in the host's memory."""
    for chunk in chunks:
        for tensor in (chunk.cuda_global_chunk, chunk.cuda_shard, chunk.cpu_shard):
            if tensor is not None:
                yield tensor


def chunk_use(trained: Trained) -> float | None:
    """Which share of Gemini's chunks is filled with parameters; None where there are no chunks."""
    if STRATEGIES[trained.strategy].family != "gemini":
        return None
    chunks = [chunk for group in trained.model.chunk_manager.chunk_groups.values() for chunk in group]
    return float(sum(chunk.utilized_size for chunk in chunks) / sum(chunk.chunk_size for chunk in chunks))


def measure(trained: Trained, ids: Tensor) -> tuple[Memory, Tensor]:
    """Take one training step and say what it keeps; also its loss. Take at least one step before."""
    device = worker.device()
    everything = [tensor for kind in held(trained).values() for tensor in kind]
    saved = SavedForBackward(exclude=[*trained.model.parameters(), *trained.model.buffers()])
    counted: dict[str, int] = {}

    def count(*kinds: str) -> None:
        for kind, tensors in held(trained).items():
            if kind in kinds:
                on_device = [tensor for tensor in tensors if tensor.device.type == device.type]
                on_host = [tensor for tensor in tensors if tensor.device.type != device.type]
                counted[kind], counted[f"host_{kind}"] = storage_bytes(on_device), storage_bytes(on_host)

    peak = PeakMemory(alive=[*everything, ids], device=device)
    del everything
    with peak:
        loss = step(trained, ids, saving=saved, after_backward=lambda: count("gradients"))
    count("weights", "master", "moments")
    return Memory(activations=saved.total_bytes, peak=peak.peak_bytes, method=peak.method, **counted), loss
