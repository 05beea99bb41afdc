"""Colossal-AI's engine: it adds to a model and an optimizer what their division needs, and takes whole steps.

Under data parallelism the engine wraps the model in PyTorch's DistributedDataParallel, under a pipeline it runs the
micro-batches in the 1F1B order and averages the gradients of data-parallel ranks itself.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from colossalai import legacy
from colossalai.legacy.engine import Engine
from colossalai.legacy.nn import CrossEntropyLoss
from handson import worker
from images import Batch
from settings import Settings
from sharding import Mesh, Part
from torch import Tensor, nn

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def engine_of(part: Part, settings: Settings) -> Engine:
    """The engine for this part of the model, with the optimizer that the settings name."""
    return make_engine(part.model, settings.optimizer, settings.learning_rate, settings.weight_decay)


def make_engine(model: nn.Module, optimizer: str, learning_rate: float, weight_decay: float = 0.0) -> Engine:
    """The engine for a model; the loss is Colossal-AI's, which knows on which ranks the logits are."""
    engine, *_ = legacy.initialize(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters(), lr=learning_rate, weight_decay=weight_decay),
        criterion=CrossEntropyLoss(),
        verbose=False,
    )
    engine.train()
    return engine


def take_step(engine: Engine, batch: Batch) -> Tensor | None:
    """Forward, backward, communication and update; the loss where this rank computed one: on the last stage."""
    engine.zero_grad()
    _, _, loss = engine.execute_schedule(iter([batch]), return_output_label=False)
    engine.step()
    return loss


def mean_loss(loss: Tensor | None, mesh: Mesh) -> float:
    """The loss of the global batch, on every rank: the mean over the ranks that computed one."""
    total = torch.zeros(1, device=worker.device()) if loss is None else loss.detach().reshape(1).clone()
    dist.all_reduce(total)
    return total.item() * mesh.size["pipeline"] / dist.get_world_size()
