"""Colossal-AI's engine around this BERT: its gradients are averaged over copies and rings, its pipeline runs 1F1B."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.distributed as dist
from bert import Bert, BertShape, with_weights
from bert_settings import Settings
from colossalai import legacy
from colossalai.legacy.engine import Engine
from colossalai.legacy.nn.layer.wrapper import PipelineSharedModuleWrapper
from handson import worker
from losses import BertLoss
from masked_text import Batch
from mesh import Mesh
from torch import Tensor

OPTIMIZERS = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


def shape_of(settings: Settings) -> BertShape:
    """The sizes of the model that the settings describe."""
    s = settings
    return BertShape(
        vocabulary=s.vocabulary,
        sequence_length=s.sequence_length,
        hidden_size=s.hidden_size,
        depth=s.depth,
        heads=s.num_heads,
        mlp_ratio=s.mlp_ratio,
        sentence_order=s.sentence_order,
        dropout=s.dropout,
    )


def build(settings: Settings, mesh: Mesh) -> Bert:
    """This rank's part of the model: its pipeline stage, whole in every other direction, with the run's weights."""
    stages, stage = mesh.size["pipeline"], mesh.index["pipeline"]
    layers = list(pairwise(settings.depth * i // stages for i in range(stages + 1)))[stage]
    model = with_weights(shape_of(settings), settings.attention, mesh.ring, layers, seed=settings.seed)
    model.to(worker.device())
    if stages > 1:
        # The first and the last stage each hold the word embedding: equal at the start, equal gradients from then on.
        shared = PipelineSharedModuleWrapper([0, stages - 1])
        with torch.no_grad():
            for holder in (model.embedding, model.heads):
                if holder:
                    shared.register_module(holder.word)
    return model


def make_engine(model: Bert, settings: Settings, mesh: Mesh, optimizer: str, learning_rate: float) -> Engine:
    """The engine for this rank's part of the model."""
    loss = BertLoss(mesh.ring, own_mean="lossmean" not in mesh.repairs, summed="losssum" not in mesh.repairs)
    decay = settings.weight_decay if optimizer == "adamw" else 0.0
    engine, *_ = legacy.initialize(
        model=model,
        optimizer=OPTIMIZERS[optimizer](model.parameters(), lr=learning_rate, weight_decay=decay),
        criterion=loss,
        verbose=False,
    )
    engine.schedule.data_process_func = for_a_stage if mesh.size["pipeline"] > 1 else for_the_model
    engine.train()
    return engine


def for_the_model(batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """What the model takes, and what the loss takes beside the model's answer."""
    return tuple(batch[:4]), tuple(batch[4:])


def for_a_stage(received: Tensor | None, batch: Batch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The same for a pipeline stage: hidden states come from the stage before, the rest from the batch."""
    inputs, targets = for_the_model(batch)
    return (inputs if received is None else (received, *inputs[1:])), targets


def take_step(engine: Engine, batch: Batch) -> Tensor | None:
    """Forward, backward, communication and update; what this rank reports as loss, None before the last stage."""
    engine.zero_grad()
    _, _, loss = engine.execute_schedule(iter([batch]), return_output_label=False)
    engine.step()
    return loss


def mean_loss(loss: Tensor | None, mesh: Mesh) -> float:
    """The loss of the global batch, on every rank: the mean over the ranks that computed a part of it."""
    total = torch.zeros(1, dtype=torch.float64, device=worker.device())
    if loss is not None:
        total += loss.detach()
    dist.all_reduce(total)
    return total.item() / mesh.gradient_ranks()
