"""The ring: ranks that share one sequence, each with its own piece; each sends to the next and hears from the previous.

Rank i of P holds tokens [i S/P, (i+1) S/P). Whatever is passed on P-1 times has visited every rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.distributed as dist


@dataclass(frozen=True, kw_only=True)
class Ring:
    """This rank's place in its ring. `ranks` are global ranks in the order of their pieces of the sequence."""

    index: int = 0
    ranks: tuple[int, ...] = (0,)
    group: dist.ProcessGroup | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """How many ranks share the sequence (P)."""
        return len(self.ranks)

    def owner(self, hops: int) -> int:
        """Whose piece this rank holds after it has been passed on `hops` times."""
        return (self.index - hops) % self.size

    def pass_on(self, mine: torch.Tensor, tag: int = 0) -> Passing:
        """Start sending a tensor to the next rank and receiving the previous rank's; `wait` gives the received one.

        Sending and receiving are posted together, so no order of ranks can lock. Two transfers under way at the same
        time need different tags: gloo matches by them, NCCL by the order of calls, which is the same on every rank.
        """
        mine = mine.contiguous()
        incoming = torch.empty_like(mine)
        after, before = self.ranks[(self.index + 1) % self.size], self.ranks[(self.index - 1) % self.size]
        works = dist.batch_isend_irecv(
            [
                dist.P2POp(dist.isend, mine, after, self.group, tag),
                dist.P2POp(dist.irecv, incoming, before, self.group, tag),
            ]
        )
        return Passing(works, mine, incoming)

    def cut(self, whole: torch.Tensor, dim: int = 1) -> torch.Tensor:
        """This rank's piece of a tensor that holds the whole sequence in dimension `dim`.

        Raises:
            ValueError: when the sequence cannot be cut into equal pieces.
        """
        length = whole.shape[dim]
        check_length(length, self.size)
        return whole.narrow(dim, self.index * (length // self.size), length // self.size)


@dataclass
class Passing:
    """A transfer under way; it keeps what is being sent alive until it has arrived."""

    works: list[dist.Work]
    sent: torch.Tensor
    incoming: torch.Tensor

    def wait(self) -> torch.Tensor:
        """The tensor that the previous rank sent."""
        for work in self.works:
            work.wait()
        return self.incoming


ALONE = Ring()


def check_length(length: int, size: int) -> None:
    """Refuse a sequence that a ring of this size cannot share equally.

    Raises:
        ValueError: in one sentence.
    """
    if length % size:
        raise ValueError(
            f"a sequence of {length} tokens cannot be cut into {size} equal pieces; use a multiple of {size}"
        )
