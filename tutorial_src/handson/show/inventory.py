"""What an installed package consists of, read from its files: sizes, public names, and imports that lead nowhere.

Nothing of the package is imported, so reading a whole one takes seconds on any host, with or without its needs.
"""

from __future__ import annotations

import ast
import importlib.util
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import metadata
from pathlib import Path

TOLERATED = {"ImportError", "ModuleNotFoundError", "Exception", "BaseException"}


@dataclass(frozen=True)
class Module:
    """One module: its file, its lines of code (blank ones and comments left out) and its public classes."""

    name: str
    path: Path
    lines: int
    classes: tuple[str, ...]
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        """Whether it is a folder's `__init__`."""
        return self.path.name == "__init__.py"


class Package:
    """The modules of an installed package, by name."""

    def __init__(self, name: str) -> None:
        """Read every module's file.

        Raises:
            ModuleNotFoundError: when this host does not have the package.
        """
        found = importlib.util.find_spec(name)  # of a top-level package: finds it, runs nothing
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(f"there is no package {name} on this host", name=name)
        self.name, self.version = name, metadata.version(name)
        self.root = Path(found.submodule_search_locations[0])
        with warnings.catch_warnings():
            # Python warns of escapes like "\\_" in docstrings that it reads: not ours to mend.
            warnings.simplefilter("ignore")
            self.modules = {module.name: module for module in map(self._read, sorted(self.root.rglob("*.py")))}

    def _read(self, path: Path) -> Module:
        parts = (self.name, *path.relative_to(self.root).with_suffix("").parts)
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        classes = tuple(n.name for n in tree.body if isinstance(n, ast.ClassDef) and not n.name.startswith("_"))
        lines = sum(bool(line) and not line.startswith("#") for line in map(str.strip, text.splitlines()))
        return Module(".".join(parts[:-1] if parts[-1] == "__init__" else parts), path, lines, classes, tree)

    def within(self, prefix: str) -> list[Module]:
        """Return a module and all below it; none when the package does not have it."""
        return [module for name, module in self.modules.items() if f"{name}.".startswith(f"{prefix}.")]

    def names(self, module: str) -> list[str]:
        """Return the public names of a module: its `__all__`, with what it appends to it."""
        names: list[str] = []
        for node in ast.walk(self.modules[module].tree):
            if isinstance(node, ast.Assign) and "__all__" in map(ast.unparse, node.targets):
                names += ast.literal_eval(node.value)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "__all__.append":
                names += [ast.literal_eval(node.args[0])]
        return names

    def arguments(self, name: str) -> list[str]:
        """Return the names of the arguments that a public class of the package takes."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef) and node.name == name:
                    makers = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
                    return [argument.arg for maker in makers for argument in maker.args.args[1:]]
        raise LookupError(f"{self.name} {self.version} has no class {name}")

    def line(self, module: str, text: str) -> int | None:
        """Return the number of the first line of a module that contains this text."""
        lines = self.modules[module].path.read_text(encoding="utf-8").splitlines()
        return next((number for number, line in enumerate(lines, 1) if text in line), None)

    def empty_function(self, module: str, name: str) -> int | None:
        """Return the line of a function that does nothing: whose body is a docstring, or `pass`."""
        for node in ast.walk(self.modules[module].tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                return node.lineno if all(map(_says_nothing, node.body)) else None
        return None

    @cached_property
    def nowhere(self) -> dict[str, tuple[int, str]]:
        """For each module with an import of this package's own that cannot succeed: its line, and what is missing.

        Only what importing the module is sure to run counts: no function's body, no branch, nothing that a `try` saves.
        """
        found = {}
        for module in self.modules.values():
            for line, target in self._imports(module):
                if target not in self.modules:
                    found.setdefault(module.name, (line, target))
        return found

    @cached_property
    def dead(self) -> dict[str, str]:
        """For each module that no host can import: the module in `nowhere` that stops it."""
        stopped = {name: name for name in self.nowhere}
        needs = {
            name: {name.rpartition(".")[0], *(parent for _, t in self._imports(m) for parent in _with_parents(t))}
            for name, m in self.modules.items()
        }
        grown = True
        while grown:
            reached = {
                name: next(stopped[need] for need in sorted(needs[name]) if need in stopped)
                for name in self.modules
                if name not in stopped and not needs[name].isdisjoint(stopped)
            }
            stopped |= reached
            grown = bool(reached)
        return stopped

    def _imports(self, module: Module) -> Iterator[tuple[int, str]]:
        here = module.name if module.is_package else module.name.rpartition(".")[0]
        for node in _sure(module.tree.body):
            if isinstance(node, ast.Import):
                targets = [alias.name for alias in node.names]
            else:
                above = here.split(".")[: len(here.split(".")) - node.level + 1] if node.level else []
                base = ".".join([*above, *filter(None, [node.module])])
                # `from package import name`: the name may be a module too.
                targets = [base, *(n for alias in node.names if (n := f"{base}.{alias.name}") in self.modules)]
            for target in targets:
                if target.split(".")[0] == self.name:
                    yield node.lineno, target


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _sure(body: list[ast.stmt]) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the imports that run whenever the module is imported."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.Try):
            caught = {ast.unparse(kind) for h in node.handlers for kind in _kinds(h)}
            if caught.isdisjoint(TOLERATED):
                yield from _sure(node.body)
        elif isinstance(node, ast.With | ast.ClassDef):
            yield from _sure(node.body)


def _kinds(handler: ast.ExceptHandler) -> list[ast.expr]:
    if handler.type is None:
        return [ast.Name("BaseException")]
    return handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts) + 1)]
