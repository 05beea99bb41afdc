"""colossalai's tracers and their code generation were written for torch 1.x: what both auto topics need of them.

Auto-parallel traces with `colossalai._analyzer`, auto-checkpoint with the older `colossalai.fx`; both write the traced
graph back as Python through a code generator of their own.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

from handson.repairs import Repair, rebind

CODEGENS = ("colossalai._analyzer.fx.codegen", "colossalai.fx.codegen.activation_checkpoint_codegen")


def _codegens() -> list[type]:
    return [importlib.import_module(name).ActivationCheckpointCodeGen for name in CODEGENS]


def _knows_no_new_arguments() -> bool:
    from torch.fx.graph import CodeGen

    given = set(inspect.signature(CodeGen._gen_python_code).parameters)
    return any(given - set(inspect.signature(codegen._gen_python_code).parameters) for codegen in _codegens())


def _swallow_new_arguments() -> None:
    for codegen in _codegens():
        original = codegen._gen_python_code

        # They choose how a graph is printed for people (strides, devices, colours): upstream's code has no such thing.
        def _gen_python_code(self, nodes, root_module, namespace, *, _original=original, verbose=False, **printing):
            return _original(self, nodes, root_module, namespace, verbose)

        codegen._gen_python_code = functools.wraps(original)(_gen_python_code)
        del codegen._gen_python_code.__wrapped__  # whose signature would hide the new arguments


def _getattr_is_not_overridden() -> bool:
    from colossalai.fx.tracer.tracer import ColoTracer
    from torch.fx import Tracer

    return ColoTracer.getattr is Tracer.getattr


def _override_getattr() -> None:
    from colossalai.fx.tracer.tracer import ColoTracer

    ColoTracer.getattr = ColoTracer._module_getattr


def _no_operator_is_counted() -> bool:
    from colossalai.fx.profiler.opcount import flop_mapping

    return not flop_mapping


def _count_operators() -> None:
    from colossalai._analyzer._subclasses.flop_tensor import flop_mapping as counted
    from colossalai.fx.profiler import opcount

    class Counts(dict):
        """Operators without an entry move data or compare indices: no multiplication to count."""

        def __missing__(self, operator: Any) -> Any:
            return lambda arguments, results: 0

    rebind("colossalai.fx", opcount.flop_mapping, Counts(counted))


REPAIRS = (
    Repair(
        name="codegen",
        area="tracing",
        symptom="TypeError: ActivationCheckpointCodeGen._gen_python_code() got an unexpected keyword argument "
        "'include_stride'",
        cause="_analyzer/fx/codegen.py:249, fx/codegen/activation_checkpoint_codegen.py:628 have torch 1.x's arguments",
        upstream="",
        where="CPU and CUDA",
        needed=_knows_no_new_arguments,
        patch=_swallow_new_arguments,
    ),
    Repair(
        name="getattr",
        area="tracing",
        symptom="RuntimeError: Could not compute metadata for get_attr target fc.bias: Could not compute metadata for "
        "get_attr target fc.bias: ... (the tracer calls itself until Python's stack is full)",
        cause="fx/tracer/tracer.py:143 overrides _module_getattr, but torch >= 2 calls getattr",
        upstream="",
        where="CPU and CUDA",
        needed=_getattr_is_not_overridden,
        patch=_override_getattr,
    ),
    Repair(
        name="flops",
        area="tracing",
        symptom="KeyError: <OpOverload(op='aten.convolution', overload='default')> from MetaInfoProp",
        cause="fx/profiler/opcount.py:229 fills flop_mapping for torch 1.12 and 1.13 alone",
        upstream="",
        where="CPU and CUDA",
        needed=_no_operator_is_counted,
        patch=_count_operators,
    ),
)
