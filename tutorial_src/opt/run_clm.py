"""Fine-tune OPT on text, or time its training on random tokens, by data parallelism, ZeRO or Gemini.

    bash ./run_clm_synthetic.sh 16 0 125m 4
    colossalai run --nproc_per_node 4 run_clm.py -s --model_name_or_path 125m --strategy gemini-static
    torchrun --nproc_per_node 4 run_clm.py --model_name_or_path facebook/opt-125m --strategy zero2 --output_dir tuned
    python run_clm.py --model_name_or_path small --train_file my.txt --epochs 1 --output_dir tuned --save_every 50

The model is a folder, a name on the hub, or a size; where no real weights can be had they are random, and the log
says so. Without -s, --train_file and --dataset_name it learns the text that ships with the lesson. --output_dir DIR
gets DIR/model, which transformers and the tutorial's server load, and DIR/step-*, from which --resume DIR goes on.
`strategies.py` says what each strategy divides, `--help` everything else.
"""

from __future__ import annotations

from pathlib import Path

import settings as command_line
import strategies
from handson import worker
from settings import Settings


def main(argv: list[str] | None = None) -> None:
    """Read the settings (of the command line, without `argv`), join the job, train, leave the job."""
    worker.place()
    settings = command_line.read(argv)
    strategies.repair()
    import colossalai
    import torch

    colossalai.launch_from_torch(seed=settings.seed, verbose=False)
    strategies.cap_memory(settings.mem_cap)
    try:
        run(settings)
    except torch.OutOfMemoryError as error:
        cap = f" under --mem_cap {settings.mem_cap:g}" if settings.mem_cap else ""
        raise SystemExit(
            f"error: rank {worker.place().rank} ran out of GPU memory{cap}; use a smaller --batch_size or --sequence, "
            f"more ranks, or a strategy that keeps less on the GPU, such as gemini-offload "
            f"({str(error).splitlines()[0]})"
        ) from None
    torch.distributed.destroy_process_group()


def run(settings: Settings) -> None:
    """Build, prepare, train, save; one line of log a step."""
    import checkpoints
    import memory
    import models
    import report
    import text
    import tokens
    import torch
    import train
    from hub import together
    from train import now

    s = settings
    place, device = worker.place(), worker.device()
    if s.output_dir:
        together(lambda: checkpoints.only_ours(Path(s.output_dir, "model")))
    model, weights = models.build(
        s.model,
        dtype=strategies.dtype_of(s.precision),
        device=strategies.birthplace(s.strategy),
        seed=s.seed,
        attention="sdpa",
        pretrained=not s.random,
    )
    config = model.config
    if s.sequence > config.max_position_embeddings:
        worker.refuse(f"--sequence {s.sequence} is longer than the {config.max_position_embeddings} that OPT can read")
    tokenizer = None
    if s.synthetic:
        blocks = tokens.synthetic(config.vocab_size, s.batch_size * place.world_size, s.sequence, seed=s.seed)
        source = "random tokens: this times the steps, there is nothing to learn"
    else:
        words, source = text.get(s.train_file, s.dataset_name, s.dataset_config_name)
        learned, _ = text.divide(words)
        folder, _ = together(lambda: models.find(s.model, not s.random))
        tokenizer, which = tokens.get(folder, learned, config.vocab_size)
        blocks = report.one_sentence(lambda: tokens.blocks(tokens.encode(tokenizer, learned), s.sequence))
        source = f"{source}; {which}"
    steps = s.steps or s.epochs * train.steps_in_epoch(blocks, s.batch_size)
    report.describe(s, config, weights, source, steps, sum(p.numel() for p in model.parameters()))

    trained = strategies.prepare(s.strategy, model, lr=s.lr, precision=s.precision, steps=steps, clip=s.clip)
    del model
    taken, losses = checkpoints.resume(s.resume, trained) if s.resume else (0, [])
    if taken >= steps:
        worker.refuse(
            f"the run in {s.resume} has taken {taken} step{'s' * (taken > 1)}, and this one would end after {steps}: "
            f"to go on, give more --steps than {taken}"
        )
    if taken:
        worker.log(f"resumed after step {taken} from {s.resume}")
    first, seconds = taken, []
    while taken < steps:
        ids = train.batch(blocks, taken, s.batch_size)
        began = now()
        if taken == first + 1:
            measured, loss = memory.measure(trained, ids)
        else:
            loss = train.step(trained, ids)
        losses += train.mean_over_ranks([loss])
        seconds.append(now() - began)
        taken += 1
        report.step(taken, steps, losses[-1], seconds[-1], s.batch_size * place.world_size * s.sequence)
        if taken == first + 2:
            report.memory_of(trained, measured, config, len(ids), s.sequence)
        if s.save_every and taken % s.save_every == 0:
            worker.log(f"saved {checkpoints.save(s.output_dir, trained, step=taken, losses=losses)}")
    report.speed(seconds, s.batch_size * place.world_size * s.sequence)
    if device.type == "cuda":
        worker.log(f"peak of rank 0's GPU {torch.cuda.max_memory_allocated() / 2**30:.2f} GiB")
    if s.output_dir:
        worker.log(f"saved the model to {checkpoints.export(f'{s.output_dir}/model', trained, tokenizer)}")


if __name__ == "__main__":
    main()
