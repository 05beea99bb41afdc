"""What the server can be asked for, and the sentences for what it cannot do."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from handson import worker

MAX_TOKENS = 256
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Options:
    """The command line of `opt_fastapi.py`, checked as far as the words themselves go."""

    model: str
    tp: int
    checkpoint: str | None
    dtype: str
    device: str
    max_batch_size: int
    queue_size: int
    cache_size: int
    http_host: str
    http_port: int
    master_host: str
    master_port: int
    rank_timeout: float
    drain_timeout: float
    log_requests: bool


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        worker.refuse(f"{message}; --help shows every option")


def read(argv: list[str]) -> Options:
    """The options of this command line.

    Raises:
        SystemExit: with code 2 and one sentence, for an option that is unknown, out of range, or means nothing here.
    """
    p = _Parser(prog="opt_fastapi.py", description="Serve an OPT model over HTTP.", allow_abbrev=False)
    p.add_argument("model", help="opt-125m ... opt-66b, or opt-tiny, opt-small; with --checkpoint only a name")
    p.add_argument("--tp", type=int, default=1, help="tensor parallel size: ranks that share the model")
    p.add_argument("--checkpoint", help="folder with config.json, *.safetensors and tokenizer.json")
    p.add_argument("--dtype", default="float32", choices=DTYPES, help="of weights, keys and values")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="auto: GPUs where there are any")
    p.add_argument("--max_batch_size", type=int, default=32, help="requests that a step works on")
    p.add_argument("--queue_size", type=int, default=128, help="requests that may wait beside those; then 406")
    p.add_argument("--cache_size", type=int, default=0, help="answers to keep; 0: none")
    p.add_argument("--cache_list_size", type=int, default=1, help="answers for each kept request: 1")
    p.add_argument("--pipe_size", type=int, default=1, help="commands under way in a pipeline: 1")
    host = os.environ.get("OPT_HTTP_HOST", "127.0.0.1")  # set in the serving image, where docker decides who may ask
    p.add_argument("--http_host", default=host, help="127.0.0.1: this host alone may ask; 0.0.0.0: every host")
    p.add_argument("--http_port", type=int, default=7070, help="0: a free one")
    p.add_argument("--master_host", default="127.0.0.1", help="where the ranks meet")
    p.add_argument("--master_port", type=int, default=0, help="where the ranks meet; 0: a free one")
    p.add_argument("--rpc_port", type=int, help=argparse.SUPPRESS)
    p.add_argument(
        "--rank_timeout", type=float, default=60.0, help="seconds without a sign of life until a rank is dead"
    )
    p.add_argument("--drain_timeout", type=float, default=30.0, help="seconds for the answers under way after SIGTERM")
    p.add_argument("--log_requests", action="store_true", help="a line for each answer")
    given = vars(p.parse_args(argv))
    for name, least, most in (
        ("tp", 1, 64),
        ("max_batch_size", 1, 4096),
        ("queue_size", 0, 1_000_000),
        ("cache_size", 0, 10_000_000),
        ("http_port", 0, 65535),
        ("master_port", 0, 65535),
        ("rank_timeout", 1, 86400),
        ("drain_timeout", 0, 86400),
    ):
        if not least <= given[name] <= most:
            worker.refuse(f"--{name} {given[name]}: it must be from {least} to {most}")
    if given.pop("cache_list_size") != 1:
        worker.refuse(
            "--cache_list_size: only requests with one possible answer are kept (greedy ones, and those with a seed), "
            "so a list of several has no meaning here; leave it out"
        )
    if given.pop("pipe_size") != 1:
        worker.refuse(
            "--pipe_size: it was the number of commands under way between energonai's pipeline stages; here the ranks "
            "share every layer (--tp) and work on one step at a time; leave it out"
        )
    if given.pop("rpc_port") is not None:
        worker.refuse("--rpc_port: the ranks are started by this command and need no RPC; leave it out")
    if given["checkpoint"] is not None:
        given["checkpoint"] = str(Path(given["checkpoint"]).expanduser().resolve())
    return Options(**given)
