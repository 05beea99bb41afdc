"""What `tests/test_repairs.py` asks of a live rank: `repairs_probe.py QUESTION KEY=value ...` records one row."""

import sys
import warnings
from argparse import Namespace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tutorial_src" / "hybrid_parallel"))

import train
from handson import repairs, worker
from handson.repairs import legacy_cpu, legacy_engine, legacy_launch, legacy_layers, noise, titans_imports

QUESTION, *OVERRIDES = sys.argv[1:]


def say_what_importing_prints() -> None:
    """How many warnings a module of old spelling gives, what bitsandbytes logs, and that others still get through."""
    import importlib
    import logging

    import colossalai.nn.layer.layernorm

    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("bitsandbytes.backends.cpu.ops")
    logger.addHandler(handler)
    with warnings.catch_warnings(record=True) as caught:
        importlib.reload(colossalai.nn.layer.layernorm)
        warnings.warn("something else is old", FutureWarning, stacklevel=1)
    logger.warning("Failed to load CPU gemm_4bit_forward from kernels-community: %s", "No module named 'kernels'")
    logger.warning("something else is missing")
    worker.record("answer", warnings=[str(w.message) for w in caught], logged=heard)


def count_walks_of_the_stack() -> None:
    """How often one debug line, which is not shown, walks the interpreter's stack."""
    from colossalai.logging import get_dist_logger, logger

    walks = []
    walk = logger.inspect.stack
    logger.inspect.stack = lambda *args: walks.append(1) or walk(*args)
    get_dist_logger().debug("a line that nobody sees")
    worker.record("answer", walks=len(walks))


def train_one_step_from_upstreams_own_weights() -> None:
    """The weights before and after one step, and the images that this rank's part of the model computed on."""
    import images
    from engine import make_engine, take_step
    from vit import build_model

    settings = train.read_settings(Namespace(config="config.py", overrides=OVERRIDES, check=False, trace=False))
    mesh = train.join_mesh(settings)
    seen = []
    model = build_model(settings)
    model.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape[0]))
    with warnings.catch_warnings(record=True) as caught:
        engine = make_engine(model, "sgd", 0.1)
        weight = model.blocks[0].mlp.dense_1.weight
        before = weight.detach().double().sum().item()
        take_step(engine, next(images.synthetic(settings, mesh)))
    after = weight.detach().double().sum().item()
    worker.record(
        "answer", before=before, after=after, images=seen, warnings=[str(w.message) for w in caught], **mesh.index
    )


warnings.resetwarnings()
repairs.apply(noise, titans_imports, legacy_launch, legacy_cpu, legacy_engine, legacy_layers)
{
    "imports": say_what_importing_prints,
    "stack": count_walks_of_the_stack,
    "step": train_one_step_from_upstreams_own_weights,
}[QUESTION]()
