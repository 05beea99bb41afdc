"""Checkpoint a network under one memory budget after another, and measure what each schedule takes.

    python auto_ckpt_solver_test.py --model resnet50
    python auto_ckpt_solver_test.py --model gpt2

For at least ten budgets Colossal-AI's Rotor solver chooses which stages of the network to run again in the backward
pass instead of keeping their activations; the schedule becomes code and runs. A row says budget, predicted and
measured peak, and step time relative to the plain network. Below come the same figures for blocks checkpointed by
hand and for torch.compile's activation memory budget. Two plots are written: peak against budget, and relative step
time against peak. On a GPU these are ResNet-50 on 128 images of 224 x 224 and GPT-2 medium on 8 x 1024 tokens, with
TF32; on a CPU 16 images of 32 x 32 and a small GPT.

Budgets and peaks are of activations: parameters, gradients and buffers, which no schedule changes, are left out.
"""

from __future__ import annotations

import argparse
import gc
import os
import time

from handson import repairs, worker
from handson.repairs import auto_checkpoint, auto_trace, noise

MODELS = ("resnet50", "gpt2", "resnet18", "resnet152")


def main() -> None:
    """Trace and profile the network, then measure schedules, baselines and the time of all of them."""
    args = read_arguments()
    repairs.apply(noise, auto_trace, auto_checkpoint)
    worker.place()

    import ckpt_report
    import ckpt_sweep
    import ckpt_tasks
    from ckpt_chain import profile, trace

    gc.freeze()  # what was imported stays: collections, which the count of live tensors needs, pass it by
    task = ckpt_tasks.build(args.model)
    began = time.perf_counter()
    traced = trace(task.model, task.inputs)
    seconds = {"trace": time.perf_counter() - began}
    began = time.perf_counter()
    profile(traced, task.inputs, repeats=5 if task.device.type == "cuda" else 2)
    seconds["profile"] = time.perf_counter() - began
    ckpt_report.describe(task, traced, seconds)

    points = ckpt_sweep.sweep(task, traced, budgets=args.budgets)
    ckpt_report.table(points)
    if "HANDSON_ROWS_FD" not in os.environ:  # a lesson draws its own, from the recorded rows
        ckpt_report.plot(points, f"auto_ckpt_{args.model}.png")


def read_arguments() -> argparse.Namespace:
    """The command line, refused before anything heavy is loaded if it cannot work."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.error = worker.refuse
    parser.add_argument("--model", default="resnet50", help=f"one of {', '.join(MODELS)}")
    parser.add_argument(
        "--budgets", type=int, default=10, help="how many feasible budgets; two infeasible ones are added"
    )
    args = parser.parse_args()
    if args.model not in MODELS:
        worker.refuse(f"--model {args.model} is unknown: use one of {', '.join(MODELS)}")
    if args.budgets < 2:
        worker.refuse(f"--budgets {args.budgets}: a sweep needs at least 2")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        worker.refuse("auto_ckpt_solver_test.py measures one device: start it with plain python")
    return args


if __name__ == "__main__":
    main()
