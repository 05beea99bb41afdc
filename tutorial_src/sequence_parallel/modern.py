"""Today's sequence parallelism: every mode of HybridParallelPlugin on BERT or LLaMA, beside one process, in one job.

    torchrun --nproc_per_node 2 modern.py MODEL=llama
    torchrun --nproc_per_node 4 modern.py MODEL=bert MODES=split_gather,ring
    torchrun --nproc_per_node 4 modern.py MODEL=llama MODES=split_gather,all_to_all PP=2

For each mode: does it run, or what does it say; does it compute the loss and the gradients of one process; which part
of the work does a rank do; and what do a step's time, memory and traffic cost. HANDSON_WITHOUT=rowbias,sdpamask leaves
out repairs and shows upstream's faults. Everything is fp32 without TF32, so that gradients can be compared.
"""

from __future__ import annotations

import copy
import gc
import os
import sys
import textwrap
from dataclasses import asdict, dataclass
from typing import Any

from handson import repairs, worker
from handson.repairs import booster_cpu, booster_sequence, gloo, noise
from modern_layout import Layout, layout_of, plugin_settings, read

asked = read(sys.argv[1:], worker.place().world_size)
repairs.apply(noise, booster_cpu, booster_sequence, gloo)  # before the import of what they repair

import colossalai
import torch
import torch.distributed as dist
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin
from handson.measure.communication import CommunicationCounter, wire_bytes
from handson.measure.memory import step_memory
from handson.measure.timing import median_step_time
from modern_models import build_model, make_batch
from modern_parity import Reference, compare_gradients, reference_of
from modern_theory import activation_bytes
from modern_witness import Witness

WARMUP, REPEATS = 2, 4
LEARNING_RATE = 1e-4


@dataclass
class Divided:
    """A model under one mode, and how to take a step with it."""

    booster: Booster
    plugin: HybridParallelPlugin
    model: Any
    optimizer: Any
    batch: dict[str, torch.Tensor]

    def forward_and_backward(self) -> torch.Tensor | None:
        """Fill the gradients; the loss of this rank's share, or None on a pipeline's earlier stages."""
        if self.plugin.pp_size > 1:
            batches = iter([self.batch])
            return self.booster.execute_pipeline(batches, self.model, lambda out, _: out.loss, self.optimizer)["loss"]
        loss = self.model(**self.batch).loss
        self.booster.backward(loss, self.optimizer)
        return loss.detach()

    def step(self) -> None:
        """One training step."""
        self.forward_and_backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def main() -> None:
    """Run the undivided model, then each mode in turn."""
    if worker.backend() == "gloo":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    colossalai.launch_from_torch(verbose=False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    whole = build_model(asked.model, asked.sizes, asked.attention)
    batch = make_batch(asked.model, asked.sizes, asked.padding)
    worker.record(
        "sizes", model=asked.model, **asdict(asked.sizes), parameters=sum(p.numel() for p in whole.parameters())
    )
    worker.log(f"{asked.model}, {asked.sizes.batch} sequences of {asked.sizes.length} tokens, {dist.get_backend()}")
    reference = run_alone(whole, batch)
    for done, way in enumerate(asked.ways, start=1):
        run_way(way, layout_of(way, asked, dist.get_world_size()), whole, batch, reference)
        worker.progress(done, len(asked.ways))
    dist.barrier()
    dist.destroy_process_group()


def run_alone(whole: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Reference:
    """One process: what every mode is compared with, and what a step costs it."""
    held = allocated()
    model = copy.deepcopy(whole).to(worker.device())
    with Witness(model) as witness:
        reference = reference_of(model, batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def step() -> None:
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if worker.place().rank == 0:
        worker.record("witness", way="one process", **witness.seen)
    if asked.measured:
        measure("one process", step, model, optimizer, batch, {}, held, everyone=False)
    return reference


def run_way(
    way: str, layout: Layout, whole: torch.nn.Module, batch: dict[str, torch.Tensor], reference: Reference
) -> None:
    """Divide the model, compare it with one process, and measure a step; or record what it says instead."""
    held = allocated()
    divided = divide(way, layout, whole, batch)
    if isinstance(divided, str):
        worker.log(f"{way:19}refused: {textwrap.shorten(divided, 56, placeholder=' ...')}")
        if worker.place().rank == 0:
            worker.record("mode", way=way, layout=asdict(layout), runs=False, message=divided)
        return
    with Witness(divided.model) as witness:
        loss = divided.forward_and_backward()
    worker.record("witness", way=way, **witness.seen)
    mean = over_all_ranks(loss)
    compared = compare_gradients(divided.model.unwrap(), reference, divided.plugin)
    if worker.place().rank == 0:
        difference = abs(mean - reference.loss)
        worker.record("mode", way=way, layout=asdict(layout), runs=True, message="", loss=mean, **compared)
        worker.record("parity", way=way, steps=1, max_loss_difference=difference)
        off = f"loss off by {difference:.1e}, gradients by {compared['gradient_difference']:.1e}"
        worker.log(f"{way:19}{off} ({compared['wrong']} of {compared['compared']} wrong)")
    divided.optimizer.zero_grad()
    plugin = divided.plugin
    axes = {
        plugin.dp_group: "data",
        plugin.pp_group: "pipeline",
        plugin.sp_group: "sequence",
        plugin.tp_group: "tensor",
    }
    axes |= {plugin.mixed_dp_group: "data x sequence"} if plugin.mixed_dp_group is not plugin.dp_group else {}
    if asked.measured:
        measure(way, divided.step, divided.model, divided.optimizer, divided.batch, groups_of(divided.plugin), held)


def groups_of(plugin: HybridParallelPlugin) -> dict[dist.ProcessGroup, str]:
    """The plugin's process groups by the axis of the mesh; groups of the same ranks may be one object."""
    mixed = plugin.mixed_dp_group
    names = {} if mixed is plugin.dp_group else {mixed: "data x sequence"}
    names |= {plugin.dp_group: "data", plugin.pp_group: "pipeline", plugin.sp_group: "sequence"}
    return names | {plugin.tp_group: "tensor"}


def divide(way: str, layout: Layout, whole: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Divided | str:
    """The model under one mode, or the sentence with which the mode is refused; all ranks fare alike."""
    model = copy.deepcopy(whole)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    try:
        plugin = HybridParallelPlugin(**plugin_settings(way, layout))
        booster = Booster(plugin=plugin)
        model, optimizer, *_ = booster.boost(model, optimizer)
    except (AssertionError, ValueError, NotImplementedError) as refusal:
        return str(refusal)
    share = dist.get_rank(plugin.dp_group)
    return Divided(booster, plugin, model, optimizer, {k: v.chunk(layout.data)[share] for k, v in batch.items()})


def measure(
    way: str, step: Any, model: Any, optimizer: Any, batch: dict[str, torch.Tensor], axes: Any, held: int,
    everyone: bool = True,
) -> None:  # fmt: skip
    """Record time, memory and communication of further steps; `held` bytes were there before this mode."""
    device = worker.device()
    time = median_step_time(step, warmup=WARMUP, repeats=REPEATS, device=device)
    memory = step_memory(step, model=model, optimizer=optimizer, alive=batch.values(), device=device).fields()
    with CommunicationCounter(axes) as counter:
        step()
    first = worker.place().rank == 0
    if everyone or first:
        memory["peak_bytes"] -= held
        worker.record("memory", way=way, **memory)
        worker.record("communication", way=way, rows=counter.rows())
        record_traffic(way, counter)
    if first:
        tokens = asked.sizes.batch * asked.sizes.length
        rate = time.per_second(tokens)
        worker.record("step_time", way=way, median_ms=time.median_ms, all_ms=time.all_ms, tokens_per_second=rate)
        peak = memory["peak_bytes"] / 2**20
        worker.log(f"{way:19}{time.median_ms:.3g} ms a step, peak {peak:,.2f} MiB on rank 0")


def record_traffic(way: str, counter: CommunicationCounter) -> None:
    """Record the bytes of those messages that are an activation or a rank's piece of one, beside their formula."""
    if way == "one process":
        return
    layout, s = layout_of(way, asked, dist.get_world_size()), asked.sizes
    whole = s.batch * s.length * s.hidden * 4
    theory = activation_bytes(asked.model, way, s, layout)
    if theory:
        ranks = max(layout.tensor, layout.sequence)
        sizes = (whole, whole // ranks)
        counted = sum(wire_bytes(c.collective, c.bytes, c.group_size) for c in counter.calls if c.bytes in sizes)
        worker.record("traffic", way=way, formula=theory[0], expected=theory[1], counted=counted)


def over_all_ranks(loss: torch.Tensor | None) -> float:
    """The mean over the ranks that have a loss."""
    own = [0.0, 0.0] if loss is None else [loss.item(), 1.0]
    total = torch.tensor(own, dtype=torch.float64, device=worker.device())
    dist.all_reduce(total)
    return (total[0] / total[1]).item()


def allocated() -> int:
    """Bytes on the GPU before a mode begins, once what the last one left is collected; the CPU counts from nought."""
    gc.collect()
    if worker.device().type == "cpu":
        return 0
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


if __name__ == "__main__":
    main()
