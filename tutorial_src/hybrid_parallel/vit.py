"""The vision transformer of titans, unchanged, and this rank's part of it.

Import this once the repairs are applied: titans itself imports Colossal-AI.
"""

from __future__ import annotations

from itertools import pairwise

from colossalai.legacy.pipeline.pipelinable import PipelinableContext
from colossalai.legacy.pipeline.utils import partition_uniform
from handson import worker
from settings import Settings
from sharding import Mesh, Part, load_shards
from titans.model.vit import VisionTransformer
from torch import nn


def build_part(settings: Settings, mesh: Mesh) -> Part:
    """This rank's part of the model, with its part of one full set of weights."""
    shapes = shapes_of(settings)
    model, stage_layers = (build_model(settings), None) if mesh.size["pipeline"] == 1 else build_stage(settings, mesh)
    part = Part(model=model.to(worker.device()), mesh=mesh, shapes=shapes, stage_layers=stage_layers)
    load_shards(part, settings.seed)
    return part


def build_model(settings: Settings) -> nn.Module:
    """Titans' vision transformer; its layers divide themselves as the global context says."""
    return VisionTransformer(
        img_size=settings.img_size,
        patch_size=settings.patch_size,
        num_classes=settings.num_classes,
        depth=settings.depth,
        num_heads=settings.num_heads,
        hidden_size=settings.hidden_size,
        mlp_ratio=settings.mlp_ratio,
        dropout=settings.dropout,
        checkpoint=settings.checkpoint,
    )


def build_stage(settings: Settings, mesh: Mesh) -> tuple[nn.Module, list[str]]:
    """The layers that fall to this rank's pipeline stage, and their names."""
    stages, stage = mesh.size["pipeline"], mesh.index["pipeline"]
    parts = cut_into_stages(settings.depth, stages)
    context = PipelinableContext(policy=parts)
    with context:
        build_model(settings)
    context.to_layer_list()
    names = ["embed", *(f"blocks.{i}" for i in range(settings.depth)), "norm", "head"]
    ((start, stop),) = parts[stage]
    return context.partition(1, stages, stage), names[start:stop]


def cut_into_stages(depth: int, stages: int) -> dict[int, list[tuple[int, int]]]:
    """Which layers each stage holds: equally many blocks, beside them the embedding in the first, the head in the last.

    Upstream's policy "uniform" counts the last norm and the head as much as a block: of 12 blocks it gives four stages
    2, 4, 4 and 2, and the two in the middle would make the others wait. It serves where stages outnumber blocks.
    """
    if stages > depth:
        return dict(enumerate(partition_uniform(depth + 3, stages, 1)))
    edges = [0, *(1 + depth * stage // stages for stage in range(1, stages)), depth + 3]
    return {stage: [ends] for stage, ends in enumerate(pairwise(edges))}


def shapes_of(settings: Settings) -> dict[str, tuple[int, ...]]:
    """The shape of every parameter of the vision transformer on one device, by name."""
    s, hidden, wide = settings, settings.hidden_size, settings.hidden_size * settings.mlp_ratio
    patches = (s.img_size // s.patch_size) ** 2
    shapes = {
        "embed.patch_embed.weight": (hidden, 3, s.patch_size, s.patch_size),
        "embed.patch_embed.bias": (hidden,),
        "embed.patch_embed.cls_token": (1, 1, hidden),
        "embed.patch_embed.pos_embed": (1, patches + 1, hidden),
    }

    def linear(name: str, into: int, out: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, into), (out,)

    def norm(name: str) -> None:
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (hidden,)

    for block in (f"blocks.{i}" for i in range(s.depth)):
        norm(f"{block}.norm1")
        linear(f"{block}.attn.query_key_value", hidden, 3 * hidden)
        linear(f"{block}.attn.dense", hidden, hidden)
        norm(f"{block}.norm2")
        linear(f"{block}.mlp.dense_1", hidden, wide)
        linear(f"{block}.mlp.dense_2", wide, hidden)
    norm("norm")
    linear("head.dense", hidden, s.num_classes)
    return shapes
