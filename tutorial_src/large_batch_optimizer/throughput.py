"""How many images a second: steps of a residual network on synthetic images, at one batch or at growing ones.

The images are random numbers and their labels too, so nothing can be learned from them; a step costs what it would
cost on real ones.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import methods
import networks
import torch
import torch.distributed as dist
from handson import worker
from handson.measure.communication import CommunicationCounter
from handson.measure.memory import step_memory
from handson.measure.timing import median_step_time
from settings import Settings
from torch import nn
from train import boost, take_step

FULL = 0.9  # the smallest batch that reaches this share of the best throughput fills the device
ROOM = 0.8  # of a GPU's memory: a batch that would need more is not tried


class Bench:
    """The boosted network with its optimizer, and steps of it on this rank's synthetic images."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.device = settings, worker.device()
        model = networks.resnet(settings).to(self.device)
        if self.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        self.parameters = sum(p.numel() for p in model.parameters())
        # So small a rate that random labels cannot drive the weights anywhere while steps are timed.
        optimizer = methods.make(settings.optimizer, list(model.parameters()), 1e-5, settings)
        self.booster, self.model, self.optimizer = boost(model, optimizer, settings)
        worker.log(
            f"residual network, {self.parameters:,} parameters, {settings.image_size}x{settings.image_size} synthetic "
            f"images, {settings.precision}\nrandom labels: this measures speed, nothing can be learned"
        )

    def batch(self, images: int) -> tuple[torch.Tensor, torch.Tensor]:
        """So many random images and labels, on this rank's device."""
        generator = torch.Generator(self.device).manual_seed(worker.place().rank)
        size = self.settings.image_size
        pixels = torch.randn(images, 3, size, size, device=self.device, generator=generator)
        labels = torch.randint(self.settings.classes, (images,), device=self.device, generator=generator)
        if self.device.type == "cuda":
            pixels = pixels.to(memory_format=torch.channels_last)
        return pixels, labels

    def measure(self, images: int) -> dict[str, Any]:
        """Time, memory and communication of a step with so many images a rank; also rows that other lessons know."""
        s, world = self.settings, dist.get_world_size()
        pixels, labels = self.batch(images)
        mixed = torch.autocast("cuda", torch.bfloat16) if s.precision == "bf16" and pixels.is_cuda else nullcontext()

        def step() -> None:
            with mixed:
                take_step(self.booster, self.model, self.optimizer, pixels, labels)

        timed = median_step_time(step, warmup=s.warmup_steps, repeats=s.timed_steps, device=self.device)
        counter = CommunicationCounter(groups={dist.group.WORLD: "data"})

        def counted() -> None:
            with counter:
                step()

        memory = step_memory(
            counted, model=self.model.unwrap(), optimizer=self.optimizer, alive=[pixels, labels], device=self.device
        )
        # The slowest rank decides, and the fullest: every rank must draw the same conclusion from them.
        worst = torch.tensor([timed.median_ms, memory.peak_bytes], dtype=torch.float64, device=self.device)
        dist.all_reduce(worst, op=dist.ReduceOp.MAX)
        median, peak = worst.tolist()
        worker.record("memory", **memory.fields())
        worker.record("communication", rows=counter.rows())
        found = dict(
            images_per_rank=images,
            global_batch=images * world,
            median_ms=median,
            images_per_second=images * world * 1e3 / median,
            peak_bytes=int(peak),
            memory_method=memory.method,
            precision=s.precision,
            optimizer=s.optimizer,
        )
        worker.log(
            f"{world} x {images:>4} images: {median:7.3g} ms a step, {found['images_per_second']:7.4g} images/s, "
            f"{peak / 2**20:7.4g} MiB"
        )
        if worker.place().rank == 0:
            worker.record("throughput", **found)
            worker.record(
                "step_time",
                median_ms=median,
                all_ms=timed.all_ms,
                warmup=timed.warmup,
                method=timed.method,
                images_per_second=found["images_per_second"],
            )
        return found


def once(settings: Settings) -> None:
    """Time steps of IMAGES_PER_RANK images."""
    bench = Bench(settings)
    bench.measure(settings.images_per_rank)


def sweep(settings: Settings) -> None:
    """Double the images of a rank from SWEEP's first to its last, while there is room; find from where it is full."""
    bench = Bench(settings)
    first, last = settings.sweep
    capacity = torch.cuda.get_device_properties(bench.device).total_memory if bench.device.type == "cuda" else None
    images, found, stopped = first, [], "cap"
    while images <= last:
        found.append(bench.measure(images))
        worker.progress(images, last)
        images *= 2
        if capacity:
            torch.cuda.empty_cache()  # the next size needs other pieces than this one
        if capacity and 2 * found[-1]["peak_bytes"] > ROOM * capacity:
            stopped = "memory"
            break
    best = max(row["images_per_second"] for row in found)
    full = next(row for row in found if row["images_per_second"] >= FULL * best)
    worker.log(
        f"full from {full['images_per_rank']} images a rank on: {100 * full['images_per_second'] / best:.0f} % of the "
        f"best throughput, {best:.4g} images/s"
    )
    if worker.place().rank == 0:
        worker.record(
            "full",
            share=FULL,
            images_per_rank=full["images_per_rank"],
            global_batch=full["global_batch"],
            images_per_second=full["images_per_second"],
            best=best,
            capacity_bytes=capacity,
            stopped=stopped,
            parameters=bench.parameters,
            tensors=len(list(bench.model.parameters())),
        )
    if settings.plugin == "ddp":
        time_updates(bench)


def time_updates(bench: Bench) -> None:
    """What each optimizer's own update of this network costs, on this rank alone: no images, no communication."""
    parameters = [nn.Parameter(p.detach().clone()) for p in bench.model.unwrap().parameters()]
    generator = torch.Generator(bench.device).manual_seed(0)
    for parameter in parameters:
        noise = torch.randn(parameter.shape, generator=generator, device=bench.device)
        parameter.grad = noise.mul_(1e-3).contiguous(memory_format=_layout(parameter))
    for method in methods.METHODS:
        optimizer = methods.make(method, parameters, 1e-5, bench.settings)
        s = bench.settings
        timed = median_step_time(optimizer.step, warmup=s.warmup_steps, repeats=s.timed_steps, device=bench.device)
        held = [x for state in optimizer.state.values() for x in state.values() if isinstance(x, torch.Tensor)]
        size = sum(x.numel() * x.element_size() for x in held if x.dim())
        worker.log(f"update by {method:14} {timed.median_ms:7.3g} ms, {size / 2**20:.3g} MiB of states")
        if worker.place().rank == 0:
            worker.record("update", method=method, median_ms=timed.median_ms, state_bytes=size)


def _layout(parameter: nn.Parameter) -> torch.memory_format:
    """The parameter's own memory format: a gradient in another would be copied in every step."""
    last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format
