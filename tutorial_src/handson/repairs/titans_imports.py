"""titans 0.0.7 imports Colossal-AI by its names of 2022; the same code lives in `colossalai.legacy` today.

The old module names become aliases of today's modules (the same module object, so there is one global context, one
registry), and names that moved are added where titans looks for them, never over an existing one. Mixture of experts
was removed upstream; its names become stand-ins that say so when used.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

from handson.repairs import Repair

MOVED_MODULES = (
    "core",
    "global_variables",
    "constants",
    "context.parallel_mode",
    "nn.layer.base_layer",
    "nn.layer.colossalai_layer",
    "nn.layer.wrapper",
    "nn.layer.parallel_3d",
    "nn.layer.parallel_3d._utils",
    "pipeline.utils",
    "utils.activation_checkpoint",
)
# Today's module gains the public names of its legacy counterpart.
MERGED_MODULES = ("nn", "nn.layer", "nn.layer.utils")
MOVED_NAMES = (("context", "ParallelMode"), ("utils", "get_dataloader"))

MOE_MODULES = {
    "context.moe_context": (),
    "nn.layer.moe": ("MoeModule", "build_ffn_experts", "MoeLayer", "Top2Router", "NormalNoiseGenerator"),
}


def _attach(name: str, module: ModuleType) -> None:
    """Make `import colossalai.<name>` and `colossalai.<name>` give this module."""
    sys.modules[f"colossalai.{name}"] = module
    parent, _, leaf = name.rpartition(".")
    setattr(importlib.import_module(f"colossalai.{parent}" if parent else "colossalai"), leaf, module)


def _alias_moved() -> None:
    for name in MOVED_MODULES:
        _attach(name, importlib.import_module(f"colossalai.legacy.{name}"))
    for name in MERGED_MODULES:
        today = importlib.import_module(f"colossalai.{name}")
        for key, value in vars(importlib.import_module(f"colossalai.legacy.{name}")).items():
            if not key.startswith("_") and not hasattr(today, key):
                setattr(today, key, value)
    for name, key in MOVED_NAMES:
        today = importlib.import_module(f"colossalai.{name}")
        setattr(today, key, getattr(importlib.import_module(f"colossalai.legacy.{name}"), key))


class _NoExperts:
    """Stands where the mixture-of-experts context was: never initialised."""

    is_initialized = False


def _removed(name: str) -> type:
    def refuse(self: object, *args: object, **kwargs: object) -> None:
        raise NotImplementedError(f"{name} was removed from Colossal-AI; titans' MoE models cannot be built")

    return type(name, (), {"__init__": refuse, "__doc__": "Removed upstream."})


def _stand_in_for_experts() -> None:
    import colossalai.context
    import colossalai.nn.layer

    for name, classes in MOE_MODULES.items():
        module = ModuleType(f"colossalai.{name}", "A stand-in: mixture of experts was removed upstream.")
        for key in classes:
            setattr(module, key, _removed(key))
        _attach(name, module)
    sys.modules["colossalai.context.moe_context"].MOE_CONTEXT = _NoExperts()
    colossalai.context.MOE_CONTEXT = sys.modules["colossalai.context.moe_context"].MOE_CONTEXT
    colossalai.nn.layer.MoeModule = sys.modules["colossalai.nn.layer.moe"].MoeModule


def _absent(module: str) -> bool:
    return f"colossalai.{module}" not in sys.modules and importlib.util.find_spec(f"colossalai.{module}") is None


REPAIRS = (
    Repair(
        name="titans",
        area="titans imports",
        symptom="ModuleNotFoundError: No module named 'colossalai.global_variables' (then 10 modules more)",
        cause="titans/decorator/no_support.py:2 and 60 other imports name modules that moved to colossalai/legacy/",
        upstream="https://github.com/hpcaitech/ColossalAI/issues/4881",
        where="CPU and CUDA",
        needed=lambda: _absent("global_variables"),
        patch=_alias_moved,
    ),
    Repair(
        name="moe",
        area="titans imports",
        symptom="ModuleNotFoundError: No module named 'colossalai.context.moe_context'",
        cause="titans/decorator/no_support.py:3 asks whether experts are in use; colossalai/moe was removed",
        upstream="https://github.com/hpcaitech/ColossalAI/issues/4881",
        where="CPU and CUDA",
        needed=lambda: _absent("context.moe_context"),
        patch=_stand_in_for_experts,
    ),
)
