"""What the tests of OPT training ask of live ranks: `opt_training_probe.py QUESTION` records rows of kind `answer`."""

import contextlib
import gc
import io
import sys
import weakref
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "opt"))

import strategies
from handson import worker

VOCABULARY, SEQUENCE = 2048, 16


def prepared(strategy: str, **options: object) -> strategies.Trained:
    """The tiny OPT under a strategy."""
    import models

    model, _ = models.build("tiny", attention="sdpa", pretrained=False)
    return strategies.prepare(strategy, model, lr=1e-4, **{"precision": "bf16", **options})


def some_tokens():
    """This rank's part of four made-up sequences."""
    import tokens
    import train

    return train.batch(tokens.synthetic(VOCABULARY, 4, SEQUENCE), 0, 4 // worker.place().world_size)


def gemini() -> None:
    """Two steps by Gemini; with a repair left out the job ends with the fault."""
    import train

    trained = prepared("gemini-static")
    losses = train.mean_over_ranks([train.step(trained, some_tokens()) for _ in range(2)])
    worker.record("answer", losses=losses)


def clip() -> None:
    """How far one step moves the weights of each strategy with a gradient norm of at most 1e-8: Adam's own eps."""
    import torch
    import train

    for strategy in ("ddp", "zero2", "gemini-static"):
        losses = {}
        for norm in (0.0, 1e-8):
            trained = prepared(strategy, clip=norm)
            losses[norm] = train.mean_over_ranks([train.step(trained, some_tokens()) for _ in range(3)])
            trained.close()
        free, held = (losses[norm][0] - losses[norm][-1] for norm in (0.0, 1e-8))
        worker.record("answer", strategy=strategy, free=free, held=held)
    assert torch.distributed.is_initialized()


def close() -> None:
    """How many of a model's parameters, and of all chunks, are left after its strategy was cleared away."""
    import train
    from colossalai.zero.gemini.chunk import Chunk

    for strategy in ("gemini-static", "zero2", "ddp"):
        trained = prepared(strategy)
        train.step(trained, some_tokens())
        train.step(trained, some_tokens())
        left = [weakref.ref(p) for p in trained.model.parameters()]
        trained.close()
        chunks = sum(type(thing) is Chunk for thing in gc.get_objects())
        worker.record("answer", strategy=strategy, left=sum(p() is not None for p in left), of=len(left), chunks=chunks)


def prints() -> None:
    """What the end of Gemini's first step under placement auto prints."""
    from colossalai.zero.gemini.memory_tracer.memstats_collector import MemStatsCollector

    with contextlib.redirect_stdout(io.StringIO()) as printed:
        MemStatsCollector().finish_collection()
    worker.record("answer", printed=printed.getvalue())


def adams() -> None:
    """A weight after one step of upstream's Adams with bf16 gradients: of a tenth the size, and with div_scale 10."""
    import torch
    from colossalai.nn.optimizer import CPUAdam, HybridAdam

    for kind in (CPUAdam, HybridAdam):

        class WithoutKernel(kind):
            """Upstream's steps; the kernels, which bf16 gradients on the CPU never reach, are not compiled."""

            def __init__(self, params):
                from colossalai.nn.optimizer.nvme_optimizer import NVMeOptimizer

                options = dict(lr=0.1, betas=(0.9, 0.999), eps=1e-2, weight_decay=0, bias_correction=True)
                NVMeOptimizer.__init__(self, params, options, 0.0, None)
                self.adamw_mode = True

        weights = {}
        for name, size, scale in (("small", 0.1, -1), ("scaled", 1.0, 10.0), ("large", 1.0, -1)):
            p = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
            p.grad = torch.full_like(p, size)
            p.data = p.data.float()
            WithoutKernel([p]).step(div_scale=scale)
            weights[name] = p[0].item()
        worker.record("answer", optimizer=kind.__name__, **weights)


if __name__ == "__main__":
    worker.place()
    strategies.repair()
    import colossalai

    colossalai.launch_from_torch(seed=0, verbose=False)
    {"gemini": gemini, "clip": clip, "close": close, "prints": prints, "adams": adams}[sys.argv[1]]()
