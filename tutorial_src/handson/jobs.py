"""What a build's jobs did: who ran when, on which devices. One JSON line a job, appended by every process of the build.

The file is named by HANDSON_JOBS, which a build sets for all of its processes; without it nothing is written. Times
are seconds since 1970, as different processes of one host read the same clock. A record of before a field was kept
can still be read.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from handson import leases, provenance, sources, store
from handson.watching import status

Span = tuple[float, float]
NUMBER = (int, float)
# What every reader of a record takes for granted.
FIELDS: dict[str, dict[str, Any]] = {
    "begin": {"at": NUMBER, "devices": list},
    "job": {
        "lesson": (str, type(None)), "script": str, "argv": list, "ranks": int, "preset": str, "devices": list,
        "asked": NUMBER, "began": NUMBER, "ended": NUMBER, "failed": bool,
    },
    "end": {"at": NUMBER},
}  # fmt: skip


class NoJobs(ValueError):
    """A whole record of a build in which nothing ran."""


@dataclass(frozen=True)
class Build:
    """A build: when it began and ended, the devices it could use, and its jobs in order of their start.

    `made` says where it was made (as handson.provenance.describe does) and `workers` how many lessons ran at once;
    both are None where the record does not say. `over` is False for a build that was killed, or still goes on.
    """

    began: float
    ended: float
    devices: tuple[str, ...]
    jobs: tuple[dict[str, Any], ...]
    made: dict[str, Any] | None = None
    workers: int | None = None
    over: bool = True

    @property
    def seconds(self) -> float:
        """Wall-clock time of the build."""
        return self.ended - self.began

    @property
    def device_seconds(self) -> float:
        """Time of all jobs, each counted once for each device that it held."""
        return sum(length(self.busy(device)) for device in self.devices)

    @property
    def waited(self) -> float:
        """Seconds between a job's wish and its start, of all jobs together."""
        return sum(job["began"] - job["asked"] for job in self.jobs)

    def busy(self, device: str) -> list[Span]:
        """When this device served a job; jobs on one device never overlap."""
        return [(job["began"], job["ended"]) for job in self.jobs if device in job["devices"]]

    def idle(self, *devices: str) -> float:
        """The share of the build's time in which this device served no job; of several, their mean."""
        return 1 - sum(length(self.busy(device)) for device in devices) / (len(devices) * self.seconds)

    def held_back(self, device: str) -> list[Span]:
        """When this device served no job of the build although one of them waited for devices of its kind.

        It waited for more than were free, or for what a job outside of the build held. At other idle times no lesson
        asked for a device of this kind. To look around for a moment is not to wait.
        """
        alike = [job for job in self.jobs if any(_kind(name) == _kind(device) for name in job["devices"])]
        waits = [(job["asked"], job["began"]) for job in alike]
        waits = [(start, end) for start, end in waits if end - start > leases.PATIENCE_SECONDS]
        busy = self.busy(device)
        return [
            (start, end)
            for start, end in pairwise(sorted({edge for span in waits + busy for edge in span}))
            if any(a <= start < b for a, b in waits) and not any(a <= start < b for a, b in busy)
        ]


def _kind(device: str) -> str:
    return "cores" if device == leases.CPU else "GPUs"


def length(spans: list[Span]) -> float:
    """Seconds of several spans together."""
    return sum(end - start for start, end in spans)


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


def read(path: Path, until: float | None = None) -> Build:
    """Read a build's record back.

    A build notes its `begin` (with its devices) and its `end`; where one is missing, as after a kill, the first and
    the last thing that its jobs did take its place. `until` is the end of a build that still goes on.

    Raises:
        OSError: when the file cannot be read.
        NoJobs: when it holds no job.
        ValueError: naming the file and the line, where the record is damaged.
    """
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            rows.append(_checked(json.loads(line)))
        except (ValueError, TypeError, KeyError):
            raise ValueError(f"{path.name}, line {number} is damaged: restore or delete the file") from None
    found = sorted((row for row in rows if row["kind"] == "job"), key=lambda row: row["began"])
    if not found:
        raise NoJobs(f"{path.name} holds no job: nothing ran live in that build")
    begins, ends = ([row for row in rows if row["kind"] == kind] for kind in ("begin", "end"))
    first: dict[str, Any] = begins[0] if begins else {}
    held = {device for job in found for device in job["devices"]} | set(first.get("devices", ()))
    return Build(
        began=first.get("at", found[0]["asked"]),
        ended=ends[-1]["at"] if ends else until or max(job["ended"] for job in found),
        devices=tuple(sorted(held, key=_place)),
        jobs=tuple(found),
        made=first.get("made"),
        workers=first.get("workers"),
        over=bool(ends),
    )


def _checked(row: dict[str, Any]) -> dict[str, Any]:
    """The row, when it has what a row of its kind has."""
    for name, kinds in FIELDS.get(row["kind"], {}).items():
        if not isinstance(row[name], kinds):
            raise TypeError(name)
    return row


def _place(device: str) -> tuple[bool, int, str]:
    """GPUs before cores, and the tenth after the ninth."""
    return device == leases.CPU, int(device) if device.isdigit() else -1, device


def outdated(build: Build) -> list[dict[str, Any]] | None:
    """The jobs whose code, arguments or files are not those of today; None where the record keeps no keys."""
    if not all("key" in job for job in build.jobs):
        return None
    return [job for job in build.jobs if store.key_now(_asked(job)) != job["key"]]


def request(job: dict[str, Any]) -> store.Request:
    """What a lesson asked for when this job was started.

    Raises:
        FileNotFoundError: when its script is not there any more.
    """
    return store.Request.again(_asked(job))


def _asked(job: dict[str, Any]) -> dict[str, Any]:
    return {"without": [], **job}  # older records do not name what was left out
