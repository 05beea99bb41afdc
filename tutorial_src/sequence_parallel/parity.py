"""Is the divided model the same model? A few SGD steps beside plain BERT on one device, the same weights and batch."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from bert import Bert, with_weights
from bert_settings import Settings
from colossalai.legacy.engine import Engine
from engine import mean_loss, shape_of, take_step
from handson import worker
from losses import BertLoss
from masked_text import Batch
from mesh import Mesh
from ring import ALONE
from torch import Tensor

TOLERANCE = 1e-5


def check(model: Bert, settings: Settings, mesh: Mesh, engine: Engine, batch: Batch, whole: Batch) -> None:
    """Take CHECK_STEPS steps, compare each loss, then each rank's weights, with the model on one device.

    `batch` is this rank's part, and `whole` the same batch as one device takes it.

    Raises:
        SystemExit: on every rank, when a loss differs by more than the tolerance; rank 0 says the numbers.
    """
    losses = [mean_loss(take_step(engine, batch), mesh) for _ in range(settings.check_steps)]
    reference, expected, moved = None, losses, 0.0
    if mesh.is_first():
        reference, expected, moved = train_on_one_device(settings, whole)
        for number, (loss, one) in enumerate(zip(losses, expected, strict=True), 1):
            worker.log(f"step {number}   loss {loss:.6f}   on one device {one:.6f}   difference {abs(loss - one):.1e}")
            worker.record("loss", step=number, loss=loss, reference=one)
    difference = [max(abs(a - b) for a, b in zip(losses, expected, strict=True))]
    dist.broadcast_object_list(difference, src=0, device=worker.device())
    weights = largest_weight_difference(model, settings, reference)
    verdict = "the same" if difference[0] <= TOLERANCE else "NOT the same"
    summary = (
        f"parity: {verdict}: over {settings.check_steps} SGD steps the loss differs by at most {difference[0]:.1e}\n"
        f"(allowed {TOLERANCE:.0e}), a weight by at most {weights:.1e}"
    )
    if mesh.is_first():
        worker.log(f"{summary}; the weights moved by up to {moved:.2g}")
        worker.record(
            "parity",
            steps=settings.check_steps,
            tolerance=TOLERANCE,
            max_loss_difference=difference[0],
            max_weight_difference=weights,
            weights_moved=moved,
        )
    if not difference[0] <= TOLERANCE:
        sys.exit(summary if mesh.is_first() else 1)


def train_on_one_device(settings: Settings, whole: Batch) -> tuple[dict[str, Tensor], list[float], float]:
    """The same model, whole, with plain attention: its weights afterwards, its losses, how far a weight moved."""
    model = with_weights(shape_of(settings), seed=settings.seed).to(worker.device())
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.check_learning_rate)
    *inputs, weights, order, order_weights = whole
    averaged = settings.micro_batches()  # the weights are made for averaging over these; here are none
    criterion, losses = BertLoss(ALONE), []
    for _ in range(settings.check_steps):
        optimizer.zero_grad()
        loss = criterion(*model(*inputs), weights / averaged, order, order_weights / averaged)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    moved = max((weight.detach() - before[name]).abs().max().item() for name, weight in model.named_parameters())
    return {name: weight.detach() for name, weight in model.named_parameters()}, losses, moved


def largest_weight_difference(model: Bert, settings: Settings, reference: dict[str, Tensor] | None) -> float:
    """Rank 0 sends its weights round, one at a time; each rank compares those that it holds."""
    held = {name.replace("heads.word", "embedding.word"): weight for name, weight in model.named_parameters()}
    largest = torch.zeros(1, device=worker.device())
    with torch.device("meta"):
        names = {name: weight.shape for name, weight in Bert(shape_of(settings)).named_parameters()}
    for name, shape in names.items():
        full = torch.empty(shape, device=worker.device()) if reference is None else reference[name].contiguous()
        dist.broadcast(full, src=0)
        if name in held:
            largest = torch.maximum(largest, (full - held[name].detach()).abs().max())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()
