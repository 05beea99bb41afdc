"""What a rank calls: where it stands in the job, which device it has, and how it reports.

The same calls work under the kit's `launch`, `torchrun`, `colossalai run` and plain `python`. Under the kit the
structured rows travel through a pipe to the `Run`; elsewhere they are dropped, or appended as JSON lines to the
file that the environment variable HANDSON_ROWS names.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Place:
    """Where this process stands in the job, as the launcher said by environment variables."""

    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    host: str
    port: int


def place() -> Place:
    """Read this rank's place; a process started by plain `python` is a job of one rank.

    Raises:
        SystemExit: with one sentence, when only some of the launcher's variables are set.
    """
    needed = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    present = [name for name in needed if name in os.environ]
    if not present:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", LOCAL_WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = str(port)
    elif len(present) < len(needed):
        missing = ", ".join(name for name in needed if name not in present)
        raise SystemExit(f"error: the launcher set {', '.join(present)} but not {missing}; use torchrun")
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return Place(
        rank=rank,
        local_rank=int(os.environ.get("LOCAL_RANK", rank)),
        world_size=world_size,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", world_size)),
        host=os.environ["MASTER_ADDR"],
        port=int(os.environ["MASTER_PORT"]),
    )


def backend() -> str:
    """`nccl` when this host has a GPU for each of its ranks, else `gloo`.

    NCCL refuses two ranks on one GPU, so a job with more ranks than GPUs runs on the CPU.
    """
    # Ask the driver, not the CUDA runtime, which once asked would no longer let a job hide the GPUs from its ranks.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    if os.environ.get("HANDSON_DEVICE") == "cpu" or not torch.cuda.is_available():
        return "gloo"
    return "nccl" if torch.cuda.device_count() >= place().local_world_size else "gloo"


def device() -> torch.device:
    """The device this rank computes on: its own GPU under NCCL, else the CPU."""
    import torch

    return torch.device("cuda", place().local_rank) if backend() == "nccl" else torch.device("cpu")


def preset() -> str:
    """`gpu` (sizes that keep an H200 busy) or `laptop` (each job <= 20 s on two cores)."""
    asked = os.environ.get("HANDSON_PRESET", "")
    if asked in ("gpu", "laptop"):
        return asked
    if asked not in ("", "auto"):
        refuse(f"HANDSON_PRESET={asked} is no preset: use gpu, laptop or auto")
    return "gpu" if backend() == "nccl" else "laptop"


def log(*message: object) -> None:
    """Print one line from rank 0, at once; the other ranks stay silent."""
    if int(os.environ.get("RANK", 0)) == 0:
        print(*message, flush=True)


def record(kind: str, **fields: Any) -> None:
    """Send one structured row of this rank to whoever started the job.

    Raises:
        TypeError: when a field cannot be written as JSON.
    """
    row = {"rank": int(os.environ.get("RANK", 0)), "kind": kind, **fields}
    line = (json.dumps(row) + "\n").encode()
    if "HANDSON_ROWS_FD" in os.environ:
        fd = int(os.environ["HANDSON_ROWS_FD"])
        while line:
            line = line[os.write(fd, line) :]
    elif "HANDSON_ROWS" in os.environ:
        with open(os.environ["HANDSON_ROWS"], "ab") as file:  # noqa: PTH123 - one appending write per row
            file.write(line)


def progress(done: int, total: int) -> None:
    """Tell the launcher how far this job is; shown on the terminal, never on a page."""
    if "HANDSON_ROWS_FD" in os.environ and int(os.environ.get("RANK", 0)) == 0:
        record("_progress", done=done, total=total)


def refuse(sentence: str) -> NoReturn:
    """End the job because its input is wrong: one sentence from rank 0, exit code 2 from every rank.

    Raises:
        SystemExit: always, with code 2.
    """
    record("_refused", message=sentence)
    if int(os.environ.get("RANK", 0)) == 0:
        print(f"error: {sentence}", file=sys.stderr, flush=True)
    raise SystemExit(2)
