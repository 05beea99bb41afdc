"""The same few steps under each strategy, in one job: losses, what every rank keeps, step time, bytes sent.

    torchrun --nproc_per_node 2 compare.py --train_file python_reference.txt
    torchrun --nproc_per_node 4 compare.py --train_file python_reference.txt --model small --ways ddp:fp32,zero2:bf16

Each way starts from the same random weights and reads the same batches, which the ranks share; beside it one process
takes the same steps by plain PyTorch, in fp32 and in bf16. The third step is measured, those after it are timed.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import strategies
from handson import worker
from settings import seed
from strategies import STRATEGIES, why_not

if TYPE_CHECKING:
    from torch import Tensor, nn

LAPTOP = "ddp:fp32,zero1:fp32,zero2:fp32,ddp:bf16,zero1:bf16,zero2:bf16,gemini-static:bf16"
EVERYWHERE = {
    "laptop": dict(model="tiny", batch=8, sequence=64, steps=8, ways=LAPTOP),
    "gpu": dict(
        model="1.3b",
        batch=8,
        sequence=512,
        steps=8,
        ways=LAPTOP + ",gemini-auto:bf16,zero2-offload:bf16,gemini-offload:bf16",
    ),
}
MEASURED = (
    2  # the step whose memory and communication are counted; data parallelism orders its buckets in the one before
)


@dataclass(frozen=True)
class Settings:
    """`batch` sequences of `sequence` tokens are one step of all ranks together."""

    model: str
    batch: int
    sequence: int
    steps: int
    lr: float
    seed: int
    train_file: str | None


def main() -> None:
    """Take the steps in every way."""
    place = worker.place()
    settings, ways = read(place.world_size)
    strategies.repair()
    import colossalai
    import text
    import tokens
    import torch
    from report import one_sentence

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32 here
    colossalai.launch_from_torch(seed=settings.seed, verbose=False)
    import models

    config = one_sentence(lambda: models.config(settings.model))
    if settings.sequence > config.max_position_embeddings:
        worker.refuse(
            f"--sequence {settings.sequence} is longer than the {config.max_position_embeddings} that OPT "
            f"{settings.model} can read"
        )
    words, _ = text.get(settings.train_file)
    tokenizer, _ = tokens.get(None, words, config.vocab_size)
    blocks = one_sentence(lambda: tokens.blocks(tokens.encode(tokenizer, words), settings.sequence))
    parameters = models.parameters(settings.model)
    if place.rank == 0:
        worker.record("comparison", parameters=parameters, ways=ways, **asdict(settings))
    worker.log(f"OPT {settings.model}, {parameters:,} parameters, the same {settings.steps} steps in each way:")
    worker.log(f"{settings.batch} sequences of {settings.sequence} tokens, learning rate {settings.lr:g}")
    plain = {
        precision: one_process(settings, precision, blocks)
        for precision in strategies.PRECISIONS
        if precision == "fp32" or any(way.endswith(precision) for way in ways)
    }
    for done, way in enumerate(ways, start=1):
        take(way, settings, blocks, plain)
        worker.progress(done, len(ways))
    torch.distributed.destroy_process_group()


def read(ranks: int) -> tuple[Settings, list[str]]:
    """The settings and the ways, each strategy:precision; what cannot be is refused in one sentence."""
    usual = EVERYWHERE[worker.preset()]
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default=usual["model"])
    for name in ("batch", "sequence", "steps"):
        parser.add_argument(f"--{name}", type=int, default=usual[name])
    parser.add_argument("--ways", default=usual["ways"], help="strategy:precision,...")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--seed", type=seed, default=0)
    parser.add_argument("--train_file")
    parser.error = lambda message: worker.refuse(f"{message}; python compare.py --help says what there is")
    args = parser.parse_args()
    ways = args.__dict__.pop("ways").split(",")
    for way in ways:
        strategy, _, precision = way.partition(":")
        if not precision:
            worker.refuse(f"--ways {way}: each way is a strategy and a precision, such as ddp:fp32")
        if refusal := why_not(strategy, precision):
            worker.refuse(f"--ways {way}: {refusal.removeprefix('--strategy ').removeprefix('--precision ')}")
    if args.steps < MEASURED + 2:
        worker.refuse(f"--steps {args.steps} leaves none to time; use {MEASURED + 2} or more")
    if args.batch < 1 or args.batch % ranks:
        worker.refuse(f"--batch {args.batch} cannot be shared by {ranks} ranks; use a multiple of {ranks}")
    return Settings(**vars(args)), ways


def start(settings: Settings) -> nn.Module:
    """The model with its first weights, the same for every way: made in fp32, on this rank's device."""
    import models

    model, _ = models.build(
        settings.model, device=worker.device(), seed=settings.seed, attention="sdpa", pretrained=False
    )
    return model


def one_process(settings: Settings, precision: str, blocks: Tensor) -> list[float]:
    """The losses of the whole batches by plain PyTorch on rank 0; the other ranks wait for them."""
    import torch
    import torch.distributed as dist
    import train
    from adam import AdamW

    held: list[Any] = [None]
    model = start(settings)  # every rank: they look for the weights together
    if dist.get_rank() == 0:
        model = model.to(strategies.dtype_of(precision)).train()
        optimizer = AdamW(model.parameters(), lr=settings.lr)
        losses = []
        for taken in range(settings.steps):
            ids = train.rows(blocks, taken, settings.batch).to(worker.device())
            loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach().float())
        held[0] = torch.stack(losses).tolist()
    dist.broadcast_object_list(held, src=0)
    return held[0]


def take(way: str, settings: Settings, blocks: Tensor, plain: dict[str, list[float]]) -> None:
    """Train in one way, record all that is known of it, and clear it away."""
    import memory
    import torch.distributed as dist
    import train
    from handson.measure.communication import CommunicationCounter

    strategy, precision = way.split(":")
    ranks = dist.get_world_size()
    model = start(settings)
    config = model.config
    trained = strategies.prepare(strategy, model, lr=settings.lr, precision=precision)
    del model
    losses, seconds = [], []
    for taken in range(settings.steps):
        ids = train.batch(blocks, taken, settings.batch // ranks)
        began = train.now()
        if taken == MEASURED:
            with CommunicationCounter() as sent:
                measured, loss = memory.measure(trained, ids)
        else:
            loss = train.step(trained, ids)
        seconds.append(train.now() - began)
        losses.append(loss)
    losses = train.mean_over_ranks(losses)
    expected = memory.formula(strategy, precision, ranks)
    worker.record(
        "training_memory",
        way=way,
        formula={kind: {"words": words, "bytes": each} for kind, (words, each) in expected.items()},
        expected_activations=memory.activations(config, len(ids), settings.sequence, precision),
        use=memory.chunk_use(trained),
        **measured.fields(),
    )
    worker.record("sent", way=way, rows=sent.rows(), bytes=sent.total_wire_bytes())
    timed = seconds[MEASURED + 1 :]
    median = statistics.median(timed)
    tokens = settings.batch * settings.sequence / median
    gap, narrow = (max(abs(a - b) for a, b in zip(losses, plain[p], strict=True)) for p in (precision, "fp32"))
    if dist.get_rank() == 0:
        worker.record(
            "way", way=way, strategy=strategy, precision=precision, stage=STRATEGIES[strategy].stage, losses=losses,
            plain=plain[precision], plain_fp32=plain["fp32"], gap=gap, gap_fp32=narrow, median_ms=1e3 * median,
            all_ms=[1e3 * one for one in timed], tokens_per_second=tokens,
        )  # fmt: skip
    kept, host = (sum(getattr(measured, place + kind) for kind in memory.KINDS) for place in ("", "host_"))
    beside = f" + host's {host / 2**20:,.0f}" if host else ""
    worker.log(
        f"{way:19} loss {losses[0]:.4f} to {losses[-1]:.4f}, off by {gap:.1e}; {1e3 * median:5,.0f} ms; "
        f"{kept / 2**20:,.0f} MiB{beside}"
    )
    trained.close()


if __name__ == "__main__":
    main()
