"""Step 3 of 5: data parallelism by PyTorch's DistributedDataParallel, each process on its share of the batch.

    torchrun --nproc_per_node 4 step3_ddp.py

The model and its images are those of vit.py, report.py says what is recorded.
"""

import torch
import torch.distributed as dist
from handson import repairs, worker
from handson.repairs import booster_cpu, noise
from report import measure, report
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler
from vit import BATCH_SIZE, LEARNING_RATE, Images, build_model

repairs.apply(noise, booster_cpu)
import colossalai

colossalai.launch_from_torch(verbose=False)
device = worker.device()

model = DistributedDataParallel(build_model().to(device))
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
images = Images()
sampler = DistributedSampler(images, shuffle=False)
loader = DataLoader(images, batch_size=BATCH_SIZE // dist.get_world_size(), sampler=sampler)


def train_step(batch):
    """Forward, backward, update: on this rank's part of the batch."""
    loss = model(**batch).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


for step, batch in enumerate(loader):
    loss = train_step({name: tensor.to(device) for name, tensor in batch.items()})
    report(step, loss)

measure(train_step, model, optimizer, loader, data=dist.group.WORLD)
