"""The search of largest.py: a staircase over sizes and caps, one trial a step, and what it found."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import models
import strategies
import torch.distributed as dist
import trial
from handson import worker
from ladder import sizes
from supervised import phase
from trial import Result

UNITS = {10**9: "GB", 2**20: "MiB"}
MARGIN = 0.95  # of a GPU's memory, by the formula, where running out of it would leave other ranks waiting
HOPELESS = 1.25  # times the cap: what takes more than this by the formula is not tried on a GPU
FIRST_HOST_GB = 24.0  # of the host's memory: where offloading begins; what larger sizes take in time is then known


class Search:
    """Trials under one task, until the time is over; `args` is the command line of largest.py.

    With a folder of `supervised.shared_folder` each trial has a process of its own. One that ran out of memory in the
    middle leaves much of it taken, and only the end of its process gives all of it back.
    """

    def __init__(self, args: Namespace, folder: Path | None = None) -> None:
        self.args, self.folder = args, folder
        self.shapes = sizes(worker.preset())
        self.task = trial.Task(args.batch_size, args.sequence)
        self.place = worker.place()
        self.ranks, self.trials = self.place.world_size, 0
        self.end = time.monotonic() + args.seconds
        longest = min(shape.positions for shape in self.shapes.values())
        if args.sequence > longest:
            worker.refuse(f"--sequence {args.sequence} is longer than the {longest} tokens that these models read")

    def describe(self) -> None:
        """Log and record what is searched."""
        args, unit = self.args, UNITS[self.args.unit]
        worker.log(
            f"the largest OPT on {self.ranks} rank{'s' * (self.ranks > 1)} under "
            f"{', '.join(f'{cap:g}' for cap in args.caps)} {unit} a rank"
        )
        worker.log(f"{trial.PRECISION}, checkpointed, {args.batch_size} x {args.sequence} tokens a rank")
        if self.place.rank == 0:
            worker.record(
                "search", unit=unit, caps=list(args.caps), batch=args.batch_size, sequence=args.sequence,
                precision=trial.PRECISION, host_gb=args.host_gb, seconds=args.seconds,
            )  # fmt: skip

    def climb(self, strategy: str) -> None:
        """The largest size under each cap."""
        tried: list[Result] = []

        def fits(name: str, cap: float) -> bool:
            tried.append(self._attempt(name, strategy, cap, tried))
            self._say(tried[-1], cap)
            return tried[-1].trains

        def guess(cap: float) -> int:
            room = cap * self.args.unit * (MARGIN if self.ranks > 1 and worker.preset() == "gpu" else 1)
            good = 0
            for shape in self.shapes.values():
                host = trial.on_host(models.parameters(shape), strategy, self.ranks)
                good += trial.expected(shape, strategy, self.ranks, self.task) <= room and host <= FIRST_HOST_GB * 1e9
            return good - 1

        found = staircase(list(self.shapes), self.args.caps, fits, guess, up=self.ranks == 1)
        for cap, name in found.items():
            if self.place.rank == 0:
                worker.record("largest", strategy=strategy, ranks=self.ranks, cap=cap, size=name)

    def _attempt(self, name: str, strategy: str, cap: float, tried: list[Result]) -> Result:
        """One trial, unless the host's memory or the time that is left would not do for it."""
        shape = self.shapes[name]
        count = models.parameters(shape)
        host = trial.on_host(count, strategy, self.ranks)
        trains = [result for result in tried if result.trains]
        takes = trains[-1].seconds * count / trains[-1].parameters if trains else 0.0
        bytes_ = round(cap * self.args.unit)
        expected = trial.expected(shape, strategy, self.ranks, self.task)
        reason = stopped = ""
        if host > self.args.host_gb * 1e9:
            reason = f"{host / 1e9:.0f} GB of the host's memory, and the search may take {self.args.host_gb:g}"
        elif self.folder and expected > HOPELESS * bytes_:
            reason = f"{expected / self.args.unit:.2f} {UNITS[self.args.unit]} by the formula"
        elif self.ranks == 1 and time.monotonic() + takes > self.end:
            reason = f"about {takes:.0f} s, more than is left of the search's {self.args.seconds:g}"
            stopped = "time limit"
        if reason:
            known = dict(expected_bytes=round(expected), host_bytes=round(host))
            return Result(name, count, strategy, self.ranks, bytes_, "not tried", reason, stopped, **known)
        if self.folder is None:
            return trial.run(name, shape, strategy, bytes_, self.task)
        return self._apart(self.folder, name, strategy, bytes_)

    def _apart(self, folder: Path, name: str, strategy: str, cap: int) -> Result:
        """A trial in a child of this process, which itself never touches the GPU."""

        def train() -> None:
            strategies.repair()
            import colossalai

            colossalai.launch_from_torch(verbose=False)
            worker.record("result", **trial.run(name, self.shapes[name], strategy, cap, self.task).fields())
            dist.destroy_process_group()

        self.trials += 1
        rows = phase(folder, f"{strategy} {name} {self.trials}", train)
        found = {row.pop("kind"): row for row in rows}
        if self.trials == 1:
            worker.record("repairs", names=found["repairs"]["names"])
        del found["result"]["rank"]
        return Result(**found["result"])

    def _say(self, result: Result, cap: float) -> None:
        scale, unit = self.args.unit, UNITS[self.args.unit]
        told = {
            "trains": lambda: f"peak {result.peak_bytes / scale:.2f} {unit}, {result.tokens_per_second:,.0f} tokens/s",
            "out of memory": lambda: self._needed(result),
            "not tried": lambda: f"it takes {result.reason}",
        }[result.verdict]()
        worker.log(f"{result.strategy:14} {cap:4g} {unit}  {result.size:>5}  {result.verdict:13} {told}")
        if self.place.rank == 0:
            worker.record("trial", cap=cap, **result.fields())

    def _needed(self, result: Result) -> str:
        scale, unit = self.args.unit, UNITS[self.args.unit]
        if result.peak_bytes:
            return f"peak {result.peak_bytes / scale:.2f} {unit}"
        return f"by the formula it takes {result.expected_bytes / scale:.2f} {unit}"


def staircase(
    names: list[str],
    caps: tuple[float, ...],
    fits: Callable[[str, float], bool],
    guess: Callable[[float], int],
    *,
    up: bool = True,
) -> dict[float, str | None]:
    """The last of `names`, which go from small to large, that fits within each cap; None where none does.

    `guess` tells the index to begin at: of the one that should be the largest. One that fits within a cap is not
    tried again within a larger one, where it fits too. Without `up`, nothing larger than the guess is tried.
    """
    found: dict[float, str | None] = {}
    known = -1
    for cap in sorted(caps):
        at, too_large = max(known, guess(cap)), len(names)
        while at > known and not fits(names[at], cap):
            at, too_large = at - 1, at
        while up and at + 1 < too_large and fits(names[at + 1], cap):
            at += 1
        known = at
        found[cap] = names[at] if at >= 0 else None
    return found
