"""notebook.ipynb, the whole tutorial in one file: what is in it, and that it runs where there is no checkout."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from handson import store

ROOT = Path(__file__).parent.parent
PROGRAM = ROOT / "docs" / "_ext" / "notebooks.py"
SHORT = ("multi_dimensional/plot_components", "multi_dimensional/plot_data_and_pipeline")


@pytest.fixture
def notebooks(monkeypatch):
    """The extension that writes the notebooks."""
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import notebooks

    return notebooks


@pytest.fixture
def alone(monkeypatch):
    """As a reader's computer is: no checkout on the path, no GPU, no store that a variable names."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.delenv("HANDSON_BUILD")
    monkeypatch.delenv("HANDSON_RECORDINGS")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def source(cell):
    return "".join(cell["source"])


def of_kind(notebook, kind):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_it_is_a_valid_notebook_that_holds_every_lesson_in_reading_order(notebooks):
    import nbformat

    whole = notebooks.whole()
    nbformat.validate(whole)
    held = list(dict.fromkeys(cell["metadata"].get("handson") for cell in whole["cells"]))
    assert held[0] is None and len(held) == 1 + len(list(ROOT.glob("gallery/*/plot_*.py")))
    assert held[1] == "multi_dimensional/plot_components"


def test_every_code_cell_compiles(notebooks):
    from IPython.core.inputtransformer2 import TransformerManager

    for cell in of_kind(notebooks.whole(), "code"):
        text = source(cell)
        magic, _, body = text.partition("\n") if text.startswith("%%writefile") else ("", "", text)
        if not magic or magic.endswith(".py"):
            compile(TransformerManager().transform_cell(body), cell["id"], "exec")


def test_no_text_is_left_in_the_language_of_sphinx(notebooks):
    base = "https://example.org/site/"
    texts = [source(cell) for cell in of_kind(notebooks.whole(base), "markdown")]
    for lesson in notebooks.lessons():
        texts += [source(cell) for cell in of_kind(notebooks.of_lesson(lesson, base, "kit.whl"), "markdown")]
    for text in texts:
        prose = re.sub(r"```.*?```|``[^`]+``", "", text, flags=re.S)
        assert not re.search(r":[a-z:]+:`|^\.\. \w|`_\b|^[=\-~]{4,}$", prose, re.M), prose


def test_every_link_within_it_leads_to_a_heading(notebooks):
    texts = [source(cell) for cell in of_kind(notebooks.whole(), "markdown")]
    headings = {found.replace(" ", "-") for text in texts for found in re.findall(r"^#+ (.+)$", text, re.M)}
    wanted = {target for text in texts for target in re.findall(r"\]\(#([^)\s]+)\)", text)}
    assert len(wanted) >= 15 and wanted <= headings, wanted - headings


def test_what_a_page_hides_is_folded_and_not_lost(notebooks):
    lesson = next(path for path in notebooks.lessons() if path.stem == "plot_memory_budget")
    cells = of_kind(notebooks.of_lesson(lesson, "", "kit.whl"), "code")
    (answer,) = [cell for cell in cells if "show.answer(" in source(cell)]
    assert answer["metadata"]["jupyter"]["source_hidden"] and "sphinx_gallery" not in "".join(map(source, cells))


def test_a_lessons_notebook_says_what_to_install_and_from_where(notebooks):
    lesson = notebooks.lessons()[0]
    title, first = of_kind(notebooks.of_lesson(lesson, "https://example.org/site/", "kit-1.whl"), "markdown")[:2]
    assert source(title).startswith("# Components of Colossal-AI")
    assert "pip install https://example.org/site/kit-1.whl\npython -m handson install" in source(first)
    assert "pip install ./kit-1.whl" in source(notebooks.of_lesson(lesson, "", "kit-1.whl")["cells"][1])


@pytest.mark.ranks
def test_it_runs_in_an_empty_folder_without_the_checkout(notebooks, alone, tmp_path):
    notebook, sources = notebooks.whole(only=SHORT), notebooks.sources(ROOT)
    asked = [cell["id"] for cell in notebook["cells"]]
    notebook["cells"].append({"id": "where", **notebooks.code_cell("import handson\nprint(handson.__file__)")})
    folder = tmp_path / "empty"
    folder.mkdir()
    ran = notebooks.execute(notebook, folder, lambda line: None)

    assert [cell["id"] for cell in ran["cells"]] == [*asked, "where"]
    unpacked = folder / "colossalai_handson" / "sources"
    assert text_of_output(ran["cells"][-1]).strip() == str(unpacked / "handson" / "__init__.py")
    for name, text in sources.items():
        assert (unpacked / name).read_text(encoding="utf-8") == text, name
    outputs = [output for cell in of_kind(ran, "code") for output in cell["outputs"]]
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 5 and shown.count("text/html") >= 12
    # The very runs that the site would show: what is packed gives the same keys as the checkout.
    runs = [store.load(path)[0] for path in (folder / ".handson").rglob("runs/**/*.json")]
    assert len(runs) >= 5 and {run.preset for run in runs} == {"laptop"}
    for run in runs:
        assert run.error is None and store.Request.again(run).key == run.key


def text_of_output(cell):
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_a_cell_that_fails_is_named_with_its_lesson_and_nothing_is_written(notebooks, tmp_path, monkeypatch, capsys):
    failing = notebooks.numbered([notebooks.text_cell("# x"), notebooks.code_cell("missing_name")])
    failing["cells"][1]["metadata"]["handson"] = "topic/plot_x"
    monkeypatch.setattr(notebooks, "whole", lambda *a, **k: failing)
    output = tmp_path / "notebook.ipynb"
    output.write_text("as it was")
    assert notebooks.main(["--execute", "--output", str(output)]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: topic/plot_x failed in the cell cell-1") and "missing_name" in said
    assert output.read_text() == "as it was"


def test_an_unknown_lesson_is_refused_in_one_sentence(tmp_path):
    command = [sys.executable, str(PROGRAM), "--lesson", "topic/plot_nothing"]
    refused = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=dict(os.environ), timeout=60)
    assert refused.returncode == 2 and not list(tmp_path.glob("*.ipynb"))
    assert refused.stderr.startswith("error: there is no lesson topic/plot_nothing; there are multi_dimensional/")


def test_it_is_written_to_the_current_folder(tmp_path):
    command = [sys.executable, str(PROGRAM), "--lesson", SHORT[0]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "notebook.ipynb").read_text())["nbformat"] == 4
