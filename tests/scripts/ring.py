"""A small job for the launcher's tests: an all-reduce over gloo, or one of the ways to fail."""

import os
import signal
import subprocess
import sys
import time

from handson import worker


def main() -> None:
    how = sys.argv[1]
    here = worker.place()
    worker.record("pid", pid=os.getpid())
    if how == "refuse":
        worker.refuse(f"{here.world_size} ranks cannot form a square: use 1, 4 or 9")
    import torch
    import torch.distributed as dist

    address = f"tcp://{here.host}:{here.port}"
    dist.init_process_group("gloo", init_method=address, rank=here.rank, world_size=here.world_size)
    if here.rank == 2:
        fail(how)
    total = torch.tensor([float(here.rank)])
    dist.all_reduce(total)
    for step in range(3):
        worker.progress(step + 1, 3)
        worker.log(f"step {step}: sum of ranks {total.item():g}")
    if how == "noise":
        print("\x1b[31mred\x1b[0m and a bar 10%\r 50%\r100%", flush=True)
        print("a warning", file=sys.stderr)
    worker.record("sum", value=total.item())


def fail(how: str) -> None:
    if how == "raise":
        raise ValueError("the shard of rank 2 has the wrong shape")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "exit":
        print("rank 2 gives up", flush=True)
        os._exit(7)
    if how == "orphan":
        child = subprocess.Popen(["sleep", "300"])
        worker.record("child", pid=child.pid)
    if how == "hang":
        loop_without_end()


def loop_without_end() -> None:
    while True:
        time.sleep(0.1)


if __name__ == "__main__":
    main()
