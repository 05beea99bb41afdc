"""Is the divided model the same model? A few SGD steps beside titans' ViT on one device, the same weights and batch."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from colossalai.legacy.engine import Engine
from engine import mean_loss, take_step
from handson import worker
from images import synthetic
from settings import Settings
from sharding import Mesh, Part, full_weights, held_parameters, shard_of
from torch import Tensor, nn
from vit import build_model

TOLERANCE = 1e-5


def check(part: Part, settings: Settings, engine: Engine) -> None:
    """Take CHECK_STEPS steps, compare each loss, then each rank's weights, with the model on one device.

    Raises:
        SystemExit: on every rank, when a loss differs by more than the tolerance; rank 0 says the numbers.
    """
    mesh, batch = part.mesh, next(synthetic(settings, part.mesh))
    losses = [mean_loss(take_step(engine, batch), mesh) for _ in range(settings.check_steps)]
    reference, expected, moved = None, losses, 0.0
    if mesh.is_first():
        reference, expected, moved = train_on_one_device(settings, part.shapes)
        for number, (loss, one) in enumerate(zip(losses, expected, strict=True), 1):
            worker.log(f"step {number}   loss {loss:.6f}   on one device {one:.6f}   difference {abs(loss - one):.1e}")
            worker.record("loss", step=number, loss=loss, reference=one)
    difference = [max(abs(a - b) for a, b in zip(losses, expected, strict=True))]
    dist.broadcast_object_list(difference, src=0, device=worker.device())
    weights = largest_weight_difference(part, reference)
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


def train_on_one_device(
    settings: Settings, shapes: dict[str, tuple[int, ...]]
) -> tuple[dict[str, Tensor], list[float], float]:
    """The same model, whole, in this process alone: its weights afterwards, its losses, how far a weight moved."""
    from colossalai.legacy.global_variables import tensor_parallel_env

    divided = tensor_parallel_env.save()
    tensor_parallel_env.load(mode=None)  # the layers built now are plain ones
    model = build_model(settings).to(worker.device())
    tensor_parallel_env.load(**divided)

    axes = ("data", "pipeline", "tensor")
    alone = Mesh(index=dict.fromkeys(axes, 0), size=dict.fromkeys(axes, 1))
    whole = Part(model=model, mesh=alone, shapes=shapes, stage_layers=None)
    weights = {held.name: held.tensor for held in held_parameters(whole)}
    if {name: tuple(weight.shape) for name, weight in weights.items()} != shapes:
        raise ValueError("titans' model has other parameters than sharding.shapes_of says")
    with torch.no_grad():
        for name, full in full_weights(shapes, settings.seed, shapes.keys()):
            weights[name].copy_(full)
    before = {name: weight.detach().clone() for name, weight in weights.items()}

    images, labels = next(synthetic(settings, alone))
    optimizer = torch.optim.SGD(model.parameters(), lr=settings.check_learning_rate)
    losses = []
    for _ in range(settings.check_steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        if settings.clip_grad_norm > 0:
            nn.utils.clip_grad_norm_(model.parameters(), settings.clip_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    moved = max((weight.detach() - before[name]).abs().max().item() for name, weight in weights.items())
    return {name: weight.detach() for name, weight in weights.items()}, losses, moved


def largest_weight_difference(part: Part, reference: dict[str, Tensor] | None) -> float:
    """Rank 0 sends its whole weights round, one at a time; each rank compares the block that it holds."""
    held = {mine.name: mine for mine in held_parameters(part)}
    largest = torch.zeros(1, device=worker.device())
    for name, shape in part.shapes.items():
        full = torch.empty(shape, device=worker.device()) if reference is None else reference[name].contiguous()
        dist.broadcast(full, src=0)
        if name in held:
            mine = held[name]
            shard = shard_of(mine.layer, mine.key, shape, part.mesh)
            if shard.live:
                largest = torch.maximum(largest, (shard.of(full) - mine.tensor.detach()).abs().max())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return largest.item()
