"""Whether a divided model computes what one process computes: its loss and the gradient of every parameter.

The reference runs on every rank by itself, on the whole global batch; its gradients wait in the CPU's memory. A
gradient's difference is relative to the largest entry of that parameter's gradient. Some gradients are nought by
symmetry (that of a key's bias: softmax does not see what is added to all scores alike), and there rounding would be
compared with rounding; so an entry counts as at least a thousandth of the largest of the whole model.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist

FLOOR = 1e-3


@dataclass(frozen=True)
class Reference:
    """Loss and gradients (by every name of a parameter; shared ones have several) of one process."""

    loss: float
    gradients: dict[str, torch.Tensor]

    @cached_property
    def largest(self) -> dict[str, float]:
        """The size of the largest entry of each gradient."""
        return {name: gradient.abs().max().item() for name, gradient in self.gradients.items()}

    def scale(self, name: str) -> float:
        """The size that a difference of this parameter's gradient is measured by."""
        return max(self.largest[name], FLOOR * max(self.largest.values()))


def reference_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> Reference:
    """Run the undivided model once, forward and backward."""
    loss = model(**batch).loss
    loss.backward()
    named = model.named_parameters(remove_duplicate=False)
    gradients = {name: parameter.grad.cpu() for name, parameter in named if parameter.grad is not None}
    model.zero_grad()
    return Reference(loss.item(), gradients)


def compare_gradients(model: torch.nn.Module, reference: Reference, plugin: Any) -> dict[str, Any]:
    """Compare what this rank holds, joined with the pieces of the other tensor-parallel ranks; take the worst of all.

    Returns:
        difference: the largest relative difference; parameter: whose it is; wrong: how many of the parameters are
        more than 1e-3 off, and compared: of how many.

    Raises:
        RuntimeError: when a parameter has no gradient, or none of any rank is the reference's.
    """
    found: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            raise RuntimeError(f"{name} has no gradient")
        whole = reference.gradients[name]
        mine = _joined(parameter.grad, whole.shape, plugin.tp_group).cpu()
        found[name] = (mine - whole).abs().max().item() / reference.scale(name)
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found)
    worst: dict[str, float] = {}
    for ranks in everyone:
        for name, difference in ranks.items():
            worst[name] = max(difference, worst.get(name, 0.0))
    parameter = max(worst, key=worst.__getitem__)
    return dict(
        gradient_difference=worst[parameter],
        parameter=parameter,
        wrong=sum(difference > 1e-3 for difference in worst.values()),
        compared=len(worst),
    )


def _joined(piece: torch.Tensor, shape: torch.Size, group: dist.ProcessGroup) -> torch.Tensor:
    """The whole gradient from the pieces of a tensor-parallel group; padding of the vocabulary is cut off."""
    cut = [dim for dim, size in enumerate(shape) if piece.shape[dim] != size]
    if cut:
        pieces = [torch.empty_like(piece) for _ in range(dist.get_world_size(group))]
        dist.all_gather(pieces, piece.contiguous(), group=group)
        piece = torch.cat(pieces, dim=cut[0]).narrow(cut[0], 0, shape[cut[0]])
    return piece
