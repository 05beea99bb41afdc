"""A rank that ends while gloo still holds the tensors of its last collective.

What takes microseconds on an idle host is drawn out here: gloo copies 2 x 256 MB, and the interpreter is held, in one
call that lets no other thread have it, from then to its end.
"""

import atexit
import sys
import types

atexit.register(sum, range(150_000_000))  # first registered, last called

from handson import repairs
from handson.repairs import noise

repairs.apply(noise)
import torch
import torch.distributed as dist
from handson import worker

place = worker.place()
dist.init_process_group("gloo", init_method=f"tcp://{place.host}:{place.port}", rank=place.rank, world_size=1)
mine = torch.ones(64 * 2**20)
parts = [torch.empty_like(mine)]
# As Colossal-AI holds its groups, and a training script its tensors.
sys.modules["held"] = types.SimpleNamespace(group=dist.group.WORLD, mine=mine, parts=parts)
dist.all_gather(parts, mine, async_op=True)
dist.destroy_process_group()
print("the last line")
