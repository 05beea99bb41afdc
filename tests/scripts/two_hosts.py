"""A job for the tests of several hosts: it adds up over gloo, step after step; a host can go away in the middle."""

import os
import socket
import sys
import time

import torch
import torch.distributed as dist
from handson import worker


def main() -> None:
    steps, pause = int(sys.argv[1]), float(sys.argv[2])
    here = worker.place()
    names = [name for _, name in socket.if_nameindex()]
    worker.record("place", pid=os.getpid(), local_rank=here.local_rank, interfaces=names, master=here.host)
    address = f"tcp://{here.host}:{here.port}"
    dist.init_process_group("gloo", init_method=address, rank=here.rank, world_size=here.world_size)
    for step in range(steps):
        total = torch.tensor([float(here.rank)])
        dist.all_reduce(total)
        worker.log(f"step {step}: sum of ranks {total.item():g}")
        time.sleep(pause)
    worker.record("sum", value=total.item())


if __name__ == "__main__":
    main()
