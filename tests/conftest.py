"""Shared by all tests: each gets its own build folder and recordings, so that none sees another's runs."""

import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"


@pytest.fixture(autouse=True)
def own_stores(tmp_path, monkeypatch):
    """No test reads or writes the checkout's runs."""
    monkeypatch.setenv("HANDSON_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("HANDSON_RECORDINGS", str(tmp_path / "recordings"))
    for name in ("HANDSON_RUNS", "HANDSON_PRESET", "HANDSON_WITHOUT", "HANDSON_TIMEOUT", "HANDSON_LESSON"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process has ended (or is a zombie that its parent will reap) within so many seconds."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def children_of(pid: int) -> set[int]:
    """Every process below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, waiting = set(), [pid]
    while waiting:
        below = [child for child, parent in parents.items() if parent == waiting[-1] and child not in found]
        waiting.pop()
        found |= set(below)
        waiting += below
    return found
