"""What a rank communicates in a block of code: calls, payload and wire bytes, per collective and group.

Every collective of `torch.distributed` goes through an operator of the `c10d` library on its way to NCCL or
gloo, whoever asks for it: a script, colossalai, autograd's backward, or the gradient reducer of
DistributedDataParallel, which never passes through Python's functions. A dispatch mode sees them all.

Payload is the local tensor: what this rank puts in (all-reduce, all-gather, reduce-scatter, all-to-all, send,
gather), or the buffer that it takes part with (broadcast, reduce, receive, scatter).

Wire bytes are what one rank must send under the ring algorithms, for a group of n and a payload of b bytes:

    all-reduce       2 (n-1)/n b     reduce-scatter, then all-gather
    reduce-scatter     (n-1)/n b     b is the whole local input
    all-gather         (n-1) b       b is the local piece; (n-1)/n of the gathered tensor, which holds n b
    all-to-all         (n-1)/n b     a rank keeps its own piece
    broadcast, reduce  (n-1)/n b     a pipelined chain: n-1 of the n ranks pass b on; the mean over the ranks
    gather, scatter    (n-1)/n b     n-1 of the n ranks' pieces b travel; the mean over the ranks
    send               b
    receive, barrier   0

The figure is what the algorithm needs, not what a counter in the link saw: NCCL may choose a tree instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# Operator -> its collective, and the position of the argument that is its payload.
_C10D = {
    "allreduce_": ("all_reduce", 0),
    "allreduce_coalesced_": ("all_reduce", 0),
    "allgather_": ("all_gather", 1),
    "_allgather_base_": ("all_gather", 1),
    "allgather_coalesced_": ("all_gather", 1),
    "allgather_into_tensor_coalesced_": ("all_gather", 1),
    "reduce_scatter_": ("reduce_scatter", 1),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "reduce_scatter_tensor_coalesced_": ("reduce_scatter", 1),
    "broadcast_": ("broadcast", 0),
    "reduce_": ("reduce", 0),
    "alltoall_": ("all_to_all", 1),
    "alltoall_base_": ("all_to_all", 1),
    "gather_": ("gather", 1),
    "scatter_": ("scatter", 0),
    "send": ("send", 0),
    "recv_": ("recv", 0),
    "recv_any_source_": ("recv", 0),
    "barrier": ("barrier", None),
    "monitored_barrier_": ("barrier", None),
}
# The functional collectives (DTensor, torch.compile), less the endings that say in place, into, or several
# at once.
_FUNCTIONAL = {
    "all_reduce": "all_reduce",
    "all_gather_into_tensor": "all_gather",
    "reduce_scatter_tensor": "reduce_scatter",
    "all_to_all_single": "all_to_all",
    "broadcast": "broadcast",
}
# n -> what a rank sends for each byte of payload.
_RING: dict[str, Callable[[int], Fraction]] = {
    "all_reduce": lambda n: Fraction(2 * (n - 1), n),
    "reduce_scatter": lambda n: Fraction(n - 1, n),
    "all_gather": lambda n: Fraction(n - 1),
    "all_to_all": lambda n: Fraction(n - 1, n),
    "broadcast": lambda n: Fraction(n - 1, n),
    "reduce": lambda n: Fraction(n - 1, n),
    "gather": lambda n: Fraction(n - 1, n),
    "scatter": lambda n: Fraction(n - 1, n),
    "send": lambda n: Fraction(1),
    "recv": lambda n: Fraction(0),
    "barrier": lambda n: Fraction(0),
}

Groups = Mapping[dist.ProcessGroup, str] | Callable[[dist.ProcessGroup], str | None] | None


@dataclass(frozen=True)
class Call:
    """One collective that this rank took part in; `bytes` is its payload."""

    collective: str
    group: str
    group_size: int
    bytes: int


def wire_bytes(collective: str, payload_bytes: int, group_size: int) -> int | float:
    """What one rank must send, in bytes, under the ring algorithm (the table in this module's head)."""
    sent = payload_bytes * _RING[collective](group_size)
    return int(sent) if sent.denominator == 1 else float(sent)


class CommunicationCounter(TorchDispatchMode):
    """Context manager that counts the collectives inside its block.

    Args:
        groups: the name of each process group, such as "row" or "data", as a mapping or a function. A group
            without a name is called "world" when it is the default group, else by its ranks.

    A step of DistributedDataParallel should be counted from the third on: in the second it re-sorts its
    buckets and broadcasts their new order.
    """

    def __init__(self, groups: Groups = None) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._names: dict[str, str] = {}
        self._ask: Callable[[dist.ProcessGroup], str | None] = lambda group: None
        if callable(groups):
            self._ask = groups
        elif groups:
            self._names = {group.group_name: name for group, name in groups.items()}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.namespace in ("c10d", "_c10d_functional"):
            self._count(func, args, kwargs)
        return func(*args, **kwargs)

    def rows(self) -> list[dict[str, Any]]:
        """One row for each collective and group, sorted: what the row `communication` holds."""
        totals: dict[tuple[str, str, int], list[int]] = {}
        for call in self.calls:
            total = totals.setdefault((call.collective, call.group, call.group_size), [0, 0])
            total[0] += 1
            total[1] += call.bytes
        return [
            {
                "collective": collective,
                "group": group,
                "group_size": size,
                "calls": calls,
                "bytes": payload,
                "wire_bytes": wire_bytes(collective, payload, size),
            }
            for (collective, group, size), (calls, payload) in sorted(totals.items())
        ]

    def total_wire_bytes(self) -> int | float:
        """What this rank must send, all collectives and groups together."""
        return sum(row["wire_bytes"] for row in self.rows())

    def clear(self) -> None:
        """Forget what was counted so far."""
        self.calls.clear()

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        operator = func._schema.name.split("::")[1]
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        functional = operator.removesuffix("_").removesuffix("_out").removesuffix("_coalesced")
        if func.namespace == "c10d" and operator in _C10D:
            collective, position = _C10D[operator]
            payload = 0 if position is None else _tensor_bytes(args[position])
            group = dist.ProcessGroup.unbox(given["process_group"])
        elif func.namespace != "c10d" and functional in _FUNCTIONAL:
            collective, payload = _FUNCTIONAL[functional], _tensor_bytes(args[0])
            group = given["group_name"]  # by its name, up to torch 2.12
            if isinstance(group, str):
                group = dist.distributed_c10d._resolve_process_group(group)
        elif not {"process_group", "group_name"} & given.keys():  # a wait, a check: moves nothing
            return
        else:
            raise NotImplementedError(f"{func._schema.name} is a collective that this counter does not know")
        self.calls.append(Call(collective, self._name(group), group.size(), payload))

    def _name(self, group: dist.ProcessGroup) -> str:
        key = group.group_name
        if key not in self._names:
            name = self._ask(group)
            if name is None and key == dist.group.WORLD.group_name:
                name = "world"
            self._names[key] = name or "ranks " + ", ".join(map(str, dist.get_process_group_ranks(group)))
        return self._names[key]


def _tensor_bytes(value: object) -> int:
    """The bytes of the elements in `value`, a tensor or a nest of tensors (views count what they show)."""
    return sum(t.numel() * t.element_size() for t in tree_leaves(value) if isinstance(t, torch.Tensor))
