"""How a rank ends where the interpreter ends it: the fault shows without the repair, and is gone with it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from handson.repairs import leaving
from handson.sources import SCRIPTS

TORCHRUN = str(Path(sys.executable).with_name("torchrun"))
BUSY = Path(__file__).parent / "scripts" / "ends_busy.py"
# repair -> what its fault says, what meets it, in which folder, and how that ends
FAULTS = {
    "glooexit": (
        "terminate called without an active exception",
        [sys.executable, str(BUSY)],
        BUSY.parent,
        -signal.SIGABRT,
    ),
    "plugindel": (
        "Exception ignored in: <function HybridParallelPlugin.__del__",
        [TORCHRUN, "--nproc_per_node", "4", "step5_hybrid.py"],
        SCRIPTS / "step_by_step",
        0,
    ),
}


@pytest.mark.ranks
@pytest.mark.parametrize("name", FAULTS)
def test_a_rank_ends_well_with_the_repair_and_shows_the_fault_without_it(name):
    text, command, folder, code = FAULTS[name]

    def ended(without: str) -> subprocess.CompletedProcess:
        env = {**os.environ, "HANDSON_WITHOUT": without, "HANDSON_DEVICE": "cpu", "OMP_NUM_THREADS": "1"}
        return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=240)

    whole, broken = ended(""), ended(name)
    assert whole.returncode == 0 and whole.stderr == "", whole.stderr
    assert broken.returncode == code and text in broken.stderr, broken.stderr
    (repair,) = (repair for repair in leaving.REPAIRS if repair.name == name)
    assert text in repair.symptom, "the page would show another error"


def test_the_last_wait_is_bounded(monkeypatch):
    monkeypatch.setattr(leaving, "_gloo_works", lambda: True)
    monkeypatch.setattr(leaving, "LIMIT_S", 0.1)
    leaving._wait_for_gloo()


def test_it_waits_until_gloo_has_been_idle_for_some_looks_in_a_row(monkeypatch):
    looks = [True, False, False, True, False, False, False]
    monkeypatch.setattr(leaving, "_gloo_works", lambda: looks.pop(0))
    leaving._wait_for_gloo()
    assert not looks


def test_every_script_has_these_repairs_and_each_has_a_test():
    assert {repair.name for repair in leaving.REPAIRS} == FAULTS.keys()
    code = "from handson import repairs; print(repairs.apply())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(["glooexit", "plugindel"][sys.version_info >= (3, 14) :])
