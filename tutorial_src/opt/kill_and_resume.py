"""Kill a fine-tuning midway, resume it from its last checkpoint, and compare it with one that nothing happened to.

    torchrun --nproc_per_node 2 kill_and_resume.py
    torchrun --nproc_per_node 2 kill_and_resume.py --strategy gemini-static --precision bf16 --kill_at 17

Three real trainings by run_clm.py: whole; killed, every rank by SIGKILL, at a step between two checkpoints; resumed.
Then the checkpoint of the last step is exported, and what plain transformers makes of it compared with the model under
the strategy.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import strategies
import supervised
from handson import worker

TEXT = Path(__file__).with_name("python_reference.txt")


def main() -> None:
    """Run the phases, and record what came of each."""
    worker.place()
    args = read()
    fixed = f"--model_name_or_path {args.model} --strategy {args.strategy} --precision {args.precision} --random"
    fixed += f" --steps {args.steps} --batch_size 2 --sequence 64 --lr 1e-3 --save_every {args.save_every}"
    fixed = [*fixed.split(), "--train_file", str(TEXT)]

    with supervised.shared_folder() as folder:
        kept = str(folder / "killed")
        whole = phase(folder, "whole", [*fixed, "--output_dir", str(folder / "whole")])
        killed = phase(folder, "killed", [*fixed, "--output_dir", kept], kill_at=args.kill_at)
        resumed = phase(folder, "resumed", [*fixed, "--output_dir", kept, "--resume", kept])
        compared = supervised.phase(folder, "exported", lambda: _export(kept, args))
    if worker.place().rank == 0:
        report(args, whole, killed, resumed, [row for row in compared if row["kind"] == "exported"][-1])


def phase(folder: Path, name: str, argv: list[str], kill_at: int | None = None) -> dict[int, float]:
    """One training: {step: loss}, as rank 0 recorded them."""

    def train() -> None:
        import run_clm

        run_clm.main(argv)

    rows = supervised.phase(folder, name, train, kill_at)
    losses = {row["step"]: row["loss"] for row in rows if row["kind"] == "loss"}
    for step, loss in losses.items():
        if worker.place().rank == 0:
            worker.record("resume_loss", phase=name, step=step, loss=loss)
    return losses


def _export(kept: str, args: argparse.Namespace) -> None:
    import compare_export

    compare_export.main(
        ["--model", args.model, "--strategy", args.strategy, "--precision", args.precision, "--checkpoint", kept]
    )


def report(
    args: argparse.Namespace,
    whole: dict[int, float],
    killed: dict[int, float],
    resumed: dict[int, float],
    exported: dict[str, Any],
) -> None:
    """Log and record how the three compare."""
    went_on = min(resumed) - 1
    apart = max(abs(whole[step] - loss) for part in (killed, resumed) for step, loss in part.items())
    worker.log(f"{args.strategy} in {args.precision}: {len(whole)} steps, a checkpoint every {args.save_every}")
    worker.log(f"killed after step {max(killed)}: exit by SIGKILL on {worker.place().world_size} ranks")
    worker.log(f"resumed after step {went_on}; steps {went_on + 1} to {max(killed)} are taken again")
    worker.log(f"largest difference of any loss from the whole run's: {apart:.3g}")
    worker.log(f"largest difference of plain transformers' logits: {exported['apart']:.3g}")
    worker.record(
        "resume",
        strategy=args.strategy,
        precision=args.precision,
        steps=len(whole),
        save_every=args.save_every,
        killed_after=max(killed),
        resumed_after=went_on,
        apart=apart,
        logits_apart=exported["apart"],
        logits=exported["logits"],
        files=exported["files"],
    )


def read() -> argparse.Namespace:
    """The command line; a mistake is refused in one sentence."""
    parser = argparse.ArgumentParser(description="Kill a fine-tuning midway, resume it, and compare.")
    parser.add_argument("--model", default="tiny", help="a size")
    parser.add_argument("--strategy", default="zero2", help=", ".join(strategies.STRATEGIES))
    parser.add_argument("--precision", default="bf16", help=" or ".join(strategies.PRECISIONS))
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--save_every", type=int, default=6)
    parser.add_argument("--kill_at", type=int, default=16, help="the step after which every rank is killed")
    parser.error = lambda message: worker.refuse(f"{message}; python kill_and_resume.py --help says what there is")
    args = parser.parse_args()
    if refusal := strategies.why_not(args.strategy, args.precision):
        worker.refuse(refusal)
    if not 0 < args.save_every <= args.kill_at < args.steps:
        worker.refuse("--save_every, --kill_at and --steps must be above 0 and in this order of size")
    import models
    from hub import together

    together(lambda: models.config(args.model))
    return args


if __name__ == "__main__":
    main()
