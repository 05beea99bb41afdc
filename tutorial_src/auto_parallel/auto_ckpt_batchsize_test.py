"""Find the largest batch that fits under a memory cap, with and without the solver, and what each batch size yields.

    python auto_ckpt_batchsize_test.py
    python auto_ckpt_batchsize_test.py --model resnet50 --cap 16000

The cap, in MiB, is for everything: parameters, gradients, buffers, activations. Without checkpoints the largest batch
is found by running steps; with them by asking the solver, since every size in its chain is affine in the batch: the
network is profiled at two sizes, and a search among the others runs nothing. What the solver promises is then run.
On a GPU this is ResNet-152 on images of 224 x 224 under 24 GiB, with TF32; on a CPU ResNet-50 on images of 32 x 32.
"""

from __future__ import annotations

import argparse
import gc
import os

from handson import repairs, worker
from handson.repairs import auto_checkpoint, auto_trace, noise

MODELS = ("resnet18", "resnet50", "resnet152", "gpt2")
DEFAULTS = {"gpu": ("resnet152", 24 * 1024), "laptop": ("resnet50", 226)}


def main() -> None:
    """Search both largest batches, then measure throughput from small batches up to them."""
    args = read_arguments()
    repairs.apply(noise, auto_trace, auto_checkpoint)
    worker.place()

    import ckpt_batches
    import ckpt_tasks

    gc.freeze()  # what was imported stays: collections, which the count of live tensors needs, pass it by
    search = ckpt_batches.Search(ckpt_tasks.build(args.model), args.cap * 2**20)
    points = ckpt_batches.measure(search)
    if "HANDSON_ROWS_FD" not in os.environ:  # a lesson draws its own, from the recorded rows
        ckpt_batches.plot(points, search, "auto_ckpt_batchsize.png")


def read_arguments() -> argparse.Namespace:
    """The command line, refused before anything heavy is loaded if it cannot work."""
    model, cap = DEFAULTS[worker.preset()]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = worker.refuse
    parser.add_argument("--model", default=model, help=f"one of {', '.join(MODELS)}")
    parser.add_argument("--cap", type=int, default=cap, help="memory cap in MiB, for everything")
    args = parser.parse_args()
    if args.model not in MODELS:
        worker.refuse(f"--model {args.model} is unknown: use one of {', '.join(MODELS)}")
    if args.cap < 1:
        worker.refuse(f"--cap {args.cap} is no memory: give a number of MiB from 1 on")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        worker.refuse("auto_ckpt_batchsize_test.py measures one device: start it with plain python")
    return args


if __name__ == "__main__":
    main()
