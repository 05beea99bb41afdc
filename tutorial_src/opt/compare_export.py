"""Export a checkpoint, and compare what plain transformers makes of it with the model under its strategy.

torchrun --nproc_per_node 2 compare_export.py --strategy zero2 --precision bf16 --checkpoint OUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import strategies
from handson import worker

SEQUENCES, TOKENS = 2, 64


def main(argv: list[str] | None = None) -> None:
    """Read the checkpoint under its strategy, export, load, compare."""
    worker.place()
    parser = argparse.ArgumentParser(description="Compare an exported checkpoint with the model under its strategy.")
    parser.add_argument("--model", default="tiny", help="the size that was trained")
    parser.add_argument("--strategy", default="zero2", help=", ".join(strategies.STRATEGIES))
    parser.add_argument("--precision", default="bf16", help=" or ".join(strategies.PRECISIONS))
    parser.add_argument("--checkpoint", required=True, help="a checkpoint, or the folder that holds some")
    parser.error = lambda message: worker.refuse(f"{message}; python compare_export.py --help says what there is")
    args = parser.parse_args(argv)
    if refusal := strategies.why_not(args.strategy, args.precision):
        worker.refuse(refusal)
    strategies.repair()
    import colossalai

    colossalai.launch_from_torch(verbose=False)
    compare(args)


def compare(args: argparse.Namespace) -> None:
    """Log and record the largest difference between any two logits, and the exported files."""
    import checkpoints
    import models
    import tokens
    import torch
    import torch.distributed as dist
    from transformers import OPTForCausalLM

    dtype = strategies.dtype_of(args.precision)
    model, _ = models.build(args.model, dtype=dtype, attention="sdpa", seed=1, pretrained=False)
    ids = tokens.synthetic(model.config.vocab_size, SEQUENCES, TOKENS).to(worker.device())
    trained = strategies.prepare(args.strategy, model, lr=1e-5, precision=args.precision)
    step, _ = checkpoints.resume(args.checkpoint, trained)
    trained.model.eval()
    with torch.no_grad():
        ours = trained.model(input_ids=ids).logits.as_subclass(torch.Tensor)
    folder = checkpoints.export(Path(args.checkpoint) / "exported", trained)
    if dist.get_rank() == 0:
        plain = OPTForCausalLM.from_pretrained(folder, torch_dtype=dtype, attn_implementation="sdpa")
        with torch.no_grad():
            theirs = plain.to(worker.device()).eval()(input_ids=ids).logits
        apart = float((ours - theirs).abs().max())
        files = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
        worker.log(f"step {step}: {theirs.numel():,} logits, largest difference {apart:.3g}")
        worker.record("exported", step=step, apart=apart, logits=theirs.numel(), files=files)
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
