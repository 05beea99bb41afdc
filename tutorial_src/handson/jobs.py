"""What a build's jobs did: who ran when, on which devices. One JSON line a job, appended by every process of the build.

The file is named by HANDSON_JOBS, which a build sets for all of its processes; without it nothing is written. Times
are seconds since 1970, as different processes of one host read the same clock.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handson import leases, provenance, sources, store
from handson.ranks import status


@dataclass(frozen=True)
class Build:
    """A whole build: when it began and ended, the devices it could use, and its jobs in order of their start."""

    began: float
    ended: float
    devices: tuple[str, ...]
    jobs: tuple[dict[str, Any], ...]

    @property
    def seconds(self) -> float:
        """Wall-clock time of the build."""
        return self.ended - self.began

    @property
    def device_seconds(self) -> float:
        """Time of all jobs, each counted once for each device that it held."""
        return sum(job["ended"] - job["began"] for job in self.jobs for _ in job["devices"])

    def idle(self, device: str) -> float:
        """The share of the build's time in which this device served no job; jobs on one device never overlap."""
        busy = sum(job["ended"] - job["began"] for job in self.jobs if device in job["devices"])
        return 1 - busy / self.seconds


def note(kind: str, **fields: Any) -> None:
    """Append one line to the build's record: one write, so that two processes do not mix theirs.

    A record that cannot be written (a full disk) is no reason to lose what it would have recorded.
    """
    told = os.environ.get("HANDSON_JOBS")
    if not told:
        return
    line = json.dumps({"kind": kind, "at": time.time(), **fields}) + "\n"
    try:
        Path(told).parent.mkdir(parents=True, exist_ok=True)
        with open(told, "ab", buffering=0) as file:  # noqa: PTH123 - one appending write per line
            file.write(line.encode())
    except OSError as error:
        status(f"the record of this build's jobs cannot be written: {error.strerror}")


def begin(command: str, workers: int) -> Path:
    """From here on the jobs of this process, and of those that it starts, are recorded; return the record's file.

    `command` is what was typed, and `workers` how many lessons run at once.
    """
    name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{os.getpid()}.jsonl"
    place = os.environ.setdefault("HANDSON_JOBS", str(store.build_folder() / "jobs" / name))
    gpus = provenance.gpus()
    made = provenance.describe(
        device="cuda" if gpus else "cpu", ranks=len(gpus), command=command, folder=sources.CHECKOUT or sources.KIT
    )
    note("begin", devices=[*leases.gpus()] or [leases.CPU], made=made, workers=workers)
    return Path(place)


def latest(folder: Path) -> Path | None:
    """The record of the latest build whose jobs were recorded in this build folder."""
    return max((folder / "jobs").glob("*.jsonl"), default=None)


def read(path: Path) -> Build:
    """Read a build's record back.

    A build notes its `begin` (with its devices) and its `end`; where one is missing, as after a kill, the first and
    the last thing that its jobs did take its place.

    Raises:
        ValueError: naming the line, where the record is damaged, or when it holds no job.
    """
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            row["kind"], row["at"]
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path.name}, line {number} is damaged: delete the file, and build again") from None
        rows.append(row)
    found = sorted((row for row in rows if row["kind"] == "job"), key=lambda row: row["began"])
    if not found:
        raise ValueError(f"{path.name} holds no job: nothing ran live in that build")
    begins, ends = ([row for row in rows if row["kind"] == kind] for kind in ("begin", "end"))
    held = {device for job in found for device in job["devices"]} | set(begins[0]["devices"] if begins else ())
    return Build(
        began=begins[0]["at"] if begins else found[0]["asked"],
        ended=ends[-1]["at"] if ends else max(job["ended"] for job in found),
        devices=tuple(sorted(held, key=lambda name: (not name.isdigit(), int(name) if name.isdigit() else 0, name))),
        jobs=tuple(found),
    )
