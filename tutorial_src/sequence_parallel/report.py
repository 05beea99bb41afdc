"""What a rank tells of itself: where it stands, and what a step costs it, beside what the formulas say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import formulas
import torch.distributed as dist
from bert import Bert
from bert_settings import Settings
from colossalai.legacy.context import ParallelMode as Axis
from colossalai.legacy.core import global_context as gpc
from colossalai.legacy.engine import Engine
from engine import take_step
from handson import worker
from handson.measure.communication import Call, CommunicationCounter
from handson.measure.memory import SavedForBackward, step_memory
from handson.measure.timing import median_step_time
from masked_text import Batch
from mesh import Mesh


def describe(model: Bert, settings: Settings, mesh: Mesh) -> None:
    """Log the division; record this rank's place and how many parameters it holds."""
    s, world = settings, dist.get_world_size()
    held = sum(p.numel() for p in model.parameters())
    piece = s.sequence_length // mesh.ring.size
    tokens = [mesh.ring.index * piece, (mesh.ring.index + 1) * piece]
    worker.record("mesh", **mesh.index, sizes=mesh.size, title=mesh.title(), attention=s.attention, tokens=tokens,
                  layers=list(model.layers))  # fmt: skip
    worker.record("sizes", **asdict(sizes_of(model, settings, mesh)))
    worker.record("parameters_total", count=held, bytes=sum(p.numel() * p.element_size() for p in model.parameters()))
    worker.log(
        f"BERT: {s.depth} layers, hidden size {s.hidden_size}, {s.num_heads} heads; "
        f"{s.batch_size} sequences of {s.sequence_length} tokens a step"
    )
    worker.log(f"{world} rank{'s' * (world > 1)} over {dist.get_backend()}: {mesh.title()}; attention {s.attention}")
    worker.log(f"rank 0 reads {piece} of {s.sequence_length} tokens and holds {held:,} parameters")


def measure(model: Bert, settings: Settings, mesh: Mesh, engine: Engine, batch: Batch) -> None:
    """Time steps on one batch; count memory and communication of one more step, and what each part of it keeps."""
    s, device = settings, worker.device()

    def step() -> None:
        take_step(engine, batch)

    time = median_step_time(step, warmup=s.warmup_steps, repeats=s.timed_steps, device=device)
    counter = ByAxis(mesh)

    def counted_step() -> None:
        with counter:
            step()

    memory = step_memory(counted_step, model=model, optimizer=engine.optimizer, alive=batch, device=device)
    tokens = time.per_second(s.batch_size * s.sequence_length)
    worker.record("memory", **memory.fields())
    worker.record("communication", rows=counter.rows())
    for row in expectations(model, settings, mesh, batch, memory.activation_bytes, counter):
        worker.record("formula", **row)  # of every rank: the stages of a pipeline differ
    if mesh.is_first():
        worker.record(
            "step_time",
            median_ms=time.median_ms,
            all_ms=time.all_ms,
            warmup=time.warmup,
            method=time.method,
            tokens_per_second=tokens,
        )
    worker.log(f"step: {time.median_ms:.3g} ms (median of {len(time.all_ms)}), {tokens:.3g} tokens/s")
    for name, words in MEMORY.items():
        worker.log(f"memory of rank 0: {getattr(memory, name) / 2**20:12,.2f} MiB {words}")
    for row in counter.rows():
        call = f"{row['calls']} x {row['collective']}"
        worker.log(f"communication of rank 0: {call:16} over {row['group']:17} {row['bytes'] / 1e6:,.2f} MB")


MEMORY = {
    "peak_bytes": "at the peak, of it",
    "parameter_bytes": "parameters",
    "gradient_bytes": "gradients",
    "optimizer_bytes": "optimizer",
    "activation_bytes": "saved for the backward pass",
}


def sizes_of(model: Bert, settings: Settings, mesh: Mesh) -> formulas.Sizes:
    """The sizes that the formulas speak of, for this rank and one micro-batch."""
    s = settings
    return formulas.Sizes(
        b=s.batch_size // mesh.size["data"] // s.micro_batches(),
        S=s.sequence_length,
        P=mesh.ring.size,
        h=s.hidden_size,
        n=s.num_heads,
        r=s.mlp_ratio,
        V=s.vocabulary,
        layers=len(model.layers),
        micro_batches=s.micro_batches(),
        attention=s.attention,
    )


def expectations(
    model: Bert, settings: Settings, mesh: Mesh, batch: Batch, saved: int, counter: ByAxis
) -> Iterator[dict[str, Any]]:
    """Rows of {about, what, formula, expected, counted, unit} of this rank."""
    z = sizes_of(model, settings, mesh)
    if mesh.size["pipeline"] == 1:
        yield from kept_rows(model, z, batch, saved)
    yield from sent_rows(model, z, mesh, counter)


def kept_rows(model: Bert, z: formulas.Sizes, batch: Batch, saved: int) -> Iterator[dict[str, Any]]:
    """What each part of the model keeps for the backward pass, counted in a forward pass of its own."""
    tokens, segments, keep, labels = batch[:4]
    exclude = list(model.parameters())
    counted: dict[str, int] = {}

    @contextmanager
    def counting(what: str) -> Iterator[None]:
        with SavedForBackward(exclude=exclude) as part:
            yield
        counted[what] = part.total_bytes

    layer = model.layers["0"]
    with counting("embedding"):
        hidden = model.embedding(tokens, segments)
    with counting("attention, a layer"):
        hidden = hidden + layer.attention(layer.attention_norm(hidden), keep)
    with counting("MLP, a layer"):
        hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
    with counting("heads"):
        without_order = model.heads.order
        model.heads.order = None
        model.heads(hidden, labels)
        model.heads.order = without_order

    terms = {
        "embedding": formulas.kept_by_embedding(z),
        "attention, a layer": formulas.kept_by_attention(z),
        "MLP, a layer": formulas.kept_by_mlp(z),
        "heads": formulas.kept_by_heads(z),
    }
    total = 0.0
    for what, parts in terms.items():
        expected = sum(term.bytes for term in parts)
        total += expected * (z.layers if "layer" in what else 1)
        words = " + ".join(term.formula for term in parts)
        yield dict(about="kept", what=what, formula=words, expected=expected, counted=counted[what], unit="B",
                   terms=[[term.what, term.formula, term.bytes] for term in parts])  # fmt: skip
    yield dict(about="kept", what=f"the step, {z.layers} layers", formula="their sum", expected=total, counted=saved,
               unit="B", terms=[])  # fmt: skip


def sent_rows(model: Bert, z: formulas.Sizes, mesh: Mesh, counter: ByAxis) -> Iterator[dict[str, Any]]:
    """What this rank sent in the counted step, axis by axis."""
    wire: dict[tuple[str, str], float] = {}
    for row in counter.rows():
        key = (row["collective"], row["group"])
        wire[key] = wire.get(key, 0) + row["wire_bytes"]
    hops, reduced = formulas.sent_by_ring(z)
    held = sum(p.numel() for p in model.parameters())
    stages, stage = mesh.size["pipeline"], mesh.index["pipeline"]
    passed = z.bsh * formulas.FP32 * z.micro_batches * ((stage > 0) + (stage < stages - 1))
    shared = z.V * z.h if stages > 1 and (model.first or model.last) else 0
    ranks = mesh.gradient_ranks()
    rules = (
        (hops.what, hops.formula, hops.bytes, ("send", "sequence")),
        (reduced.what, reduced.formula, reduced.bytes, ("all_reduce", "sequence")),
        ("all gradients", f"2 (G−1)/G W, G = {ranks}", formulas.all_reduced(held, ranks),
         ("all_reduce", GRADIENTS)),
        ("hidden states", "micro-batches × b (S/P) h", passed, ("send", "pipeline")),
        ("shared embedding", "V h", formulas.all_reduced(shared, 2), ("all_reduce", SHARED)),
    )  # fmt: skip
    for what, formula, expected, key in rules:
        if expected or wire.get(key):
            yield dict(about="sent", what=what, axis=key[1], formula=formula, expected=expected,
                       counted=wire.get(key, 0), unit="B")  # fmt: skip
    unknown = {key: size for key, size in wire.items() if size and key not in [rule[3] for rule in rules]}
    if unknown:
        raise ValueError(f"a step sent what no formula speaks of: {unknown}")


GRADIENTS, SHARED = "data × sequence", "first, last stage"


class ByAxis(CommunicationCounter):
    """Counts by the axis of the mesh. Upstream's ring and its pipeline both send over the group of all ranks; the
    receiver tells them apart."""

    def __init__(self, mesh: Mesh) -> None:
        names = {Axis.DATA: "data", Axis.PIPELINE: "pipeline", Axis.SEQUENCE: "sequence", Axis.SEQUENCE_DP: GRADIENTS}
        groups = {gpc.get_group(axis): name for axis, name in names.items() if gpc.is_initialized(axis)}
        super().__init__(lambda group: next((n for g, n in groups.items() if g == group), None) or self._rest(group))
        self.mesh = mesh

    def _rest(self, group: dist.ProcessGroup) -> str | None:
        return SHARED if group != dist.group.WORLD else None

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        super()._count(func, args, kwargs)
        call = self.calls[-1] if self.calls else None
        if call and call.collective in ("send", "recv") and call.group == "world" and func._schema.name[:6] == "c10d::":
            given = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
            peer = given.get("dst", given.get("src"))
            ring = self.mesh.ring
            axis, size = ("sequence", ring.size) if peer in ring.ranks else ("pipeline", 2)
            self.calls[-1] = Call(call.collective, axis, size, call.bytes)
