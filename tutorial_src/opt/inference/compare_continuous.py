"""Answer the same questions by plain transformers: one at a time, in fixed batches, and by its continuous batching.

    python compare_continuous.py --checkpoint DIR --questions questions.json --rows 32

This file needs only torch and transformers, and runs in any environment that has them: `generate_batch` came with
transformers 5, and Colossal-AI 0.5.0 needs 4.51.3, so the two cannot share one. The serving lesson runs this file with
the Python that HANDSON_TRANSFORMERS5 names (python -m venv tf5 && tf5/bin/pip install torch "transformers>=5"
safetensors), else with its own Python where the host's own transformers is new enough, else without the third way.
It prints one line of JSON for each way.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

WAYS = ("alone", "batch", "continuous")
PAD = 1  # OPT's


class Plain:
    """A checkpoint as plain transformers loads it, and the three ways to have it answer.

    Args:
        checkpoint: the folder.
        rows: how many requests share a step at most.
        device: cpu or cuda.
    """

    def __init__(self, checkpoint: str, *, rows: int, device: str) -> None:
        self.rows, self.device = rows, torch.device(device)
        self.tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        name = "dtype" if int(transformers.__version__.split(".")[0]) >= 5 else "torch_dtype"
        self.model = AutoModelForCausalLM.from_pretrained(
            checkpoint, attn_implementation="sdpa", **{name: torch.float32}
        )
        self.model.to(self.device).eval()

    def alone(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """`generate`, one request after the other."""
        return [self._generate([ids], length)[0] for ids, length in zip(prompts, lengths, strict=True)]

    def batch(self, prompts: list[list[int]], lengths: list[int]) -> list[list[int]]:
        """`generate` in fixed batches, in the order of arrival: each takes as long as its longest answer."""
        answers: list[list[int]] = []
        for first in range(0, len(prompts), self.rows):
            wanted = lengths[first : first + self.rows]
            made = self._generate(prompts[first : first + self.rows], max(wanted))
            answers += [ids[:length] for ids, length in zip(made, wanted, strict=True)]
        return answers

    def _generate(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        width = max(map(len, prompts))
        ids = torch.tensor([[PAD] * (width - len(p)) + p for p in prompts], device=self.device)
        seen = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        with torch.inference_mode():
            out = self.model.generate(ids, attention_mask=seen, max_new_tokens=length, do_sample=False)
        return out[:, width:].tolist()

    def continuous(self, prompts: list[list[int]], lengths: list[int]) -> Callable[[], list[list[int]]]:
        """Start transformers' continuous batching; the function returned answers all questions once."""
        from transformers import ContinuousBatchingConfig

        # Flash attention, which it would take where it finds it, knows no single precision.
        flash = {"auto_switch_to_flash": False}
        if "auto_switch_to_flash" not in ContinuousBatchingConfig.__dataclass_fields__:
            flash = {}
            self.model.set_attn_implementation("paged|sdpa")
        # On a GPU the pages' number is taken from its free memory; a host's free memory would be filled by them.
        blocks = None if self.device.type == "cuda" else 4 * self.rows
        manager = self.model.init_continuous_batching(
            generation_config=GenerationConfig(
                do_sample=False, max_new_tokens=max(lengths), eos_token_id=2, pad_token_id=PAD
            ),
            continuous_batching_config=ContinuousBatchingConfig(
                max_requests_per_batch=self.rows, num_blocks=blocks, max_memory_percent=0.3, **flash
            ),
        )
        manager.start()
        self.stop = lambda: manager.stop(block=True, timeout=30)

        def answer() -> list[list[int]]:
            names = [
                manager.add_request(ids, max_new_tokens=length) for ids, length in zip(prompts, lengths, strict=True)
            ]
            found: dict[str, list[int]] = {}
            while len(found) < len(names):
                result = manager.get_result(timeout=60)
                if result is None:
                    raise SystemExit("error: continuous batching gave no answer for 60 s")
                if result.error:
                    raise SystemExit(f"error: continuous batching failed: {result.error}")
                if result.is_finished():
                    found[result.request_id] = result.generated_tokens
            return [found[name] for name in names]

        return answer


def measure(plain: Plain, way: str, asked: list[dict[str, Any]], *, rounds: int) -> dict[str, Any]:
    """Answer the questions once to warm up and then `rounds` times; the median time counts.

    Returns:
        One row: seconds, requests and tokens a second, and the texts in the order of the questions.
    """
    prompts = [plain.tokenizer(question["prompt"])["input_ids"] for question in asked]
    lengths = [question["max_tokens"] for question in asked]
    if way == "continuous":
        answer = plain.continuous(prompts, lengths)
        answer()
    else:
        answer = partial(getattr(plain, way), prompts, lengths)
        getattr(plain, way)(prompts[: plain.rows], [2] * len(prompts[: plain.rows]))
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        made = answer()  # ends on the host: its tokens are lists there
        times.append(time.perf_counter() - began)
    if way == "continuous":
        plain.stop()
    seconds = sorted(times)[len(times) // 2]
    tokens = sum(len(_own(ids)) for ids in made)
    return {
        "way": way,
        "rows": 1 if way == "alone" else plain.rows,
        "requests": len(asked),
        "seconds": seconds,
        "all_seconds": times,
        "per_second": len(asked) / seconds,
        "tokens_per_second": tokens / seconds,
        "texts": [plain.tokenizer.decode(_own(ids), skip_special_tokens=True) for ids in made],
        "transformers": transformers.__version__,
        "device": plain.device.type,
    }


def _own(ids: list[int]) -> list[int]:
    """The answer without the padding behind its end."""
    return ids[: ids.index(2) + 1] if 2 in ids else ids


def main() -> None:
    """Read the command line, measure each way, print a line of JSON for it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", required=True, help="a folder that fine-tuning saved")
    parser.add_argument("--questions", required=True, help='a JSON list of {"prompt": ..., "max_tokens": ...}')
    parser.add_argument("--rows", type=int, default=32, help="requests that share a step at most")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    for name in (options.checkpoint, options.questions):
        if not Path(name).exists():
            parser.error(f"there is no {name}")
    if "continuous" in options.ways and not hasattr(transformers, "ContinuousBatchingConfig"):
        parser.error(f"transformers {transformers.__version__} has no continuous batching: use 5 or newer, or --ways")
    transformers.logging.set_verbosity_error()
    asked = json.loads(Path(options.questions).read_text(encoding="utf-8"))
    plain = Plain(options.checkpoint, rows=options.rows, device=options.device)
    for way in options.ways:
        rounds = 1 if way == "alone" else options.rounds
        print(json.dumps(measure(plain, way, asked, rounds=rounds)), flush=True)


if __name__ == "__main__":
    main()
