"""Step 4 of 5: the same data parallelism by Colossal-AI's Booster.

    torchrun --nproc_per_node 4 step4_booster.py

The model and its images are those of vit.py, report.py says what is recorded.
"""

import torch
import torch.distributed as dist
from handson import repairs, worker
from handson.repairs import booster_cpu, noise
from report import measure, report
from vit import BATCH_SIZE, LEARNING_RATE, Images, build_model

repairs.apply(noise, booster_cpu)
import colossalai
from colossalai.booster import Booster
from colossalai.booster.plugin import TorchDDPPlugin

colossalai.launch_from_torch(verbose=False)
device = worker.device()

plugin = TorchDDPPlugin()
booster = Booster(plugin=plugin)
model = build_model()
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
images = Images()
loader = plugin.prepare_dataloader(images, batch_size=BATCH_SIZE // dist.get_world_size())
model, optimizer, *_ = booster.boost(model, optimizer)


def train_step(batch):
    """Forward, backward, update: on this rank's part of the batch."""
    loss = model(**batch).loss
    booster.backward(loss, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return loss.detach()


for step, batch in enumerate(loader):
    loss = train_step({name: tensor.to(device) for name, tensor in batch.items()})
    report(step, loss)

measure(train_step, model, optimizer, loader, data=dist.group.WORLD)
