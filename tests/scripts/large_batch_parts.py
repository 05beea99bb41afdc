"""DistributedLamb where each of two ranks holds half of every tensor's states and gradients, as ZeRO gives them."""

import torch
import torch.distributed as dist
from handson import worker
from handson.repairs import noise

noise.REPAIRS[0].patch()
from colossalai.nn.optimizer import DistributedLamb, Lamb  # noqa: E402 - after its warnings are silenced

place = worker.place()
dist.init_process_group("gloo")
for corrected in (False, True):
    generator = torch.Generator().manual_seed(5)
    whole = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((8, 6), (10,))]
    alone = [torch.nn.Parameter(w.clone()) for w in whole]
    working = [torch.nn.Parameter(w.clone()) for w in whole]
    parts = [torch.nn.Parameter(w.flatten().chunk(2)[place.rank].clone()) for w in whole]
    settings = dict(lr=0.05, weight_decay=0.01, bias_correction=corrected)
    plain, divided = Lamb(alone, **settings), DistributedLamb(parts, **settings)
    known = {id(part): full for part, full in zip(parts, working, strict=True)}
    divided.setup_distributed(None, dist.group.WORLD, known, None, True)
    for step in range(8):
        for one, part in zip(alone, parts, strict=True):
            one.grad = torch.randn(one.shape, generator=generator, dtype=torch.float64) / (step + 1)
            part.grad = one.grad.flatten().chunk(2)[place.rank].clone()
        plain.step()
        divided.step()
        for full, part in zip(working, parts, strict=True):  # ZeRO gathers the parts after every step
            pieces = [torch.empty_like(part) for _ in range(2)]
            dist.all_gather(pieces, part.detach())
            full.data.copy_(torch.cat(pieces).view_as(full))
    difference = max((a - b).abs().max().item() for a, b in zip(alone, working, strict=True))
    moved = max((a - b).abs().max().item() for a, b in zip(alone, whole, strict=True))
    worker.record("parts", corrected=corrected, difference=difference, moved=moved)
dist.destroy_process_group()
