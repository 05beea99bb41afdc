"""Checkpoints from which a run goes on as if it had never stopped, and exports that any other program can load.

    OUT/step-00000020/model/          the weights: sharded safetensors and config.json, Hugging Face's format
    OUT/step-00000020/rank-000.pt     this rank's optimizer states, fp32 master weights and learning rate
    OUT/step-00000020/manifest.json   step, losses, how it was trained; size and SHA-256 of each file

Colossal-AI writes the weights in the type that they are computed with. In bf16 their fp32 master copies are lost with
that, and a resumed run drifts away from one that was not stopped; so each rank keeps its share of them beside.

A checkpoint is written under another name and renamed when it is whole. What is killed before leaves the one before.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import manifest
import torch
import torch.distributed as dist
from handson import repairs, worker
from handson.repairs import tied_weights
from hub import Unusable, together
from strategies import STRATEGIES, Trained

KEPT = 2  # checkpoints of one run: the newest, and the one before
SHARD_MB = 2048  # of weights in one file
FOLDER = re.compile(r"step-(\d{8})")
SAME = ("strategy", "precision", "ranks")  # what must be the same for a run to go on


def save(folder: str | Path, trained: Trained, *, step: int, losses: list[float]) -> Path:
    """Write the state after `step` steps, whose losses were these; every rank calls this between two steps.

    Returns the checkpoint's folder, `folder/step-NNNNNNNN`. Two of them are kept.

    Raises:
        OSError: when the disk is full, for example; the checkpoints that were there stay.
    """
    about = dict(step=step, losses=losses, strategy=trained.strategy, precision=trained.precision, ranks=_ranks())
    target = Path(folder) / f"step-{step:08d}"
    partial = _begin(target)
    (partial / "model").mkdir(exist_ok=True)
    _save_model(partial / "model", trained)
    if STRATEGIES[trained.strategy].family != "ddp" or dist.get_rank() == 0:  # under ddp all ranks hold the same
        torch.save(_states(trained), partial / f"rank-{dist.get_rank():03d}.pt")
    _finish(partial, target, about)
    if dist.get_rank() == 0:
        for old in checkpoints(folder)[:-KEPT]:
            shutil.rmtree(old)
    dist.barrier()
    return target


def resume(folder: str | Path, trained: Trained) -> tuple[int, list[float]]:
    """Put a checkpoint's state into a model that was prepared as the saved one was; every rank calls this.

    Args:
        folder: a checkpoint, or the folder that holds some: then the newest is taken.
        trained: made by `strategies.prepare`, under the same strategy, precision and number of ranks.

    Returns:
        how many steps had been taken, and their losses. Data that is a function of the step goes on by itself.

    Raises:
        SystemExit: with one sentence and code 2, when there is no checkpoint, a file of it is missing, truncated or
            damaged, or it was made in another way.
    """
    chosen, about = together(lambda: _choose(Path(folder), trained))
    trained.booster.load_model(trained.model, str(chosen / "model"), strict=False)  # the head is the word embedding
    mine = 0 if STRATEGIES[trained.strategy].family == "ddp" else dist.get_rank()
    _put_back(trained, torch.load(chosen / f"rank-{mine:03d}.pt", map_location="cpu", weights_only=True, mmap=True))
    return about["step"], about["losses"]


def export(folder: str | Path, trained: Trained, tokenizer: Any = None) -> Path:
    """Write what others load: sharded safetensors, config.json and the tokenizer's files. Every rank calls this.

    `OPTForCausalLM.from_pretrained(folder)` and `AutoTokenizer.from_pretrained(folder)` read it. An earlier export
    under this name is replaced, when the new one is whole.

    Raises:
        SystemExit: with one sentence and code 2, when the folder holds something else.
    """
    target = Path(folder)
    together(lambda: only_ours(target))
    partial = _begin(target)
    _save_model(partial, trained)
    if dist.get_rank() == 0:
        _complete(partial / "config.json")
        if tokenizer is not None:
            tokenizer.save_pretrained(partial)
    _finish(partial, target, dict(strategy=trained.strategy, precision=trained.precision))
    return target


def only_ours(target: Path) -> None:
    """Refuse a folder for an export that is no folder, or holds anything else than an earlier export.

    Raises:
        Unusable: naming the folder.
    """
    if target.is_dir() and any(target.iterdir()) and not (target / manifest.NAME).is_file():
        raise Unusable(f"{target} holds something else than an export: name another folder")
    if target.exists() and not target.is_dir():
        raise Unusable(f"{target} is a file: name a folder")


def checkpoints(folder: str | Path) -> list[Path]:
    """The whole checkpoints in a folder, from the oldest to the newest."""
    found = Path(folder).glob("step-*") if Path(folder).is_dir() else []
    return sorted(path for path in found if FOLDER.fullmatch(path.name) and (path / manifest.NAME).is_file())


def _ranks() -> int:
    return dist.get_world_size()


def _begin(target: Path) -> Path:
    """A fresh folder beside the target, on every rank: what an interrupted save left there is removed."""
    partial = target.with_name(f".{target.name}.part")

    def make() -> None:
        shutil.rmtree(partial, ignore_errors=True)
        try:
            partial.mkdir(parents=True)
        except OSError as error:
            raise Unusable(f"{target.parent} cannot be written to ({error.strerror}): name another folder") from None

    together(make)
    return partial


def _finish(partial: Path, target: Path, about: dict[str, Any]) -> None:
    """Note what was written, have it on the disk, and give it its name."""
    dist.barrier()
    if dist.get_rank() == 0:
        manifest.write(partial, **about)
        manifest.flush(partial)
        old = target.with_name(f".{target.name}.old")
        shutil.rmtree(old, ignore_errors=True)
        if target.exists():
            target.rename(old)
        partial.rename(target)
        shutil.rmtree(old, ignore_errors=True)
    dist.barrier()


def _save_model(folder: Path, trained: Trained) -> None:
    repairs.apply(tied_weights)
    trained.booster.save_model(trained.model, str(folder), shard=True, use_safetensors=True, size_per_shard=SHARD_MB)


def _complete(path: Path) -> None:
    """What a server needs to know, and training did without: the cache of keys and values."""
    said = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(said | {"use_cache": True}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _choose(folder: Path, trained: Trained) -> tuple[Path, dict[str, Any]]:
    """The checkpoint that is meant, checked file by file, and its manifest."""
    if not FOLDER.fullmatch(folder.resolve().name):
        whole = checkpoints(folder)
        if not whole:
            raise Unusable(f"there is no checkpoint in {folder}: it has no whole step-* folder")
        folder = whole[-1]
    about = manifest.check(folder)
    if about is None:
        raise Unusable(f"{folder} is no whole checkpoint: it has no {manifest.NAME}")
    now = dict(strategy=trained.strategy, precision=trained.precision, ranks=_ranks())
    for name in SAME:
        if about.get(name) != now[name]:
            raise Unusable(
                f"{folder} was made with {name} {about.get(name)}, not {now[name]}: go on with the same, or start anew "
                f"from its weights, --model_name_or_path {folder / 'model'}"
            )
    return folder, about


def _held(trained: Trained) -> list[torch.Tensor]:
    """What this rank's optimizer updates: the weights (ddp), its share of their fp32 copies, or stand-ins for them."""
    return [p for group in trained.optimizer.optim.param_groups for p in group["params"]]


def _masters(trained: Trained) -> list[torch.Tensor]:
    """This rank's fp32 weights, where they are not among the optimizer's states."""
    family = STRATEGIES[trained.strategy].family
    if family == "zero":
        return [p.data for p in _held(trained)]
    if family == "gemini":
        wide = {id(c.paired_chunk): c.paired_chunk for c in map(trained.optimizer.param_to_chunk16.get, _held(trained))}
        return [chunk.payload for chunk in wide.values()]
    return []


def _states(trained: Trained) -> dict[str, Any]:
    inner = trained.optimizer.optim
    return {
        "states": [_mapped(inner.state.get(p, {}), _on_host) for p in _held(trained)],
        "masters": [_on_host(tensor) for tensor in _masters(trained)],
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in inner.param_groups],
        "scheduler": trained.scheduler.state_dict(),
    }


def _put_back(trained: Trained, saved: dict[str, Any]) -> None:
    held, masters, inner = _held(trained), _masters(trained), trained.optimizer.optim
    sizes = [tensor.numel() for tensor in masters]
    if len(held) != len(saved["states"]) or sizes != [tensor.numel() for tensor in saved["masters"]]:
        worker.refuse("the checkpoint is of another model: its tensors have other sizes than this one's")
    for tensor, wide in zip(masters, saved["masters"], strict=True):
        tensor.copy_(wide)
    for p, state in zip(held, saved["states"], strict=True):
        inner.state[p] = _mapped(state, lambda tensor, device=p.device: tensor.to(device, copy=True))
    for group, options in zip(inner.param_groups, saved["groups"], strict=True):
        group.update(options)
    trained.scheduler.load_state_dict(saved["scheduler"])


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().clone()  # a clone, since a view would have its whole storage written


def _mapped(state: dict[str, Any], change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
    return {name: change(value) if isinstance(value, torch.Tensor) else value for name, value in state.items()}
