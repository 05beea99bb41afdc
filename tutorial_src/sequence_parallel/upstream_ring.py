"""Colossal-AI's ring self-attention as it comes, behind the forward that this BERT calls.

Import this once the repairs are applied: without them its gradients are wrong (`handson/repairs/legacy_sequence.py`).
"""

from __future__ import annotations

from attention import check_mask
from colossalai.legacy.nn.layer.parallel_sequence import TransformerSelfAttentionRing
from online import MASKED
from torch import Tensor
from torch.utils.checkpoint import checkpoint


def put_out(scores: Tensor, padding: Tensor) -> Tensor:
    """Make the scores of padding keys so low that their softmax is 0."""
    return scores.masked_fill_(padding, MASKED)


class UpstreamRing(TransformerSelfAttentionRing):
    """`TransformerSelfAttentionRing`, which wants the sequence first and leaves adding its bias to the caller.

    The ring is that of Colossal-AI's global context, `ParallelMode.SEQUENCE`. With `recompute` nothing inside the layer
    is kept for the backward pass: its forward is run again then, communication included.
    """

    def __init__(self, hidden_size: int, heads: int, dropout: float, *, recompute: bool = False) -> None:
        super().__init__(
            hidden_size,
            heads,
            attention_dropout=dropout,
            attention_mask_func=put_out,
            layer_number=1,
            masked_softmax_fusion=False,
        )
        self.recompute = recompute

    def forward(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """Attend: hidden [b, s, h], keep [b, S] -> [b, s, h]."""
        check_mask(hidden, keep, self.world_size)
        if not self.recompute:
            return self.attend(hidden, keep)
        # Every rank of the ring runs its backwards in the same order, so the repeated transfers meet. The reentrant
        # form keeps its inputs through autograd, where a count of saved bytes sees them.
        return checkpoint(self.attend, hidden, keep, use_reentrant=True)

    def attend(self, hidden: Tensor, keep: Tensor | None) -> Tensor:
        """Upstream's forward, batch first, with its bias added."""
        padding = None if keep is None else ~keep[:, None, None, :]
        output, bias = super().forward(hidden.transpose(0, 1), padding)
        return (output + bias).transpose(0, 1)
