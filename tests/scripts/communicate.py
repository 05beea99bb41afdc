"""Collectives of known sizes, counted: every kind once, DDP's reducer, or a collective inside a backward."""

import sys

import torch
import torch.distributed as dist
from handson import worker
from handson.measure.communication import CommunicationCounter
from torch.nn.parallel import DistributedDataParallel

FLOATS = 24  # divides by 2 and by 4 ranks


def every_kind(pair: dist.ProcessGroup) -> None:
    """One call of each collective: over all ranks, and one over this rank's pair."""
    rank, ranks, device = dist.get_rank(), dist.get_world_size(), worker.device()
    x = torch.ones(FLOATS, device=device)
    pieces = list(torch.ones(ranks, FLOATS, device=device))
    small = torch.empty(FLOATS // ranks, device=device)
    # torch 2.13 renames the two that take one tensor, and warns of the old names.
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor
    inbox = torch.empty_like(x)
    exchange = [dist.P2POp(dist.isend, x, rank ^ 1), dist.P2POp(dist.irecv, inbox, rank ^ 1)]
    with CommunicationCounter({pair: "pair"}) as counter:
        dist.all_reduce(x)
        dist.all_reduce(x, group=pair, async_op=True).wait()
        gather(torch.empty(ranks * FLOATS, device=device), x)
        dist.all_gather(pieces, x)
        scatter(small, x)
        dist.broadcast(x, src=0)
        dist.reduce(x, dst=1)
        dist.all_to_all_single(torch.empty_like(x), x)
        dist.scatter(small, list(x.chunk(ranks)) if rank == 0 else None, src=0)
        dist.gather(x, pieces if rank == 0 else None, dst=0)
        for work in dist.batch_isend_irecv(exchange):
            work.wait()
        if rank == 0:
            dist.send(x, dst=1)
        elif rank == 1:
            dist.recv(x, src=0)
        dist.barrier()
    dist.all_reduce(x)  # outside the block: not counted
    worker.record("communication", rows=counter.rows(), total=counter.total_wire_bytes())


class AllReduceInBackward(torch.autograd.Function):
    """What a column-parallel layer does."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient


def data_parallel() -> None:
    """DDP's bucket, which its reducer sends from C++, and a collective that the backward makes."""
    device = worker.device()
    network = DistributedDataParallel(torch.nn.Linear(8, 4).to(device))
    named = CommunicationCounter(lambda group: "data")
    for _ in range(2):
        network(torch.ones(3, 8, device=device)).sum().backward()
    with named:
        network(torch.ones(3, 8, device=device)).sum().backward()
    worker.record("communication", rows=named.rows())
    x = torch.ones(5, device=device, requires_grad=True)
    with CommunicationCounter() as unnamed:
        AllReduceInBackward.apply(x).square().sum().backward()
    worker.record("backward", rows=unnamed.rows())


def main() -> None:
    place = worker.place()
    if worker.device().type == "cuda":
        torch.cuda.set_device(worker.device())
    address = f"tcp://{place.host}:{place.port}"
    dist.init_process_group(worker.backend(), init_method=address, rank=place.rank, world_size=place.world_size)
    pairs = [dist.new_group([first, first + 1]) for first in range(0, place.world_size, 2)]
    every_kind(pairs[place.rank // 2]) if sys.argv[1] == "every-kind" else data_parallel()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
