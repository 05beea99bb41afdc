"""`handson doctor`: what this host can do (accelerators, links, compilers), what runs live, which repairs apply."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess

from handson import provenance, repairs
from handson.commands.status import collect
from handson.repairs import noise


def doctor() -> int:
    """Print the report; return 1 where something that every lesson needs is absent."""
    gpus, versions = provenance.gpus(), provenance.versions()
    print("This host")
    _line(
        "accelerators",
        f"{len(gpus)} × {gpus[0]}, linked by {provenance.links() or 'nothing'}" if gpus else "none",
    )
    _line("processor", f"{os.cpu_count()} cores, {provenance.cpu()}")
    _line("backends", ", ".join(_backends(bool(gpus))))
    for tool in ("gcc", "nvcc"):
        path = shutil.which(tool)
        first = subprocess.run([tool, "--version"], capture_output=True, text=True).stdout if path else ""
        _line(tool, first.strip().splitlines()[-1 if tool == "nvcc" else 0] if first else "absent")
    print("\nPackages")
    for name, version in versions.items():
        _line(name, version)
    missing = [name for name in provenance.PACKAGES if versions[name] == "absent"]
    if missing:
        print(f"  missing: {', '.join(missing)}; `python -m handson install` adds colossalai, titans and their needs")

    print("\nLessons (policy auto)")
    ways: dict[str, list[str]] = {}
    for entry in collect():
        for lesson in entry["lessons"]:
            ways.setdefault(lesson, []).append(entry["way"])
    for lesson, found in sorted(ways.items()):
        _line(lesson, ", ".join(f"{found.count(way)} {way}" for way in sorted(set(found))))
    if not ways:
        print("  no recordings here: every lesson would run live")

    print("\nRepairs of upstream faults")
    if not missing:
        # Asking whether a repair is needed imports colossalai, which would print eighty lines of warnings first.
        repairs.apply(noise)
    for repair in repairs.all_repairs():
        _line(repair.name, f"{_state(repair, missing)}: {repair.symptom}")
    return int(bool(missing))


def _line(name: str, text: str) -> None:
    print(f"  {name:14} {text}")


def _backends(has_gpus: bool) -> list[str]:
    if importlib.util.find_spec("torch") is None:
        return ["none: torch is absent"]
    import torch.distributed as dist

    found = [name for name, there in (("nccl", dist.is_nccl_available()), ("gloo", dist.is_gloo_available())) if there]
    return found if has_gpus else [f"{name} (no GPU to use it)" if name == "nccl" else name for name in found]


def _state(repair: repairs.Repair, missing: list[str]) -> str:
    if missing:
        return "unknown here"
    return "applies here" if repair.needed() else "not needed here"
