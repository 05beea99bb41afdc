"""`--trace`: when each rank computes in one step, and how much of the step it waits.

With a pipeline: the forward and backward of every micro-batch, in the 1F1B and the GPipe order, for as many
micro-batches as each divisor of NUM_MICRO_BATCHES says. With data-parallel ranks alone: see `overlap.py`. The weights
stay as they are, so that every order must find the same loss and the same gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

from colossalai.legacy.context import ParallelMode
from colossalai.legacy.core import global_context as gpc
from colossalai.legacy.engine import Engine
from colossalai.legacy.engine.schedule import PipelineSchedule
from engine import mean_loss
from gpipe import GPipeSchedule
from handson import worker
from handson.measure.memory import PeakMemory, SavedForBackward, storage_bytes
from images import Batch, synthetic
from overlap import trace_data_parallel
from settings import Settings
from sharding import Part
from timeline import Timeline, agreed, record_median_step
from torch import Tensor

ORDERS: dict[str, type[PipelineSchedule]] = {"1f1b": PipelineSchedule, "gpipe": GPipeSchedule}


def trace(part: Part, settings: Settings, engine: Engine) -> None:
    """Trace the pipeline if there is one, else the data-parallel ranks."""
    batch = next(synthetic(settings, part.mesh))
    if part.mesh.size["pipeline"] > 1:
        gradients: list[Tensor] = []
        for order in ORDERS:
            for pieces in divisors(settings.num_micro_batches):
                trace_pipeline(part, settings, engine, batch, order, pieces, gradients)
    else:
        trace_data_parallel(settings, engine, batch)


def divisors(number: int) -> list[int]:
    """Every divisor in order: what divides NUM_MICRO_BATCHES divides the batch too."""
    return [divisor for divisor in range(1, number + 1) if number % divisor == 0]


def trace_pipeline(
    part: Part, settings: Settings, engine: Engine, batch: Batch, order: str, pieces: int, first: list[Tensor]
) -> None:
    """Record rows `schedule`, `stage` and `bubble` of one order and number of micro-batches.

    Args:
        part: this rank's stage.
        settings: how many steps are warm-up and how many are timed.
        engine: the stage's engine; its own schedule is not used.
        batch: the images and labels of this data-parallel rank.
        order: "1f1b" or "gpipe".
        pieces: the number of micro-batches.
        first: the gradients to compare with; where it is empty, these are put there.
    """
    mesh, about = part.mesh, {"order": order, "micro_batches": pieces, "stages": part.mesh.size["pipeline"]}
    timeline = Timeline()
    run = pipeline_step(engine, order, pieces, batch, timeline)
    for _ in range(settings.warmup_steps):
        run()
    steps = [timeline.step(run) for _ in range(settings.timed_steps)]
    shown, lengths = record_median_step(steps, **about)
    busy = [agreed(sum, sum(span["end_ms"] - span["start_ms"] for span in spans)) for spans in steps]
    ranks = agreed(sum, 1)
    bubbles = [1 - time / (ranks * length) for time, length in zip(busy, lengths, strict=True)]
    expected = (about["stages"] - 1) / (pieces + about["stages"] - 1)

    # One step more, which hooks slow down: what is kept for the backward pass.
    parameters = list(part.model.parameters())
    exist = [*parameters, *part.model.buffers(), *batch]
    peak, saved = PeakMemory(alive=exist, device=worker.device()), SavedForBackward(exclude=exist)
    with peak, saved:
        loss = run()
    gradients = [parameter.grad.cpu() for parameter in parameters]  # away from the GPU, whose peak is measured
    first[:] = first or gradients
    difference = agreed(max, max((a - b).abs().max().item() for a, b in zip(gradients, first, strict=True)))
    loss = mean_loss(loss, mesh)
    worker.record(
        "stage",
        **about,
        stage=mesh.index["pipeline"],
        saved_bytes=saved.peak_bytes,
        micro_batch_bytes=saved.total_bytes / pieces,
        peak_bytes=peak.peak_bytes,
        parameter_bytes=storage_bytes(parameters),
        clock_error_ms=timeline.error_ms,
    )
    if mesh.is_first():
        worker.record(
            "bubble",
            **about,
            expected=expected,
            bubbles=bubbles,
            lengths_ms=lengths,
            shown=shown,
            loss=loss,
            gradient_difference=difference,
        )
    worker.log(
        f"{order:>5}, {pieces} micro-batch{'es' * (pieces > 1)}: {lengths[shown]:.3g} ms, idle {bubbles[shown]:.1%} "
        f"(formula {expected:.1%}); loss {loss:.6f}, gradients differ by {difference:.1e}"
    )


def pipeline_step(
    engine: Engine, order: str, pieces: int, batch: Batch, timeline: Timeline
) -> Callable[[], Tensor | None]:
    """A step without its update, in this order, that notes each forward and backward on the timeline."""
    schedule = ORDERS[order](pieces, scatter_gather_tensors=gpc.is_initialized(ParallelMode.PARALLEL_1D))
    forward, backward = schedule._forward_step, schedule._backward_step
    numbers: Iterator[int] = count()
    number_of: dict[int, int] = {}  # by the identity of its output, which the backward is given

    def forward_step(*args: Any, **kwargs: Any) -> Tensor:
        number = next(numbers)
        with timeline.span(phase="forward", micro_batch=number):
            output = forward(*args, **kwargs)
        number_of[id(output)] = number
        return output

    def backward_step(owner: Engine, received: Any, output: Tensor, gradient: Any) -> Any:
        with timeline.span(phase="backward", micro_batch=number_of[id(output)]):
            return backward(owner, received, output, gradient)

    schedule._forward_step, schedule._backward_step = forward_step, backward_step

    def run() -> Tensor | None:
        nonlocal numbers
        numbers = count()
        engine.zero_grad()
        return schedule.forward_backward_step(engine, iter([batch]), return_output_label=False)[2]

    return run
