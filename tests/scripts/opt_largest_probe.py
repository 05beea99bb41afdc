"""What trials leave behind, and what of their failures is the memory's: for test_opt_largest.py."""

import gc
import sys
import time
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "tutorial_src" / "opt"))

import ladder
import strategies
import torch
from handson import worker

SHAPE = ladder.OWN["0.25m"]


def join():
    """The module of trials, imported when the repairs are in force, and the task of each of them."""
    worker.place()
    strategies.repair()
    import colossalai

    colossalai.launch_from_torch(verbose=False)
    import trial

    return trial, trial.Task(2, 32)


def alive() -> int:
    """Bytes of all tensors that Python knows of."""
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = [x for x in gc.get_objects() if isinstance(x, torch.Tensor)]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in found}.values())


def left_over(before: int) -> int:
    """What is alive beyond `before`, once gloo's threads have let go of the last collective's tensors."""
    until = time.monotonic() + 5
    while (left := alive() - before) > 0 and time.monotonic() < until:
        time.sleep(0.01)
    return left


def clean() -> None:
    """Trials that train, and that are refused at several points, and what is left after each."""
    trial, task = join()
    for strategy in ("ddp", "zero2", "gemini-static"):
        trial.run("0.25m", SHAPE, strategy, 2**30, task)  # what the first one imports stays
        before = alive()
        for cap in (1_000_000, 2_000_000, 2**30):
            result = trial.run("0.25m", SHAPE, strategy, cap, task)
            worker.record("left", strategy=strategy, cap=cap, verdict=result.verdict, left=left_over(before))


def refuses() -> None:
    """Tensors that stay, tensors that are freed, and one too many."""
    trial, _ = join()
    with trial.limited(10_000, alone=True) as limit:
        kept = torch.zeros(2000)
        for _ in range(3):
            torch.zeros(400).sum()
        most = limit.most()
        try:
            torch.zeros(600)
        except trial.CapReached as error:
            said = str(error)
    outside = torch.zeros(600)
    worker.record("refused", most=most, kept=kept.numel(), said=said, outside=outside.untyped_storage().nbytes())


def fault() -> None:
    """An error that is not the memory's, in the middle of a trial."""

    def broken(*args, **options):
        raise RuntimeError("the weights are upside down")

    trial, task = join()
    trial.step = broken
    trial.run("0.25m", SHAPE, "ddp", 2**30, task)


globals()[sys.argv[1]]()
