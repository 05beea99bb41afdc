"""Make one rank's part of the model and the tokenizer; say what is loaded and how long that took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from handson import repairs
from handson.repairs import booster_cpu, noise
from options import Options


def load(options: Options, rank: int, kind: str, say: Callable[[str], None]) -> tuple[Any, Any]:
    """This rank's part of the model, on its device, and the tokenizer. Every rank calls it.

    With --tp over 1 each rank makes the whole model on the host, in the dtype asked for, and keeps its part. So random
    weights, too, are the same however many ranks there are and wherever they compute.

    Raises:
        SystemExit: with code 2 and one sentence, when the model cannot be loaded.
    """
    began = time.monotonic()

    def done(what: str) -> None:
        say(f"{what} ({time.monotonic() - began:.1f} s)")

    say(f"loading {options.model} in {options.dtype}, tensor parallel size {options.tp}, on {kind}")
    repairs.apply(noise)
    import torch

    torch.set_float32_matmul_precision("highest")  # no TF32: equal answers for any batch and any number of ranks
    device = torch.device(kind, rank) if kind == "cuda" else torch.device("cpu")
    if kind == "cuda":
        torch.cuda.set_device(device)
    if options.tp > 1:
        _meet(options, rank, kind)
        done(f"{options.tp} ranks have met over {torch.distributed.get_backend()}")
    import models
    import text
    import tokens
    from hub import together

    folder, why = together(lambda: models.find(options.checkpoint or options.model))
    source = str(folder) if folder else options.model
    model, weights = models.build(source, dtype=getattr(torch, options.dtype), pretrained=False)
    model.eval().requires_grad_(False)
    done(weights if folder else f"random weights, seed 0: {why}")
    tokenizer, which = tokens.get(folder, text.get()[0], model.config.vocab_size)
    done(which)
    if options.tp > 1:
        model = _divide(model)
        done(f"divided among {options.tp} ranks")
    return model.to(device), tokenizer


def _meet(options: Options, rank: int, kind: str) -> None:
    """NCCL between GPUs, gloo on the CPU."""
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(options.tp),
        LOCAL_WORLD_SIZE=str(options.tp),
        MASTER_ADDR=options.master_host,
        MASTER_PORT=str(options.master_port),
        HANDSON_DEVICE=kind,
    )
    if options.master_host in ("127.0.0.1", "localhost") and Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # this host's name may resolve to nothing
    repairs.apply(booster_cpu)
    import torch.distributed as dist

    # Idle ranks wait in no collective. At work, the server's own limit comes first, and names the rank.
    limit = timedelta(seconds=max(600.0, 4 * options.rank_timeout))
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=limit)


def _divide(model: Any) -> Any:
    """Give each rank its heads, and its part of the MLPs and of the vocabulary."""
    import torch.distributed as dist
    from colossalai.shardformer import ShardConfig, ShardFormer

    config = ShardConfig(
        tensor_parallel_process_group=dist.group.WORLD,
        enable_tensor_parallelism=True,
        parallel_output=False,  # whole logits on every rank
    )
    return ShardFormer(config).optimize(model)[0]
