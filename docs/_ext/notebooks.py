"""The lessons as notebooks: one beside each lesson's page, and `notebook.ipynb`, the whole tutorial in one file.

`notebook.ipynb` needs nothing but Python and a network: the kit and the training scripts are inside it, and its first
cells unpack them and install the rest. `python docs/_ext/notebooks.py` (`nox -s notebook`) writes it; `--execute`
runs it first.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import kit_wheel
import sharing
from contents import ReadingOrder
from lesson_cells import Link, cells, code_cell, markdown, numbered, scripts_of, text_cell, title_of
from notebook_setup import FOLDER, setup_cells, sources
from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[2]
NAME = "notebook.ipynb"
CELL_SECONDS, STARTUP_SECONDS = 1800, 180

INTRODUCTION = """
# Colossal-AI Tutorial Hands-on

Train and serve one model on many accelerators. Every lesson starts real processes: over NCCL where this host has a GPU
for each of them, else over gloo on the CPU, at a small size. What you see below each cell is this host's own.

Run the two cells of the [setup](#Setup), then any lesson, in any order. Before a lesson come its training scripts,
folded: unfold one, change it, run its cell and the lesson again. What ran before with the same code is not run again;
it is kept in `.handson`, and everything else that this notebook writes in `colossalai_handson`.
"""


def topics(root: Path) -> list[Path]:
    """The folders of lessons: those that conf.py lists, in its order, then any other."""
    listed: tuple[str, ...] = ()
    for node in ast.parse((root / "conf.py").read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(getattr(target, "id", None) == "TOPICS" for target in node.targets):
            listed = ast.literal_eval(node.value)
    # A folder without a header is no section of the gallery.
    there = sorted(path.parent for path in root.glob("gallery/*/GALLERY_HEADER.rst"))
    first = [path for name in listed for path in there if path.name == name]
    return first + [path for path in there if path not in first]


def lessons(root: Path = ROOT) -> list[Path]:
    """All lessons in reading order."""
    return [
        lesson
        for topic in topics(root)
        for lesson in sorted(topic.glob("plot_*.py"), key=lambda path: (ReadingOrder("")(path.name), path.name))
    ]


def _address(base: str, page: str) -> str | None:
    return f"{base.rstrip('/')}/{page}.html" if base else None


def _title(page: str, root: Path) -> str:
    if page.startswith("lessons/"):
        source = root / "gallery" / f"{page.removeprefix('lessons/')}.py"
        return title_of(source) if source.is_file() else "Lessons"
    return title_of(root / "docs" / f"{page}.md")


def links(base: str, root: Path = ROOT, here: Collection[str] = ()) -> Link:
    """How a notebook names a page: by its heading where the page is one of `here`, by its address on the site else."""

    def link(page: str) -> tuple[str, str | None]:
        title = _title(page, root)
        return title, f"#{title.replace(' ', '-')}" if page in here else _address(base, page)

    return link


def of_lesson(lesson: Path, base: str, wheel: str, root: Path = ROOT) -> dict[str, Any]:
    """The notebook of one lesson: what to install, then its cells."""
    title, *rest = cells(lesson, links(base, root))
    commands = kit_wheel.commands(wheel, base)
    first = text_cell(f"{kit_wheel.where(base)}\n\n```bash\n{commands}\n```\n\n{kit_wheel.WHY}")
    return numbered([title, first, *rest])


def whole(base: str = "", root: Path = ROOT, only: Collection[str] | None = None) -> dict[str, Any]:
    """The whole tutorial, or `only` some lessons of it (`topic/plot_name`), as one notebook."""
    chosen = [path for path in lessons(root) if only is None or f"{path.parent.name}/{path.stem}" in only]
    link = links(base, root, [f"lessons/{path.parent.name}/{path.stem}" for path in lessons(root)])
    packed = sources(root)
    body, written = [], set[str]()
    for index, lesson in enumerate(chosen):
        part = []
        if index == 0 or chosen[index - 1].parent != lesson.parent:
            part.append(text_cell(_topic(lesson.parent, link)))
        title, *rest = cells(lesson, link, below=1)
        # A module of the kit is imported once: a changed copy would do nothing. A text to train on is no script.
        offered = [name for name in scripts_of(lesson) if not name.startswith("handson/") and not name.endswith(".txt")]
        scripts = [name for name in offered if name not in written]
        written.update(scripts)
        if scripts:
            title["source"] += ["\n\n", f"First its scripts, folded: {', '.join(f'`{name}`' for name in scripts)}."]
        part += [title, *(code_cell(f"%%writefile {FOLDER}/{name}\n{packed[name]}", folded=True) for name in scripts)]
        for cell in [*part, *rest]:
            cell["metadata"]["handson"] = f"{lesson.parent.name}/{lesson.stem}"
        body += [*part, *rest]
    return numbered([text_cell(INTRODUCTION + _contents(chosen, link)), *setup_cells(packed), *body])


def _topic(folder: Path, link: Link) -> str:
    header = (folder / "GALLERY_HEADER.rst").read_text(encoding="utf-8")
    return markdown(header, f"{folder.name}/index", link, {(None, "="): 1, (None, "#"): 1, (None, "-"): 2})


def _contents(chosen: list[Path], link: Link) -> str:
    lines, topic = [], None
    for lesson in chosen:
        if lesson.parent != topic:
            topic = lesson.parent
            lines.append(f"- {_topic(topic, link).strip().splitlines()[0].removeprefix('# ')}")
        title, address = link(f"lessons/{topic.name}/{lesson.stem}")
        lines.append(f"  - [{title}]({address})")
    return "\n" + "\n".join(lines) + "\n"


def text_of(notebook: dict[str, Any]) -> str:
    """A notebook as its file's text."""
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def execute(notebook: dict[str, Any], folder: Path, say: Callable[[str], None]) -> dict[str, Any]:
    """Run every cell in order in a kernel of this Python, in a folder; return the notebook with what came out.

    Raises:
        RuntimeError: naming the lesson and the cell that failed, with its error.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    run = nbformat.reads(text_of(notebook), as_version=4)
    began, codes = time.monotonic(), [cell["id"] for cell in run.cells if cell["cell_type"] == "code"]

    def tell(cell: Any, cell_index: int, **_: Any) -> None:
        if cell["cell_type"] == "code":
            now = cell["metadata"].get("handson", "setup")
            say(f"{time.monotonic() - began:4.0f} s, cell {codes.index(cell['id']) + 1} of {len(codes)}: {now}")

    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(run, timeout=CELL_SECONDS, startup_timeout=STARTUP_SECONDS, resources=where)
    client.on_cell_start = tell
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        last = next((c for c in reversed(run.cells) if c.get("execution_count") or c.get("outputs")), run.cells[0])
        lesson = last["metadata"].get("handson", "the setup")
        raise RuntimeError(f"{lesson} failed in the cell {last['id']}:\n{error}") from None
    return json.loads(nbformat.writes(run))


def written(notebook: dict[str, Any], path: Path) -> None:
    """Put the file in place whole, and only where it differs."""
    text = text_of(notebook)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.part")
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)


def write_all(app: Sphinx) -> None:
    """After Sphinx-Gallery: replace its notebooks of the lessons, and write the whole one."""
    root, base = Path(app.confdir), app.config.html_baseurl
    wheel = kit_wheel.wheel(root)
    for lesson in lessons(root):
        made = Path(app.srcdir) / "lessons" / lesson.parent.name / f"{lesson.stem}.ipynb"
        if made.is_file():
            written(of_lesson(lesson, base, wheel.name if wheel else "colossalai-handson.whl", root), made)
    written(whole(base, root), root / "build" / "notebook" / NAME)


def publish(app: Sphinx, exception: Exception | None) -> None:
    """Give the notebook and the wheel addresses that stay: the site's root."""
    if exception is not None or app.builder.format != "html":
        return
    root = Path(app.confdir)
    for file in (root / "build" / "notebook" / NAME, kit_wheel.wheel(root)):
        if file is not None:
            shutil.copyfile(file, Path(app.outdir) / file.name)


def main(arguments: list[str]) -> int:
    """Write notebook.ipynb; with --execute run it first and keep what came out."""
    parser = argparse.ArgumentParser(prog="nox -s notebook --", description=main.__doc__)
    parser.add_argument("--execute", action="store_true", help="run all cells on this host, and keep their output")
    parser.add_argument("--lesson", action="append", metavar="TOPIC/PLOT_NAME", help="this lesson alone; may repeat")
    parser.add_argument("--output", type=Path, default=Path(NAME), help="default: notebook.ipynb, here")
    asked = parser.parse_args(arguments)
    known = [f"{path.parent.name}/{path.stem}" for path in lessons()]
    if unknown := [name for name in asked.lesson or () if name not in known]:
        print(f"error: there is no lesson {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    notebook = whole(sharing.address(os.environ), only=asked.lesson)
    if asked.execute:
        folder = Path(tempfile.mkdtemp(prefix="notebook-"))
        try:
            notebook = execute(notebook, folder, lambda line: print(line, flush=True))
        except RuntimeError as error:
            print(f"error: {error}\n{asked.output} is as it was", file=sys.stderr)
            return 1
        finally:
            shutil.rmtree(folder)
    written(notebook, asked.output)
    print(f"{asked.output}: {len(notebook['cells'])} cells, {asked.output.stat().st_size / 1e6:.2f} MB")
    print(f"To use it: jupyter lab {os.path.relpath(asked.output)}")
    return 0


def setup(app: Sphinx) -> dict[str, bool]:
    """Write after Sphinx-Gallery (priority 500) and before pages are read."""
    app.connect("builder-inited", write_all, priority=900)
    app.connect("build-finished", publish, priority=800)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
