"""How long the 8-rank 3D job takes through the kit and through `torchrun`, on the same cores, in one run.

    nox -s bench

The job is the parity check, five SGD steps beside the model on one device: short, so that its start counts, as it
does for most jobs of a lesson. Prints seconds of wall clock and their ratio: cold (the first job of a build, with the
forkserver's imports) and warm (every later job). Rounds alternate, because these machines are shared; medians are
compared.
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

SOURCES = Path(__file__).parents[1] / "tutorial_src"
FOLDER = SOURCES / "hybrid_parallel"
ARGV = [
    "--config",
    "config.py",
    "-s",
    "--check",
    "TENSOR_PARALLEL_MODE=3d",
    "TENSOR_PARALLEL_SIZE=8",
    "PIPELINE_SIZE=1",
]
ROUNDS = int(os.environ.get("HANDSON_ROUNDS", "3"))
RANKS = 8
GOAL = 5.0

KIT = f"""
import sys, time
from handson import launch
for round in range(2):
    began = time.perf_counter()
    launch("hybrid_parallel/train.py", *{ARGV!r}, ranks={RANKS}, preset="laptop", quiet=True)
    print(time.perf_counter() - began, flush=True)
"""


def main() -> int:
    """Alternate the two ways, print the table; return 1 where the kit misses its goal."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HANDSON_DEVICE": "cpu", "HANDSON_PRESET": "laptop"}
    environment |= {"PYTHONPATH": str(SOURCES), "HANDSON_RUNS": "live", "HANDSON_QUIET": "1"}
    torchrun, cold, warm = [], [], []
    for number in range(1, ROUNDS + 1):
        print(f"round {number} of {ROUNDS}: torchrun ...", flush=True)
        began = time.perf_counter()
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
        subprocess.run(
            [*command, "train.py", *ARGV], cwd=FOLDER, env=environment, check=True, stdout=subprocess.DEVNULL
        )
        torchrun.append(time.perf_counter() - began)
        print(
            f"round {number} of {ROUNDS}: torchrun {torchrun[-1]:.1f} s; the kit, twice in one process ...", flush=True
        )
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", KIT], env=environment, check=True, capture_output=True, text=True)
        whole = time.perf_counter() - began
        _, second = (float(line) for line in done.stdout.split())
        cold.append(whole - second)
        warm.append(second)
        print(f"round {number} of {ROUNDS}: kit {cold[-1]:.1f} s cold, {warm[-1]:.1f} s warm", flush=True)
    slow = statistics.median(torchrun)
    print(f"\n{RANKS}-rank 3D job, {os.cpu_count()} cores, median of {ROUNDS} rounds")
    for name, times in (("torchrun", torchrun), ("kit, first job", cold), ("kit, later jobs", warm)):
        middle = statistics.median(times)
        print(f"  {name:16} {middle:6.1f} s   {slow / middle:5.1f}x   ({min(times):.1f} to {max(times):.1f} s)")
    reached = slow / statistics.median(warm)
    print(f"goal: later jobs at least {GOAL:g}x faster: {'met' if reached >= GOAL else 'MISSED'} ({reached:.1f}x)")
    return int(reached < GOAL)


if __name__ == "__main__":
    sys.exit(main())
