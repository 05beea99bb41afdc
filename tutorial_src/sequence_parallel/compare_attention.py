"""Is attention over a ring plain attention? Outputs and gradients beside one device, fault by fault and kind by kind.

    torchrun --nproc_per_node 4 compare_attention.py config.py
    torchrun --nproc_per_node 2 compare_attention.py config.py SEQUENCE_LENGTH=128 DEPTH=2

All ranks are one ring. First a token travels round it, so that the way of K and V can be drawn. Then a BERT with
Colossal-AI's ring attention as it comes, with one fault of it repaired, with both; then every kind of attention. Every
rank computes plain attention on the whole sequence beside it, with the same weights.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import bert_settings
from handson import repairs, worker
from handson.repairs import legacy_sequence

if TYPE_CHECKING:
    from bert_settings import Settings
    from masked_text import Batch
    from ring import Ring

FAULTS = ("scale", "ringgrad")
# What is compared: the kind of attention, and the faults of upstream's layer that are not repaired.
CASES = (
    ("ring", FAULTS),
    ("ring", ("ringgrad",)),
    ("ring", ()),
    ("ring_recompute", ()),
    ("ring_online", ()),
)


def main() -> None:
    """Join the ring, then compare case by case."""
    config, *overrides = sys.argv[1:] or ["config.py"]
    names, gpu_names = bert_settings.FILE.read(config, bert_settings.FILE.assignments(overrides))
    names |= gpu_names if worker.preset() == "gpu" else {}
    ranks = worker.place().world_size
    settings = bert_settings.settle(names | {"SEQUENCE_PARALLEL_SIZE": ranks, "PIPELINE_SIZE": 1}, ranks)
    if settings.dropout:
        worker.refuse(f"attention is compared with the same scores, which DROPOUT={settings.dropout} drops; use 0.0")

    # The repairs of this area are applied one after the other below, so that each fault can be seen.
    os.environ["HANDSON_WITHOUT"] = ",".join(FAULTS)
    import mesh as meshes

    mesh = meshes.join(sequence=ranks, seed=settings.seed)
    import masked_text
    import torch

    travel(mesh.ring)
    whole = next(masked_text.synthetic(settings, meshes.ALONE))
    reference = Compared(settings, "plain", meshes.ALONE.ring, whole)
    for number, (kind, faults) in enumerate(CASES, 1):
        os.environ["HANDSON_WITHOUT"] = ",".join(faults)
        repairs.apply(legacy_sequence)
        report(kind, faults, reference, Compared(settings, kind, mesh.ring, whole), mesh.ring)
        worker.progress(number, len(CASES))
    torch.distributed.destroy_process_group()


def travel(ring: Ring) -> None:
    """Pass each rank's number round the ring and record what arrives: the way of K and V."""
    import torch

    held = torch.tensor([ring.index], device=worker.device())
    for hops in range(ring.size):
        worker.record("travel", hops=hops, holds=int(held))
        held = ring.pass_on(held).wait() if hops + 1 < ring.size else held


class Compared:
    """A BERT's loss, logits and gradients on one batch; over a ring the gradients of all ranks are added up."""

    def __init__(self, settings: Settings, kind: str, ring: Ring, whole: Batch) -> None:
        import torch.distributed as dist
        from bert import with_weights
        from engine import shape_of

        self.model = with_weights(shape_of(settings), kind, ring, seed=settings.seed).to(worker.device())
        tokens, segments, keep, labels, weights, *_ = whole
        tokens, segments, labels, weights = (ring.cut(t).contiguous() for t in (tokens, segments, labels, weights))
        losses, _ = self.model(tokens, segments, keep, labels)
        self.losses = losses.detach()
        loss = (losses.double() * weights).sum()
        loss.backward()
        self.loss = loss.detach()
        if ring.size > 1:
            dist.all_reduce(self.loss, group=ring.group)
        self.gradients = {}
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                if ring.size > 1:
                    dist.all_reduce(parameter.grad, group=ring.group)
                self.gradients[name] = parameter.grad
        self.model = None


def report(kind: str, faults: tuple[str, ...], reference: Compared, seen: Compared, ring: Ring) -> None:
    """Record how far a case is from plain attention on one device."""
    import torch
    import torch.distributed as dist

    output = (seen.losses - ring.cut(reference.losses)).abs().max()
    if ring.size > 1:
        dist.all_reduce(output, op=dist.ReduceOp.MAX, group=ring.group)
    rows = {}
    for name, expected in reference.gradients.items():
        found = seen.gradients[name]
        rows[name] = (
            ((found - expected).abs().max() / expected.abs().max()).item(),
            (found.norm() / expected.norm()).item(),
            torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0).item(),
        )
    worst = max(rows, key=lambda name: rows[name][0])
    last = max(int(name.split(".")[1]) for name in rows if name.startswith("layers."))
    worker.record(
        "compared",
        attention=kind,
        faults=list(faults),
        loss=seen.loss.item(),
        loss_difference=abs(seen.loss - reference.loss).item(),
        output_difference=output.item(),
        gradient_difference=rows[worst][0],
        worst_parameter=worst,
        top_gradient_ratio=rows[f"layers.{last}.attention.query_key_value.weight"][1],
        least_cosine=min(cosine for _, _, cosine in rows.values()),
        parameters=len(rows),
    )
    words = f"without {', '.join(faults)}" if faults else ""
    worker.log(
        f"{kind:14} {words:24} output off by {output.item():.1e}, a gradient by {rows[worst][0]:.1e} of its largest"
    )


if __name__ == "__main__":
    main()
