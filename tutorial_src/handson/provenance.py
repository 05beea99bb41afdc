"""Where a number comes from: hardware, links, versions, commit and date. Standard library alone, no torch import."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "colossalai", "titans", "transformers")


def _output(*command: str, cwd: Path | None = None) -> str:
    """What a command prints, or nothing where it is absent or fails: provenance must never end a run."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=cwd)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


@functools.cache
def accelerators(visible: str | None = None) -> tuple[str, ...]:
    """Names of the GPUs that a job started here may use; `visible` is CUDA_VISIBLE_DEVICES."""
    names = [line.strip() for line in _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader").splitlines()]
    if visible is None:
        return tuple(names)
    chosen = [entry.strip() for entry in visible.split(",") if entry.strip() not in ("", "-1")]
    # An entry is an index or a UUID; the UUID's model is not looked up, the count is what matters.
    return tuple(names[int(e)] if e.isdigit() and int(e) < len(names) else names[0] for e in chosen if names)


def gpus() -> tuple[str, ...]:
    """The GPUs this process may use, respecting CUDA_VISIBLE_DEVICES."""
    return accelerators(os.environ.get("CUDA_VISIBLE_DEVICES"))


@functools.cache
def links() -> str:
    """How the GPUs are joined: the distinct entries of `nvidia-smi topo -m`, such as NV18."""
    found = set()
    for line in _output("nvidia-smi", "topo", "-m").splitlines():
        cells = line.split()
        if cells and re.fullmatch(r"GPU\d+", re.sub(r"\x1b\[[0-9;]*m", "", cells[0])):
            found |= set(re.findall(r"\b(NV\d+|SYS|NODE|PHB|PXB|PIX)\b", line))
    return ", ".join(sorted(found))


@functools.cache
def versions() -> dict[str, str]:
    """Versions of the interpreter and of the packages that make the numbers."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


@functools.cache
def cuda() -> str:
    """The CUDA version that torch was built for, read from its version file; empty for a CPU build."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return ""
    match = re.search(r"^cuda[^=]*= '([\d.]+)'", (Path(spec.origin).parent / "version.py").read_text(), re.M)
    return match.group(1) if match else ""


@functools.cache
def cpu() -> str:
    """The processor's model name."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return match.group(1).strip() if match else platform.processor() or platform.machine()


@functools.cache
def commit(folder: Path) -> str:
    """The commit of the code, `+changes` where the tree differs from it; HANDSON_COMMIT where git is absent."""
    told = os.environ.get("HANDSON_COMMIT")
    if told:
        return told
    head = _output("git", "rev-parse", "--short=12", "HEAD", cwd=folder)
    changed = head and _output("git", "status", "--porcelain", "--", "tutorial_src", "gallery", cwd=folder)
    return f"{head}+changes" if changed else head or "unknown"


def host_fingerprint() -> dict[str, Any]:
    """What must be equal for a cached run to count as this host's own."""
    return {"cpu": cpu(), "cores": os.cpu_count(), "gpus": list(gpus()), **versions()}


def describe(*, device: str, ranks: int, command: str, folder: Path) -> dict[str, Any]:
    """Everything the page says of a run's origin. `device` is `cuda` or `cpu`. Holds no host name, no path."""
    names = gpus()
    cores = os.cpu_count()
    on_gpu = device == "cuda"
    used = names[:ranks]
    return {
        "hardware": f"{len(used)} × {used[0]}" if on_gpu else f"the CPU ({cores} cores, {cpu()})",
        "device": device,
        "backend": "NCCL" if on_gpu else "gloo",
        "accelerator": names[0] if on_gpu else None,
        "accelerators": len(used) if on_gpu else 0,
        "links": links() if on_gpu else "",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split("\n")[0]
        if on_gpu
        else "",
        "cuda": cuda() if on_gpu else "",
        "cpu": cpu(),
        "cores": cores,
        **versions(),
        "date": datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat(),
        "commit": commit(folder),
        "command": command,
    }
