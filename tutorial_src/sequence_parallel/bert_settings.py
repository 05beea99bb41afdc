"""The configuration of a run: a flat file of names, replaced by KEY=value, refused in one sentence when it cannot work.

Standard library alone, so that a mistake is answered before the heavy modules are imported.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handson.config_file import ConfigFile
from handson.worker import refuse

ATTENTIONS = ("plain", "ring", "ring_recompute", "ring_online")
OPTIMIZERS = ("adamw", "sgd")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The names of `config.py`, in lower case."""

    sequence_parallel_size: int
    pipeline_size: int
    num_micro_batches: int
    attention: str
    sequence_length: int
    vocabulary: int
    hidden_size: int
    depth: int
    num_heads: int
    mlp_ratio: int
    sentence_order: bool
    dropout: float
    batch_size: int
    steps: int
    optimizer: str
    learning_rate: float
    weight_decay: float
    seed: int
    check_steps: int
    check_learning_rate: float
    warmup_steps: int
    timed_steps: int

    def data_parallel_size(self, world_size: int) -> int:
        """How many copies of the divided model there are."""
        return world_size // (self.sequence_parallel_size * self.pipeline_size)

    def micro_batches(self) -> int:
        """Into how many pieces a copy's batch is cut: 1 without a pipeline."""
        return self.num_micro_batches if self.pipeline_size > 1 else 1

    def colossalai(self, world_size: int) -> dict[str, Any]:
        """What Colossal-AI is told beside the division of the ranks."""
        config: dict[str, Any] = dict(
            NUM_MICRO_BATCHES=self.num_micro_batches,
            # Without a handler it would take DistributedDataParallel, which cannot bear a pipeline's many backwards.
            gradient_handler=[dict(type="SequenceParallelGradientHandler")],
        )
        if self.pipeline_size > 1:  # what a stage sends to the next; told here, it need not be sent ahead each time
            sequences = self.batch_size // self.data_parallel_size(world_size) // self.num_micro_batches
            piece = self.sequence_length // self.sequence_parallel_size
            config["TENSOR_SHAPE"] = (sequences, piece, self.hidden_size)
        return config


FILE = ConfigFile(
    Settings,
    Path(__file__).resolve().parent,
    example="PIPELINE_SIZE=2",
    least={"SEED": 0, "WARMUP_STEPS": 0, "VOCABULARY": 8},
    choices={"ATTENTION": ATTENTIONS, "OPTIMIZER": OPTIMIZERS},
)


def settle(names: dict[str, Any], world_size: int) -> Settings:
    """The settings of the run; refuses what this number of ranks cannot divide evenly."""
    s = FILE.make(names)
    pieces, stages = s.sequence_parallel_size, s.pipeline_size
    ring = f"SEQUENCE_PARALLEL_SIZE={pieces}"
    if world_size % (pieces * stages):
        refuse(
            f"{world_size} rank{'s' * (world_size > 1)} cannot be divided into {ring} x PIPELINE_SIZE={stages}; "
            f"start a multiple of {pieces * stages} ranks, or change these two"
        )
    if s.attention == "plain" and pieces > 1:
        refuse(f"ATTENTION=plain needs the whole sequence on one rank, which {ring} is not; use ring")
    if s.attention == "ring_online" and s.dropout:
        refuse(f"ATTENTION=ring_online forgets its scores, so DROPOUT={s.dropout} cannot drop any; use 0.0 or ring")
    copies, micro = s.data_parallel_size(world_size), s.micro_batches()
    cut = f"{copies} data-parallel cop{'ies' if copies > 1 else 'y'}" + f" x {micro} micro-batches" * (micro > 1)
    for size, name, divisor, why in (
        (s.sequence_length, "SEQUENCE_LENGTH", pieces, f"a ring of {ring}"),
        (s.hidden_size, "HIDDEN_SIZE", s.num_heads, f"NUM_HEADS={s.num_heads}"),
        (s.batch_size, "BATCH_SIZE", copies * micro, cut),
    ):
        if size % divisor:
            refuse(f"{name}={size} is not divisible by {divisor}, as {why} needs; use a multiple of {divisor}")
    if stages > s.depth:
        refuse(f"PIPELINE_SIZE={stages} is more than the {s.depth} layers of this model; use a larger DEPTH")
    if s.dropout >= 1:
        refuse(f"DROPOUT={s.dropout} would drop everything; use a share from 0.0 to below 1")
    if s.sequence_length < 16:
        refuse(f"SEQUENCE_LENGTH={s.sequence_length} is too short for two segments; use 16 or more")
    return s
