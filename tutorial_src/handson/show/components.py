"""What Colossal-AI is made of: each of its modules belongs to exactly one box, and each box names its lessons.

The table below is all that a person decided. Sizes and names come from the installed package (`inventory`), and
tests/test_components.py fails when a box names a module that does not import, or a lesson that is not there.
"""

from __future__ import annotations

from dataclasses import dataclass

from handson.show.inventory import Module, Package

DOCS = "https://colossalai.org/docs/"
SOURCE = "https://github.com/hpcaitech/ColossalAI/blob"

# A lesson of the gallery, or a topic's folder: it has a link from the day its file is there.
LESSONS = {
    "multi_dimensional/plot_from_pytorch_to_colossalai": "Step by step",
    "multi_dimensional/plot_data_and_pipeline": "Data and pipeline",
    "multi_dimensional/plot_tensor_parallel": "Tensor parallelism",
    "multi_dimensional/plot_hybrid": "Hybrids",
    "sequence": "Sequence parallelism",
    "large_batch": "Large batch",
    "auto_parallel": "Auto-parallelism",
    "auto_checkpoint": "Auto-checkpoint",
    "opt": "OPT",
}
STEPS, SCHEDULES, TENSOR, HYBRID, SEQUENCE, BATCH, SOLVER, CHECKPOINT, OPT = LESSONS


@dataclass(frozen=True)
class Box:
    """A part of Colossal-AI: the modules it stands for (each with all below it that no other box names).

    `docs` is a page of colossalai.org, `exports` a module whose public names the map lists.
    """

    title: str
    what: str
    modules: tuple[str, ...]
    docs: str = ""
    lessons: tuple[str, ...] = ()
    exports: str = ""
    wide: bool = False


@dataclass(frozen=True)
class Band:
    """Boxes that belong together; `area` is their place on the map."""

    area: str
    title: str
    boxes: tuple[Box, ...]


BANDS = (
    Band("start", "Start", (
        Box("Launch", "starts a process for each rank and makes them one group", ("cli", "initialize"),
            "basics/launch_colossalai", (STEPS, HYBRID, BATCH, OPT), wide=True),
    )),
    Band("today", "Today: one interface, many plugins", (
        Box("Booster", "wraps a training loop; its plugin says which kind of parallelism", ("booster", "interface"),
            "basics/booster_plugins", (STEPS, HYBRID, SEQUENCE, BATCH, OPT), exports="booster.plugin", wide=True),
        Box("ShardFormer", "swaps the layers of transformers’ models for sharded ones", ("shardformer",),
            "features/shardformer", (STEPS, HYBRID, SEQUENCE, OPT)),
        Box("Pipeline", "sends micro-batches through the stages of a model", ("pipeline",),
            "features/pipeline_parallel", (STEPS, SCHEDULES, HYBRID, SEQUENCE)),
        Box("ZeRO 1 and 2", "splits optimizer states and gradients over the ranks", ("zero",),
            "basics/booster_plugins", (BATCH, OPT)),
        Box("Gemini", "ZeRO 3 in chunks, which may wait in the host’s memory", ("zero.gemini",),
            "features/zero_with_chunk", (OPT,)),
        Box("Optimizers", "LARS and LAMB, fused and distributed ones, learning-rate schedules", ("nn",),
            "features/distributed_optimizers", (BATCH, OPT)),
        Box("Checkpoints", "saves and loads what is spread over ranks", ("checkpoint_io",),
            "basics/booster_checkpoint", (OPT,)),
        Box("Precision", "fp16 with loss scaling, FP8, 4 and 8 bits", ("amp", "quantization"),
            "features/mixed_precision_training_with_booster", (OPT,)),
        Box("Lazy initialisation", "builds a model before there is memory for it", ("lazy",), "features/lazy_init"),
    )),
    Band("legacy", "2022: colossalai.legacy", (
        Box("Engine", "that time’s Booster: config file, process groups, schedules, its own ZeRO", ("legacy",),
            lessons=(SCHEDULES, TENSOR, HYBRID, SEQUENCE)),
        Box("Layers in 1D, 2D, 2.5D, 3D", "cut a matrix along one to three mesh axes", ("legacy.nn",),
            "features/2D_tensor_parallel", (TENSOR, HYBRID)),
        Box("Ring self-attention", "passes keys and values around a ring of ranks",
            ("legacy.nn.layer.parallel_sequence",), lessons=(SEQUENCE,)),
        Box("Pipeline of 2022", "cuts a model while it is being built", ("legacy.pipeline",),
            lessons=(SCHEDULES, HYBRID, SEQUENCE)),
    )),
    Band("serving", "Serving", (
        Box("Inference", "paged attention and continuous batching for LLaMA and Baichuan, not for OPT", ("inference",)),
    )),
    Band("solver", "Colossal-Auto: a solver decides", (
        Box("Sharding solver", "chooses how each operation is split (SPMD)", ("auto_parallel",),
            "Colossal-Auto/get_started/introduction", (SOLVER,)),
        Box("Checkpoint solver", "chooses what to recompute under a memory budget", ("auto_parallel.checkpoint",),
            "Colossal-Auto/feature/auto_checkpoint", (CHECKPOINT,)),
        Box("Offload solver", "chooses what waits in the host’s memory", ("auto_parallel.offload",)),
        Box("Tracer", "turns a model into a graph with the shape and cost of each node", ("_analyzer", "fx"),
            "Colossal-Auto/feature/tracer", (SOLVER, CHECKPOINT), wide=True),
    )),
    Band("ground", "What all of it stands on", (
        Box("Layouts", "how a tensor is split, and how one split becomes another", ("tensor",),
            "Colossal-Auto/feature/layout_converting_management", (SOLVER,)),
        Box("Devices and meshes", "process groups, accelerators, link speeds",
            ("device", "cluster", "accelerator", "context"), "features/cluster_utils", (STEPS, HYBRID, SOLVER)),
        Box("Experts", "communication for mixtures of experts", ("moe", "tensor.moe_tensor"),
            "advanced_tutorials/integrate_mixture_of_experts_into_your_model"),
        Box("Kernels", "in Triton, CUDA and C++, built at first use", ("kernel", "_C", "nn.layer"),
            lessons=(OPT,), wide=True),
        Box("Helpers", "logs, timers, tests", ("", "version", "utils", "logging", "testing")),
    )),
)  # fmt: skip


def modules_of(package: Package) -> dict[str, list[Module]]:
    """Return the living modules of each box, by its title; a module belongs to the box that names it most exactly."""
    owner = {full_name(package, name): box.title for _, box in boxes() for name in box.modules}
    found: dict[str, list[Module]] = {box.title: [] for _, box in boxes()}
    for name, module in package.modules.items():
        if name in package.dead:
            continue
        # The package itself is a box's only by its own name: a new part of it must be put into a box.
        prefix = name
        while prefix not in owner and "." in prefix:
            prefix = prefix.rpartition(".")[0]
        if prefix == package.name != name:
            raise ValueError(f"no box of handson.show.components holds {name}")
        found[owner[prefix]].append(module)
    return found


def boxes() -> list[tuple[Band, Box]]:
    """Return every box with its band, in the order of the map."""
    return [(band, box) for band in BANDS for box in band.boxes]


def full_name(package: Package, name: str) -> str:
    """Return a module's whole name; the table above leaves out the package's."""
    return f"{package.name}.{name}".rstrip(".")


def source(package: Package, module: Module, line: int | None = None) -> str:
    """Return the address of a module's file (a package's folder) upstream, at the version that is installed."""
    path = module.path.relative_to(package.root.parent)
    path = path.parent if module.is_package and line is None else path
    return f"{SOURCE}/v{package.version}/{path.as_posix()}" + (f"#L{line}" if line else "")
