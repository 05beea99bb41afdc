"""What PyTorch's gloo backend cannot do before version 2.13, and Colossal-AI asks of it on the CPU."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from handson.repairs import Repair

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

SINCE = (2, 13)  # 2.11 was seen to lack it, 2.13 to have it; in between the repair changes no result


def _lacks_lists() -> bool:
    return tuple(int(part) for part in version("torch").split("+")[0].split(".")[:2]) < SINCE


def _exchange_one_tensor() -> None:
    import torch
    import torch.distributed as dist

    plain = dist.all_to_all

    def all_to_all(
        received: list[Tensor], sent: list[Tensor], group: ProcessGroup | None = None, async_op: bool = False
    ) -> dist.Work | None:
        """The exchange of a list of tensors of one shape, as the exchange of one tensor, which gloo has."""
        one_shape = len({tensor.shape for tensor in (*received, *sent)}) == 1
        if dist.get_backend(group) != "gloo" or async_op or not one_shape:
            return plain(received, sent, group=group, async_op=async_op)
        arrived = torch.empty_like(torch.stack(sent))
        dist.all_to_all_single(arrived, torch.stack(sent), group=group)
        for tensor, part in zip(received, arrived, strict=True):
            tensor.copy_(part)
        return None

    dist.all_to_all = all_to_all


REPAIRS = (
    Repair(
        name="glooalltoall",
        area="gloo",
        symptom="RuntimeError: Backend gloo does not support alltoall, from LLaMA's all_to_all on the CPU",
        cause="shardformer/layer/_operation.py:1259 exchanges a list of tensors; before PyTorch 2.13 gloo can exchange "
        "only one tensor that holds them all",
        upstream="",
        where="CPU",
        needed=_lacks_lists,
        patch=_exchange_one_tensor,
    ),
)
