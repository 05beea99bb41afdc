"""Step 1 of 5: train a vision transformer in plain PyTorch, in one process on one device.

    python step1_plain.py

The model and its images are those of vit.py, report.py says what is recorded.
"""

import torch
from handson import worker
from report import measure, report
from torch.utils.data import DataLoader
from vit import BATCH_SIZE, LEARNING_RATE, Images, build_model

device = worker.device()

model = build_model().to(device)
optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=0.9)
images = Images()
loader = DataLoader(images, batch_size=BATCH_SIZE)


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

measure(train_step, model, optimizer, loader)
