"""The largest batch under a cap, by search, and throughput against batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from ckpt_chain import Traced, between, profile, trace
from ckpt_measure import difference, gradients, peak_bytes, step_seconds
from ckpt_tasks import Task, with_batch
from handson import worker
from rotor import solve

MIB = 2**20
GRAIN = {"gpu": 8, "laptop": 4}  # batches are multiples of it
BEYOND = 4  # batch sizes that are measured between the two largest ones
TRIES = 4


@dataclass
class Batch:
    """One batch size. Bytes of everything, seconds; `again` says which stages run again, None without checkpoints.

    `difference` is how far the gradients are from the plain network's, for the largest batch that both can run.
    """

    batch: int
    method: str
    peak_bytes: int
    predicted_bytes: int | None = None
    again: list[int] | None = None
    step_seconds: float = 0.0
    per_second: float = 0.0
    difference: float | None = None


class Search:
    """The two searches under one cap.

    `plain_batch` is the largest batch that fits without checkpoints, found by running; `rotor_batch` the largest for
    which the solver has a schedule that was run and kept to the cap, and `largest` what came of it.
    """

    def __init__(self, task: Task, cap: int) -> None:
        if task.device.type == "cuda":  # a cap above the device's own memory would be none
            cap = min(cap, int(0.9 * torch.cuda.get_device_properties(task.device).total_memory))
        self.cap, self.grain = cap, GRAIN[worker.preset()]
        self.task = with_batch(task, self.grain)
        self.task.step(task.model)  # warms up: libraries allocate their workspaces once and keep them
        self.fixed = _fixed_bytes(self.task)
        self.runs = 0
        worker.log(f"{task.name}, batches of {self.task.shape.partition(' x ')[2]}, cap {cap / MIB:.0f} MiB")
        worker.log(f"parameters, gradients, buffers: {self.fixed / MIB:.1f} MiB")
        if not self._fits(self.grain):
            worker.refuse(
                f"--cap {cap // MIB} is too small: {task.name} needs {self.fixed / MIB:.0f} MiB for its parameters and "
                f"gradients, and a batch of {self.grain} does not fit beside them; give a larger cap"
            )
        self.plain_batch = self._largest(self._fits, self.grain)
        worker.log(f"without checkpoints the largest batch is {self.plain_batch}, found in {self.runs} runs")
        self._small, self._large = self._profiled(self.plain_batch), self._profiled(4 * self.plain_batch)
        self.asked = 0
        self.rotor_batch = self._largest(self._solvable, self.plain_batch)
        while (found := self.schedule(self.rotor_batch)) is None:
            self.rotor_batch -= self.grain
        self.largest = found
        worker.log(f"with the solver it is {self.rotor_batch}, found by asking it {self.asked} times")
        worker.record(
            "ckpt_batch_setting",
            model=task.name,
            shape=self.task.shape,
            cap_bytes=cap,
            fixed_bytes=self.fixed,
            plain_batch=self.plain_batch,
            rotor_batch=self.rotor_batch,
            runs=self.runs,
            asked=self.asked,
            grain=self.grain,
        )

    def chain(self, batch: int) -> Traced:
        """The model's chain at this batch size."""
        return between(self._small, self._large, (batch / self.plain_batch - 1) / 3)

    def schedule(self, batch: int) -> tuple[Batch, Callable[[], None]] | None:
        """A schedule for this batch that was run and kept to the cap, or None."""
        task, traced = with_batch(self.task, batch), self.chain(batch)
        allowed = self.cap - self.fixed
        for _ in range(TRIES):
            found = solve(traced, allowed)
            if found is None:
                return None
            step = partial(task.step, traced.module(found.graph))
            measured = self.fixed + peak_bytes(task, step)
            if measured <= self.cap:
                return Batch(batch, "rotor", measured, self.fixed + found.peak_bytes, found.again), step
            allowed -= measured - self.cap
        return None

    def plain(self, batch: int) -> tuple[Batch, Callable[[], None]]:
        """The plain network at this batch size."""
        task = with_batch(self.task, batch)
        step = partial(task.step, task.model)
        return Batch(batch, "none", self.fixed + peak_bytes(task, step)), step

    def _fits(self, batch: int) -> bool:
        self.runs += 1
        try:
            return self.plain(batch)[0].peak_bytes <= self.cap
        except torch.cuda.OutOfMemoryError:
            return False

    def _solvable(self, batch: int) -> bool:
        self.asked += 1
        return solve(self.chain(batch), self.cap - self.fixed) is not None

    def _profiled(self, batch: int) -> Traced:
        task = with_batch(self.task, batch)
        traced = trace(task.model, task.inputs)
        profile(traced, task.inputs, repeats=5 if task.device.type == "cuda" else 1)
        return traced

    def _largest(self, works: Callable[[int], bool], known: int) -> int:
        """The largest multiple of the grain that works: doubling until one does not, then halving what is between."""
        low, high = known, 2 * known
        while works(high):
            low, high = high, 2 * high
        while high - low > self.grain:
            middle = (low + high) // 2 // self.grain * self.grain
            low, high = (middle, high) if works(middle) else (low, middle)
        return low


def _fixed_bytes(task: Task) -> int:
    if task.device.type == "cuda":
        batch = sum(value.nbytes for value in (*task.inputs.values(), task.labels) if value is not None)
        return torch.cuda.memory_allocated(task.device) - batch
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in task.fixed}.values())


def measure(search: Search) -> list[Batch]:
    """Measure batches up to the largest with the solver; each is recorded as a row `ckpt_batch`."""
    grain, plain, largest = search.grain, search.plain_batch, search.rotor_batch
    shares = [share / BEYOND for share in range(1, BEYOND + 1)]
    small = sorted({max(grain, round(plain * share / grain) * grain) for share in (0.25, 0.5, 0.75, 1)})
    beyond = sorted({round((plain + (largest - plain) * share) / grain) * grain for share in shares} - {plain})
    found = [search.plain(batch) for batch in small]
    made = [search.largest if batch == largest else search.schedule(batch) for batch in beyond]
    found += [one for one in made if one]
    points = []
    for point, step in reversed(found):  # the largest that this device can also run plain, cap or no cap
        point.difference = _difference(search, point, step)
        if point.difference is not None:
            break
    worker.log("")
    worker.log(
        f"{'batch':>6}{'':>4}{'predicted MiB':>16}{'measured MiB':>15}{'step ms':>10}{'per second':>12}  runs again"
    )
    for done, (point, step) in enumerate(found):
        point.step_seconds = step_seconds(search.task, {"step": step})["step"]
        point.per_second = point.batch / point.step_seconds
        predicted = f"{point.predicted_bytes / MIB:.1f}" if point.predicted_bytes else ""
        stages = f"{sum(map(bool, point.again))} of {len(point.again)} stages" if point.again else "nothing"
        worker.log(
            f"{point.batch:>6}{'':>4}{predicted:>16}{point.peak_bytes / MIB:>15.1f}{point.step_seconds * 1e3:>10.1f}"
            f"{point.per_second:>12.1f}  {stages}"
        )
        worker.record("ckpt_batch", **vars(point))
        worker.progress(done + 1, len(found))
        points.append(point)
    return points


def _difference(search: Search, point: Batch, step: Callable[[], None]) -> float | None:
    """How far this step's gradients are from the plain network's; None where the device lacks the room for that."""
    task = with_batch(search.task, point.batch)
    for parameter in task.model.parameters():
        parameter.grad.zero_()
    try:
        task.step(task.model)
    except torch.cuda.OutOfMemoryError:
        return None
    reference = gradients(task)
    for parameter in task.model.parameters():
        parameter.grad.zero_()
    step()
    return difference(task, reference)


def plot(points: list[Batch], search: Search, path: str) -> None:
    """Write throughput against batch size, with and without the solver."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    plain = [point for point in points if point.method == "none"]
    rotor = plain[-1:] + [point for point in points if point.method == "rotor"]
    axes.plot([p.batch for p in rotor], [p.per_second for p in rotor], "o-", color="#0072b2", label="with Rotor")
    axes.plot([p.batch for p in plain], [p.per_second for p in plain], "s--", color="0.3", label="no checkpoint")
    axes.set(xlabel=f"batch size (under {search.cap / MIB:.0f} MiB)", ylabel="per second", ylim=(0, None))
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)
    worker.log(f"written: {path}")
