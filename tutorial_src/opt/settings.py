"""The command line of run_clm.py: what may be said, what it is by default on a GPU and on a CPU, what is refused.

Standard library alone, so that a mistake is answered before the heavy modules are imported.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handson import worker
from strategies import NO_CAP, PRECISIONS, STRATEGIES, why_not

# (sequence, steps): a step of the tutorial's batch of 16 takes seconds on a CPU even so
DEFAULTS = {"cpu": (16, 4), "cuda": (1024, 20)}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a job does; the names are those of the command line."""

    model: str
    synthetic: bool
    train_file: str | None
    dataset_name: str | None
    dataset_config_name: str | None
    strategy: str
    precision: str
    batch_size: int
    sequence: int
    steps: int | None
    epochs: int | None
    lr: float
    clip: float
    mem_cap: float
    random: bool
    seed: int
    output_dir: str | None
    save_every: int | None
    resume: str | None


def read(argv: list[str] | None = None) -> Settings:
    """The settings of this job.

    Raises:
        SystemExit: with code 2, after one sentence that says what is wrong and what to do.
    """
    parser = _parser()
    args = parser.parse_args(argv)
    on = worker.device().type
    sequence, steps = DEFAULTS[on]
    if not args.precision:
        args.precision = "bf16" if on == "cuda" or STRATEGIES.get(args.strategy, _ZERO).family == "gemini" else "fp32"
    if refusal := why_not(args.strategy, args.precision):
        worker.refuse(refusal)
    if args.mem_cap and on == "cpu":
        worker.refuse(NO_CAP)
    if args.synthetic and (args.train_file or args.dataset_name):
        worker.refuse("-s makes random tokens; leave out --train_file and --dataset_name, or -s")
    if args.train_file and args.dataset_name:
        worker.refuse("give --train_file or --dataset_name, not both")
    if args.steps and args.epochs:
        worker.refuse("give --steps or --epochs, not both")
    if args.save_every and not args.output_dir:
        worker.refuse("--save_every needs a folder to save into: add --output_dir DIR")
    if not args.steps and not args.epochs:
        args.steps = steps
    if args.output_dir:
        _try_to_write(args.output_dir)
    args.sequence = args.sequence or sequence
    args.model = args.__dict__.pop("model_name_or_path")
    return Settings(**vars(args))


_ZERO = STRATEGIES["zero2"]


def _parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description="Fine-tune an OPT under one of Colossal-AI's strategies.")
    add = found.add_argument
    add("--model_name_or_path", default="125m", metavar="MODEL", help="a folder, a size (125m ... 66b), or a hub name")
    add("-s", "--synthetic", action="store_true", help="random tokens: times the steps, learns nothing")
    add("--train_file", metavar="FILE", help="text to learn (.txt, .json, .jsonl, .csv); else the text that ships")
    add("--dataset_name", metavar="NAME", help="a dataset of the hub, by the package datasets")
    add("--dataset_config_name", metavar="NAME", help="which of the dataset's configurations")
    add("--strategy", default="gemini-static", metavar="NAME", help=", ".join(STRATEGIES))
    add("--precision", default="", metavar="TYPE", help=" or ".join(PRECISIONS))
    add("--batch_size", type=_whole, default=16, metavar="N", help="sequences of one rank in a step")
    add("--sequence", type=_whole, metavar="N", help="tokens in a sequence")
    add("--steps", type=_whole, metavar="N", help="training steps")
    add("--epochs", type=_whole, metavar="N", help="instead of steps: times through the text")
    add("--lr", type=_positive, default=1e-5, metavar="RATE", help="learning rate; it falls linearly to 0")
    add("--clip", type=_not_negative, default=0.0, metavar="NORM", help="largest norm of the gradients; 0: any")
    add("--mem_cap", type=_not_negative, default=0.0, metavar="GB", help="memory of its GPU a rank may use; 0: all")
    add("--random", action="store_true", help="random weights, without looking for real ones")
    add("--seed", type=seed, default=0, metavar="N", help="of random weights and random tokens")
    add("--output_dir", metavar="DIR", help="where the fine-tuned model goes, and checkpoints")
    add("--save_every", type=_whole, metavar="N", help="save a checkpoint every so many steps")
    add("--resume", metavar="DIR", help="go on from a checkpoint")
    found.error = lambda message: worker.refuse(f"{message}; python run_clm.py --help says what there is")
    return found


def _try_to_write(folder: str) -> None:
    """Make the folder and a file in it, which is gone at once: better refused now than after the training."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        worker.refuse(f"--output_dir {folder} is no folder that can be written to ({error.strerror}); name another")


def seed(text: str) -> int:
    """A seed of every random generator there is; argparse turns the error into a sentence."""
    return int(_checked(text, text.isdecimal() and int(text) < 2**32, "a whole number from 0 to 2^32 - 1"))


def _whole(text: str) -> int:
    return int(_checked(text, text.isdecimal() and int(text) > 0, "a whole number from 1 on"))


def _positive(text: str) -> float:
    return float(_checked(text, _number(text) > 0, "a number above 0"))


def _not_negative(text: str) -> float:
    return float(_checked(text, _number(text) >= 0, "a number from 0 on"))


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return -1.0
    return value if value < float("inf") else -1.0


def _checked(text: str, good: bool, what: str) -> Any:
    if not good:
        raise argparse.ArgumentTypeError(f"{text} must be {what}")
    return text
