"""Every recording of the repository, read once a build, and whether the code that made it is still the code here."""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from pathlib import Path

from handson import store
from handson.run import Run
from sphinx.environment import BuildEnvironment


@dataclass(frozen=True)
class Recording:
    """One recorded run; `stale` says what changed since it was made, and is empty while nothing has."""

    run: Run
    file: Path
    stale: str


@functools.cache
def _all(folder: Path, stamp: tuple[float, ...]) -> tuple[Recording, ...]:
    found = []
    for file in sorted(folder.rglob("*.json")):
        run, _ = store.load(file)
        try:
            changed = store.changed_files(run, store.Request.again(run))
        except FileNotFoundError as error:
            changed = [str(error)]
        run.way = "recorded"
        found.append(Recording(run, file, f"{', '.join(changed)} changed since" if changed else ""))
    return tuple(found)


def recordings(env: BuildEnvironment) -> tuple[Recording, ...]:
    """All of them; the page that asks is read again when a recording or the code that made it changes."""
    folder = store.recordings()
    if folder is None or not folder.is_dir():
        return ()
    # A file that appears or goes changes its folder's date.
    folders = [folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())]
    found = _all(folder, tuple(path.stat().st_mtime for path in folders))
    sources = Path(env.app.confdir) / "tutorial_src"
    made_of = {sources / name for recording in found for name in recording.run.files}
    for path in [*(recording.file for recording in found), *made_of]:
        env.note_dependency(path)
    return found


def names() -> list[str]:
    """The files of all recordings: Sphinx sees that one changed, but not that one appeared or went."""
    folder = store.recordings()
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.json")) if folder else []


def lesson_title(env: BuildEnvironment, lesson: str) -> str:
    """The heading of `topic/plot_name`, from the first line of its docstring; its name where the lesson is gone."""
    file = Path(env.app.confdir) / "gallery" / f"{lesson}.py"
    if not file.is_file():
        return lesson
    env.note_dependency(file)
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))).partition("\n")[0]
