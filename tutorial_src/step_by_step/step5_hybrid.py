"""Step 5 of 5: two pipeline stages of two tensor-parallel processes each, by the same Booster.

    torchrun --nproc_per_node 4 step5_hybrid.py

The model and its images are those of vit.py, report.py says what is recorded.
"""

import torch
from handson import repairs, worker
from handson.repairs import booster_cpu, noise
from report import measure, report
from vit import BATCH_SIZE, LEARNING_RATE, Images, build_model

repairs.apply(noise, booster_cpu)
import colossalai
from colossalai.booster import Booster
from colossalai.booster.plugin import HybridParallelPlugin

colossalai.launch_from_torch(verbose=False)
device = worker.device()

plugin = HybridParallelPlugin(tp_size=2, pp_size=2, num_microbatches=4, precision="fp32")
booster = Booster(plugin=plugin)
model = build_model()
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
images = Images()
loader = plugin.prepare_dataloader(images, batch_size=BATCH_SIZE // plugin.dp_size)
model, optimizer, *_ = booster.boost(model, optimizer)


def train_step(batch):
    """Forward, backward, update: on this rank's part of the batch."""
    outputs = booster.execute_pipeline(iter([batch]), model, lambda outputs, _: outputs.loss, optimizer)
    optimizer.step()
    optimizer.zero_grad()
    return outputs["loss"]


for step, batch in enumerate(loader):
    loss = train_step({name: tensor.to(device) for name, tensor in batch.items()})
    report(step, loss)

measure(train_step, model, optimizer, loader, data=plugin.dp_group, pipeline=plugin.pp_group, tensor=plugin.tp_group)
