"""The loss: the mean over all masked tokens of the global batch, whichever rank holds them.

A rank sees only its own tokens, a pipeline only a micro-batch at a time, and Colossal-AI averages: losses over the
micro-batches, gradients over the ranks that hold the same weights. Tokens are not shared out evenly (the last rank has
most of the padding), so a mean of the ranks' means is another number. Each token therefore comes with a weight that
already says its share of the global batch (`masked_text.weigh`), and a rank simply adds up.
"""

from __future__ import annotations

import torch.distributed as dist
from ring import Ring
from torch import Tensor, nn
from torch.nn import functional as F


class BertLoss(nn.Module):
    """The masked-language-model loss and, where there is one, the sentence-order loss; both weighted.

    Args:
        ring: the ranks that share each sequence.
        own_mean: as upstream's script: each rank divides by its own number of masked tokens (repair lossmean).
        summed: as upstream's script: the value that is reported is the sum over the ring (repair losssum).
    """

    def __init__(self, ring: Ring, *, own_mean: bool = False, summed: bool = False) -> None:
        super().__init__()
        self.ring, self.own_mean, self.summed = ring, own_mean, summed

    def forward(
        self, losses: Tensor, logits: Tensor | None, weights: Tensor, order: Tensor, order_weights: Tensor
    ) -> Tensor:
        """Weigh and add up.

        Args:
            losses: of each token of this rank's piece [b, s].
            logits: of the sentence order [b, 2], on the ring's first rank; else None.
            weights: of each token [b, s], 0 where it was not masked.
            order: 1 where the two segments were exchanged [b].
            order_weights: of each sequence [b].

        Returns:
            the scalar that this rank's backward starts from; its mean over the ranks is the loss.
        """
        if self.own_mean:
            weights = (weights > 0).double()
            weights = weights / weights.sum().clamp(min=1)
        # In double: a thousand tokens' losses added in fp32 would differ in the sixth digit from one order to another.
        total = (losses.double() * weights).sum()
        if logits is not None:
            total = total + (F.cross_entropy(logits, order, reduction="none").double() * order_weights).sum()
        if self.summed and self.ring.size > 1:
            everyone = total.detach().clone()
            dist.all_reduce(everyone, group=self.ring.group)
            total = total + (everyone - total.detach())  # the value of the sum; the gradient stays the rank's own
        return total
