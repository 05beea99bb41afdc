"""What `nox -s bench` measured: the same jobs started by `colossalai run` and by the kit. Standard library alone.

One text file for hosts with GPUs and one for those without, a line a job, so that a diff shows which number changed.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from handson import store

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Job:
    """One job, started both ways: seconds of wall clock, the median over the rounds.

    `agreed` counts what the ranks of both recorded alike (see docs/bench.py), `key` is that of its code.
    """

    script: str
    argv: list[str]
    ranks: int
    preset: str
    without: list[str]
    key: str
    agreed: int
    colossalai_run: float
    kit: float

    @property
    def ratio(self) -> float:
        """How many times as long as through the kit the job takes by `colossalai run`."""
        return self.colossalai_run / self.kit


@dataclasses.dataclass(frozen=True)
class Bench:
    """A set of jobs, started both ways. `colossalai_run` and `kit` are the seconds of the whole set, round by round."""

    provenance: dict[str, Any]
    lessons: list[str]
    workers: int  # processes that started jobs for the kit; by `colossalai run` they ran one by one
    goal: float
    colossalai_run: list[float]
    kit: list[float]
    jobs: list[Job]

    @property
    def totals(self) -> tuple[float, float]:
        """Seconds of the whole set by `colossalai run` and by the kit, the medians over the rounds."""
        return statistics.median(self.colossalai_run), statistics.median(self.kit)

    @property
    def ratio(self) -> float:
        """How many times as long as through the kit the whole set takes by `colossalai run`."""
        slow, fast = self.totals
        return slow / fast

    @property
    def met(self) -> bool:
        """Whether the kit reached its goal."""
        return self.ratio >= self.goal


def dump(bench: Bench) -> str:
    """The bench as text: stable order, a line for each job and each fact of its origin."""
    return store.as_text({"format": FORMAT} | dataclasses.asdict(bench), rows=("jobs",))


def read(path: Path) -> Bench:
    """Read a bench back.

    Raises:
        ValueError: naming the file, when it is damaged or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError("another format")
        jobs = [Job(**job) for job in content.pop("jobs")]
        return Bench(**content, jobs=jobs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        remedy = "restore it from git, or measure again: nox -s bench"
        raise ValueError(f"{path.name} is damaged ({error}): {remedy}") from None


def changed(bench: Bench) -> list[str]:
    """The scripts of those jobs that are made of other code now than when they were measured."""
    other = [job.script for job in bench.jobs if store.key_now(dataclasses.asdict(job)) != job.key]
    return list(dict.fromkeys(other))
