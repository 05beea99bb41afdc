"""Which files a run is made of, and the key that their content gives it. Standard library alone.

A run's key covers the training script, the modules beside it and in the kit that it imports (followed through
their imports by reading, never by running), the files its arguments name, the arguments, the number of ranks and
the preset. Prose, plots and the launcher are not part of it: changing them makes no number different. Nor are the
edits of which the kit says so, line by line (handson.harmless), nor what only these import.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sys
from pathlib import Path

from handson import harmless

KIT = Path(__file__).resolve().parent
# In a checkout the training scripts lie beside the kit; in the installed wheel, inside it.
SCRIPTS = KIT.parent if (KIT.parent / "hybrid_parallel").is_dir() else KIT / "tutorial"
CHECKOUT = KIT.parent.parent if (KIT.parent.parent / "gallery").is_dir() else None


@functools.cache
def harmless_edits() -> dict[str, harmless.Edit]:
    """The edits that keys pass over, by the name of the source."""
    return harmless.edits(KIT / "harmless_edits")


def find_script(name: str) -> Path:
    """The file that `name` means: relative to the current folder, else to the tutorial's training scripts.

    Raises:
        FileNotFoundError: with one sentence that says where it looked.
    """
    for folder in (Path.cwd(), SCRIPTS):
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise FileNotFoundError(f"there is no training script {name}: not in this folder, nor in {SCRIPTS.name}/")


def _module_file(module: str, folder: Path) -> list[Path]:
    """The files that importing `module` would read, among this folder's and the kit's."""
    parts = module.split(".")
    root, parts = (KIT, parts[1:]) if parts[0] == "handson" else (folder, parts)
    found = [root / "__init__.py"] if root == KIT else []
    for depth in range(1, len(parts) + 1):
        stem = root.joinpath(*parts[:depth])
        if (module_file := stem.with_suffix(".py")).is_file():
            found.append(module_file)
        if not stem.is_dir():
            break
        if (package := stem / "__init__.py").is_file():
            found.append(package)
    return found


def _as_it_is(path: Path) -> tuple[Path, int, int]:
    """What tells one state of a file from the next, for caches within one process."""
    state = path.stat()
    return path, state.st_mtime_ns, state.st_size


def _as_keyed(path: Path) -> bytes:
    """A file's content as keys take it: without its harmless edit."""
    content = path.read_bytes()
    edit = harmless_edits().get(name_of(path))
    return edit.undone(content.decode()).encode() if edit else content


@functools.lru_cache(4096)
def _hash(path: Path, changed_ns: int, size: int) -> str:
    return hashlib.sha256(_as_keyed(path)).hexdigest()


@functools.lru_cache(4096)
def _imports(path: Path, changed_ns: int, size: int) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(_as_keyed(path), filename=str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            # `from handson import worker` may import a module as well as a name.
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def files_of(script: Path, argv: list[str] | tuple[str, ...]) -> dict[str, str]:
    """Map each file a run is made of (named relative to the tutorial's sources) to its content's SHA-256."""
    waiting, seen, asked = [script], set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        # In the wheel the training scripts lie inside the kit; what they import lies beside them all the same.
        of_kit = path.is_relative_to(KIT) and not path.is_relative_to(KIT / "tutorial")
        folder = KIT if of_kit else script.parent
        # Most names are asked for by many files, and most are of packages elsewhere: each costs looks at the disk.
        names = {(name, folder) for name in _imports(*_as_it_is(path))} - asked
        asked |= names
        for name, _ in names:
            waiting += _module_file(name, folder)
    for argument in argv:
        for value in (argument, argument.partition("=")[2]):
            # A Windows-length guard: an argument may be any text, also one too long to be a file's name.
            if value and len(value) < 256 and (script.parent / value).is_file():
                seen.add((script.parent / value).resolve())
    return dict(sorted((name_of(path), _hash(*_as_it_is(path))) for path in seen))


def name_of(path: Path) -> str:
    """The name of a source file as keys and recordings use it: the same in a checkout and in the wheel."""
    if path.is_relative_to(SCRIPTS):
        return path.relative_to(SCRIPTS).as_posix()
    return f"handson/{path.relative_to(KIT).as_posix()}" if path.is_relative_to(KIT) else path.name


def key_of(
    files: dict[str, str], argv: list[str] | tuple[str, ...], ranks: int, preset: str, without: tuple[str, ...]
) -> str:
    """The content key of a run: 64 hexadecimal digits. `without` names the repairs that it leaves out."""
    content = json.dumps([files, list(argv), ranks, preset, list(without)], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def without_folders(traceback_text: str) -> str:
    """Name each file of a traceback from its import root on: what is kept tells no folder of the host that made it."""
    roots = {str(Path(root).resolve()) for root in sys.path if root}
    # First the scripts' own: a script's folder may be on the path too, and must stay in its name.
    for root in (str(SCRIPTS), *sorted(roots, key=len, reverse=True)):
        traceback_text = traceback_text.replace(f"{root}{os.sep}", "")
    return traceback_text
