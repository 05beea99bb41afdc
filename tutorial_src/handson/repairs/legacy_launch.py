"""How colossalai.legacy joins the process group: one fault, on the CPU and on CUDA."""

from __future__ import annotations

import inspect
import urllib.parse
from typing import Any

from handson.repairs import Repair


def _refuses_bracketed_address() -> bool:
    from colossalai.legacy.context.parallel_context import ParallelContext

    try:
        urllib.parse.urlparse("tcp://[127.0.0.1]:29500")
    except ValueError:
        return "tcp://[{host}]" in inspect.getsource(ParallelContext.init_global_dist)
    return False


def _bracket_only_ipv6() -> None:
    from unittest import mock

    import torch.distributed as dist
    from colossalai.legacy.context.parallel_context import ParallelContext

    original = ParallelContext.init_global_dist
    start = dist.init_process_group

    def init_global_dist(self: Any, rank: int, world_size: int, backend: str, host: str, port: int) -> None:
        def without_brackets(*args: Any, init_method: str, **kwargs: Any) -> None:
            address = init_method if ":" in host else init_method.replace(f"[{host}]", host)
            start(*args, init_method=address, **kwargs)

        with mock.patch.object(dist, "init_process_group", without_brackets):
            original(self, rank, world_size, backend, host, port)

    ParallelContext.init_global_dist = init_global_dist


REPAIRS = (
    Repair(
        name="host",
        area="legacy engine",
        symptom="ValueError: An IPv4 address cannot be in brackets",
        cause="legacy/context/parallel_context.py:382 builds tcp://[127.0.0.1]:port; Python's urllib refuses it",
        upstream="https://github.com/hpcaitech/ColossalAI/issues/5197",
        where="CPU and CUDA",
        needed=_refuses_bracketed_address,
        patch=_bracket_only_ipv6,
    ),
)
