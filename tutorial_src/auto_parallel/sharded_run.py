"""One job: the network and the global batch, the plan that rank 0 found for them, and the training that follows."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import links
import networks
import rows
import torch
import torch.distributed as dist
from handson import worker
from sharded import Sharded, shard
from sharded_data import synthetic
from solver import Machine, Plan, PlanError, Search
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from colossalai.device.device_mesh import DeviceMesh
    from torch import Tensor, nn

# Take the first plan that is proven to be within 3 % of the best, or the best after so many seconds.
GAP, TIME_LIMIT = 0.03, 20.0
LEARNING_RATE = 0.1
# Each residual branch starts at a tenth of its size (Goyal et al. 2017 start it at 0, which would leave most gradients
# 0 in the first step). At full size a ResNet-50 with random weights is chaotic: fp32 and fp64 on ONE device are apart
# by 0.02 in a gradient and by 0.2 in the loss after five steps, so nothing could be compared.
BRANCH_SCALE = 0.1


@functools.cache
def _weights(name: str, classes: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = networks.resnet(name, classes)
    for module in model.modules():
        if isinstance(module, networks.Residual):
            torch.nn.init.constant_(getattr(module, f"bn{module.layers}").weight, BRANCH_SCALE)
    return model.state_dict()


@dataclass(frozen=True)
class Job:
    """What is trained, and where."""

    name: str
    classes: int
    batch: int
    size: int
    mesh: tuple[int, int]
    device_mesh: DeviceMesh

    def model(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """The network, whole; each call gives the same weights, on every rank."""
        model = self.outline()
        weights = {
            name: weight.to(worker.device(), copy=True) for name, weight in _weights(self.name, self.classes).items()
        }
        model.load_state_dict(weights, assign=True)
        return model.to(dtype)

    def outline(self) -> nn.Module:
        """The network without weights: shapes alone, which are all that a plan needs."""
        with torch.device("meta"):
            return networks.resnet(self.name, self.classes)

    def data(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The global batch: images [batch, 3, size, size], labels [batch]; the same on every rank."""
        images, labels = synthetic(self.batch, self.size, self.classes)
        return images.to(worker.device(), dtype), labels.to(worker.device())

    def share(self) -> tuple[Tensor, Tensor]:
        """This rank's part of the global batch, as plain data parallelism divides it."""
        ranks, rank = dist.get_world_size(), dist.get_rank()
        return tuple(part.chunk(ranks)[rank].contiguous() for part in self.data())

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """What the tracer is told of the global batch."""
        return {"x": torch.empty(self.batch, 3, self.size, self.size, dtype=dtype, device="meta")}


def stepper(model: nn.Module, images: Tensor, labels: Tensor) -> Callable[[], Tensor]:
    """A function that takes one SGD step on this batch and returns its loss."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)

    def step() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def find_plan(job: Job, *, speeds: list[float] | None = None, memory_budget: float = 0) -> tuple[Search | None, Plan]:
    """Measure the machine, search on rank 0, tell every rank, log the plan. The search is rank 0's alone.

    Args:
        speeds: MAC/s of a device, bytes/s and seconds of latency of every link, in place of measured ones.
        memory_budget: bytes of one device; 0 is none. Refuses, in one sentence, a budget that no plan fits.
    """
    if speeds:
        macs_per_second, bytes_per_second, latency = speeds
        machine = Machine(macs_per_second, (bytes_per_second,) * 2, (latency,) * 2)
    else:
        model = job.model()
        images, labels = job.share()
        machine = links.measure(job.mesh, model, stepper(model, images, labels), images)
    search, answer = None, [None]
    if dist.get_rank() == 0:
        search = Search(job.outline(), job.inputs(), job.mesh, machine)
        answer = [attempt(search, memory_budget or None, gap=GAP, time_limit=TIME_LIMIT)]
    # A plan is plain numbers and texts.
    dist.broadcast_object_list(answer, src=0, device=worker.device())
    (plan,) = answer
    if isinstance(plan, str):
        worker.refuse(plan)
    report(plan)
    return search, plan


def attempt(search: Search, memory_budget: float | None, **options) -> Plan | str:
    """The plan, or the sentence that says why there is none."""
    try:
        return search.solve(memory_budget, **options)
    except PlanError as error:
        return str(error)


def report(plan: Plan) -> None:
    """Log and record a plan; rank 0's rows are enough, since every rank holds the same."""
    s = plan.summary
    if dist.get_rank() == 0:
        worker.record("plan", **s)
        for row in plan.nodes:
            worker.record("node", **row)
        for row in plan.edges:
            worker.record("edge", **row)
    for line in rows.lines(plan):
        worker.log(line)
    seconds = s["seconds"]
    worker.log(
        f"{s['nodes']} nodes, {s['strategies']} strategies: traced in {seconds['trace']:.2g} s, strategies in "
        f"{seconds['strategies']:.2g} s,\nsolved in {seconds['solve']:.2g} s ({s['status']})"
    )
    worker.log(
        f"predicted: {s['objective_ms']:.3g} ms a step (computing {s['compute_ms']:.3g}, collectives "
        f"{s['communication_ms']:.3g}, resharding {s['resharding_ms']:.3g}),\n"
        f"{gigabytes(s['memory_bytes'])} a device"
    )


def gigabytes(count: float) -> str:
    """Bytes in MiB or GiB, with three digits."""
    return f"{count / 2**30:.3g} GiB" if count >= 2**30 else f"{count / 2**20:.3g} MiB"


def build(job: Job, plan: Plan, dtype: torch.dtype = torch.float32) -> Sharded:
    """Trace the model on this rank and shard it as planned; the costs need not be worked out again."""
    anything = Machine(1.0, (1.0, 1.0), (0.0, 0.0))
    search = Search(job.model(dtype), job.inputs(dtype), job.mesh, anything, device_mesh=job.device_mesh, costs=False)
    return shard(search, plan)


def train(job: Job, plan: Plan, steps: int) -> None:
    """Train the sharded model; log each step's loss, which every rank has, and its time."""
    step = stepper(build(job, plan).model, *job.data())
    for number in range(1, steps + 1):
        began = time.perf_counter()
        loss = step().item()
        milliseconds = (time.perf_counter() - began) * 1e3
        worker.log(f"step {number:>3}/{steps}   loss {loss:.4f}   {milliseconds:.3g} ms")
        worker.progress(number, steps)
        if dist.get_rank() == 0:
            worker.record("loss", step=number, loss=loss)


def write_csv(plan: Plan, file: Path) -> None:
    """The nodes as a table, and the edges in a second file beside it."""
    edges = file.with_suffix(".edges" + file.suffix)
    file.write_text(rows.as_csv(plan.nodes), encoding="utf-8")
    edges.write_text(rows.as_csv(plan.edges), encoding="utf-8")
    worker.log(f"wrote {file.name} and {edges.name}")
