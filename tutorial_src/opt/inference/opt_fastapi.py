"""Serve an OPT model over HTTP, on one accelerator or divided over several (tensor parallelism).

    python opt_fastapi.py opt-125m --tp 2 --checkpoint DIR
    python opt_fastapi.py opt-125m                              # without a folder: see what it says about the weights
    python opt_fastapi.py opt-tiny --device cpu --http_port 0   # a free port, which it prints
    curl -d '{"prompt": "Tensor parallelism is", "max_tokens": 16}' -H 'Content-Type: application/json' \
        http://127.0.0.1:7070/generation

This one command starts every rank. DIR is what fine-tuning exports: config.json, *.safetensors, tokenizer.json.

In float32, the default, greedy answers are those of transformers' generate, for any batch and any number of ranks.
bfloat16 takes half the memory, but its 8 bits make near ties: where two tokens are nearly as likely, the answer can be
another than in float32, and can change with the requests that share its steps.

It ends with code 0 after SIGTERM or Ctrl-C (no new requests, those inside are answered, for --drain_timeout seconds at
most; a second one ends it at once), 2 when it cannot serve what is asked for, and 1 when a rank dies or hangs: it says
which one, answers 503 for three seconds more, and ends every rank. Whatever keeps it running starts it again.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # models.py, tokens.py, text.py: shared with fine-tuning
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import checks
from options import read


def main() -> None:
    """Check what is asked for, cheapest first, then serve."""
    options = read(sys.argv[1:])
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    listener = checks.bind(options.http_host, options.http_port)
    bounds = checks.check(options)
    kind = checks.device_kind(options)
    if options.tp > 1:
        port = checks.meeting_port(options.master_host, options.master_port)
        options = dataclasses.replace(options, master_port=port)
    import server

    server.serve(options, kind, bounds.positions, listener)


if __name__ == "__main__":
    main()
