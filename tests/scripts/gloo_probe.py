"""Each rank sends (sender, receiver) to every other, through the repaired exchange and through PyTorch's own."""

import torch
import torch.distributed as dist
from handson import worker
from handson.repairs import gloo

place = worker.place()
dist.init_process_group("gloo")
sent = [torch.tensor([[place.rank, other]]) for other in range(place.world_size)]


def exchange() -> list | str:
    received = [torch.empty_like(sent[0]) for _ in sent]
    try:
        dist.all_to_all(received, sent)
    except RuntimeError as error:
        return str(error)
    return torch.cat(received).tolist()


found = {"plain": exchange()}
(repair,) = gloo.REPAIRS
repair.patch()
worker.record("exchange", needed=repair.needed(), repaired=exchange(), **found)
dist.destroy_process_group()
