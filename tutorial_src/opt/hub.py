"""Weights and texts of the Hugging Face hub, where it can be reached: bounded time, one sentence where it cannot.

What an earlier download left in the hub's cache folder is used without asking; HF_HUB_OFFLINE=1 asks nobody.
Rank 0 alone looks and downloads; the other ranks wait for its answer and read the same folder.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
from handson import worker
from manifest import Unusable

LIMIT_SECONDS = 8.0  # to find out whether the hub answers; a download that has begun may take longer
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")
BESIDE = ("config.json", "generation_config.json", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json")
Found = TypeVar("Found")


def together(look: Callable[[], Found]) -> Found:
    """What `look` finds on rank 0, on every rank; where it raises Unusable, every rank ends with that sentence.

    Raises:
        SystemExit: with code 2, on every rank, when `look` raised Unusable.
    """
    alone = not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    answer: list[Any] = [None, None]
    if alone or dist.get_rank() == 0:
        try:
            answer[0] = look()
        except Unusable as error:
            answer[1] = str(error)
    if not alone:
        dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        worker.refuse(answer[1])
    return answer[0]


def offline() -> bool:
    """Whether the environment forbids asking the hub."""
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in OFFLINE)


OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")


def files(name: str, kind: str = "model") -> tuple[list[str] | None, str]:
    """The names of the files that the hub has under this name, or None and why, within LIMIT_SECONDS.

    Args:
        name: `facebook/opt-125m`, for example.
        kind: `model` or `dataset`.
    """
    if offline():
        return None, "the environment says to stay offline"
    from huggingface_hub import HfApi
    from huggingface_hub.utils import HfHubHTTPError

    answers: queue.Queue[tuple[list[str] | None, str]] = queue.Queue()

    def ask() -> None:
        try:
            said = HfApi().repo_info(name, repo_type=kind, timeout=LIMIT_SECONDS)
            answers.put(([file.rfilename for file in said.siblings or []], ""))
        except HfHubHTTPError as error:
            code = error.response.status_code if error.response is not None else None
            there = "has none of this name that it would give" if code in (401, 403, 404) else f"answered {code}"
            answers.put((None, f"the hub {there}"))
        except ValueError:
            answers.put((None, "this is no name that the hub could have"))
        except OSError as error:
            answers.put((None, f"the hub cannot be reached ({type(error).__name__})"))

    # In a thread of its own, since looking up the hub's address has no time limit of its own.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=LIMIT_SECONDS)
    except queue.Empty:
        return None, f"the hub did not answer within {LIMIT_SECONDS:g} s"


def snapshot(name: str) -> tuple[Path | None, str]:
    """The folder with a model's weights and tokenizer: from the cache, else downloaded; or None and why."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        cached = Path(snapshot_download(name, local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        cached = None
    if cached and (cached / "config.json").is_file() and has_weights(cached):
        return cached, ""
    there, why = files(name)
    if there is None:
        return None, why
    weights = WEIGHTS if any(file.endswith(".safetensors") for file in there) else OLD_WEIGHTS
    worker.log(f"downloading {name} from the hub")
    try:
        return Path(snapshot_download(name, allow_patterns=[*BESIDE, *weights], etag_timeout=LIMIT_SECONDS)), ""
    except OSError as error:
        raise Unusable(f"the download of {name} broke off ({type(error).__name__}): start again to go on") from None


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a model's weights, in one file or in shards."""
    return any(any(folder.glob(pattern)) for pattern in ("*.safetensors", "pytorch_model*.bin"))
