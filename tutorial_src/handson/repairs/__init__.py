"""Run-time repairs of the packages the tutorial stands on: small, named, conditional, each with a test.

Nothing upstream is forked. A training script names the areas it needs and every repair of those areas whose fault is
present on this host is applied; the environment variable `HANDSON_WITHOUT=name,name` leaves some out, so that a
reader (and the tests) can see the fault itself. Importing an area imports nothing heavy.
"""

from __future__ import annotations

import os
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from handson import worker


@dataclass(frozen=True)
class Repair:
    """One fault of an upstream package, and its cure.

    `symptom` is what a reader sees without the repair (the error's text, or the wrong number), `cause` the upstream
    file and line, `upstream` an issue's address or "", `where` the hosts that have the fault. `needed()` says whether
    this host has it, `patch()` cures it; both may import the package, this module itself never does.
    """

    name: str
    area: str
    symptom: str
    cause: str
    upstream: str
    where: str
    needed: Callable[[], bool]
    patch: Callable[[], None]


_in_force: list[str] = []


def apply(*areas: ModuleType) -> list[str]:
    """Apply, in order, every repair of these modules that this host needs; return the names now in force.

    Those of the area `leaving` are always among them. Calling it again changes nothing. A repair that
    `HANDSON_WITHOUT` names is left out.

    Raises:
        SystemExit: with one sentence, when `HANDSON_WITHOUT` names a repair that does not exist.
    """
    unwanted = set(filter(None, os.environ.get("HANDSON_WITHOUT", "").split(",")))
    if unwanted:
        unknown = unwanted - {repair.name for repair in all_repairs()}
        if unknown:
            worker.refuse(f"HANDSON_WITHOUT names no repair of this kit: {', '.join(sorted(unknown))}")
    from handson.repairs import leaving  # which needs what is above

    for area in (*areas, leaving):
        for repair in area.REPAIRS:
            if repair.name not in unwanted and repair.name not in _in_force and repair.needed():
                repair.patch()
                _in_force.append(repair.name)
    worker.record("repairs", names=list(_in_force))
    return list(_in_force)


def all_repairs() -> list[Repair]:
    """Every repair of the kit, area by area, for `doctor` and the documentation."""
    areas = [import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
    return [repair for area in areas for repair in getattr(area, "REPAIRS", ())]


def rebind(package: str, old: Any, new: Any) -> None:
    """Put `new` in place of `old` wherever a loaded module of `package` holds it.

    `from module import name` copies the reference, so changing the defining module alone would reach only some callers.
    """
    for module_name, module in list(sys.modules.items()):
        if module is not None and (module_name == package or module_name.startswith(package + ".")):
            for name, value in list(vars(module).items()):
                if value is old:
                    setattr(module, name, new)
