"""What a reader takes along: a lesson's script or notebook runs where only the site's wheel was installed."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.timeout(400)
ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def extensions():
    """The site's extensions that make the downloads."""
    sys.path.insert(0, str(ROOT / "docs" / "_ext"))
    import kit_wheel
    import notebooks

    yield SimpleNamespace(kit_wheel=kit_wheel, notebooks=notebooks)
    sys.path.remove(str(ROOT / "docs" / "_ext"))


@pytest.fixture(scope="module")
def wheel(extensions, tmp_path_factory):
    """The wheel as the site builds it."""
    folder = tmp_path_factory.mktemp("wheel")
    return extensions.kit_wheel.make(ROOT, folder)


def clean():
    """This environment without anything that leads to the checkout."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HANDSON", "PYTHON"))}
    return kept | {"CUDA_VISIBLE_DEVICES": "", "PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def reader(wheel, tmp_path_factory):
    """An empty folder and a fresh environment with what the wheel's page says to type.

    The packages of this environment are lent to the fresh one by a path file, so that torch is not downloaded again.
    Such a file lends packages but follows no path files of theirs: an editable checkout is not lent.
    """
    folder = tmp_path_factory.mktemp("reader")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(environment)], check=True)
    python = environment / "bin" / "python"
    packages = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    )
    (Path(packages.stdout.strip()) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")

    def run(*words, timeout=300):
        return subprocess.run(
            [str(python), *words], cwd=folder, env=clean(), capture_output=True, text=True, timeout=timeout
        )

    # The build of an editable checkout leaves the wheel's data beside it: a folder of that name, without the kit.
    before = run("-m", "handson", "--help")
    assert before.returncode != 0 and "No module named handson" in before.stderr
    installed = run("-m", "pip", "install", str(wheel))
    assert installed.returncode == 0, installed.stderr
    return SimpleNamespace(folder=folder, run=run)


def runs(folder):
    """What the kit kept of the jobs that ran in a folder."""
    return [json.loads(path.read_text()) for path in sorted((folder / ".handson" / "runs").rglob("*.json"))]


def test_the_wheel_holds_every_training_script_and_the_pins(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    scripts = {
        f"handson/tutorial/{path.relative_to(ROOT / 'tutorial_src').as_posix()}"
        for path in ROOT.glob("tutorial_src/*/**/*.py")
        if "handson" not in path.relative_to(ROOT / "tutorial_src").parts
    }
    assert len(scripts) > 80 and scripts <= held, scripts - held
    assert "handson/requirements.txt" in held


def test_the_wheel_asks_for_nothing_that_pip_could_not_install_together(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    wanted = [line for line in metadata.splitlines() if line.startswith("Requires-Dist: ")]
    assert any("torch" in line for line in wanted) and not any("colossalai" in line for line in wanted)


def test_the_wheel_is_built_again_only_when_its_contents_changed(extensions, wheel, tmp_path):
    again = extensions.kit_wheel.make(ROOT, wheel.parent)
    assert again == wheel and again.stat().st_mtime_ns == wheel.stat().st_mtime_ns


def test_install_adds_what_the_wheel_cannot_ask_for(reader):
    done = reader.run("-m", "handson", "install")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "colossalai==0.5.0" in done.stdout and "sphinx" not in done.stdout.lower()


@pytest.mark.ranks
def test_a_downloaded_script_runs_in_an_empty_folder(reader):
    lesson = reader.folder / "plot_data_and_pipeline.py"
    lesson.write_text((ROOT / "gallery" / "multi_dimensional" / lesson.name).read_text())
    done = reader.run(lesson.name)
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(ROOT) not in done.stdout + done.stderr
    made = runs(reader.folder)
    assert {run["ranks"] for run in made} >= {1, 2, 4} and all(run["error"] is None for run in made)
    # The wheel's copies of the scripts give the same keys as the checkout's.
    from handson import store

    assert all(store.Request.again(run).key == run["key"] for run in made)
    pictures = sorted(reader.folder.glob("data_and_pipeline_*.png"))
    assert len(pictures) >= 5 and all(picture.read_bytes().startswith(b"\x89PNG") for picture in pictures)
    assert "1F1B" in done.stdout and "Where these numbers come from" in done.stdout


def test_a_downloaded_notebook_runs_in_an_empty_folder(reader, extensions):
    lesson = ROOT / "gallery" / "multi_dimensional" / "plot_components.py"
    notebook = extensions.notebooks.of_lesson(lesson, "", "colossalai_handson.whl")
    where = extensions.notebooks.code_cell("import handson\nprint(handson.__file__)")
    notebook["cells"].append({"id": "where", **where})
    path = reader.folder / "plot_components.ipynb"
    path.write_text(extensions.notebooks.text_of(notebook))
    done = reader.run("-c", "from nbclient.cli import main; main()", "--inplace", path.name)
    assert done.returncode == 0, done.stderr[-3000:]
    cells = json.loads(path.read_text())["cells"]
    assert "".join(cells[-1]["outputs"][0]["text"]).startswith(str(reader.folder / "environment"))
    shown = [kind for cell in cells for output in cell.get("outputs", ()) for kind in output.get("data", {})]
    assert shown.count("text/html") >= 6


def test_a_script_without_colossalai_says_how_to_install_it(wheel, tmp_path):
    """The wheel alone, without the second line: one sentence, no traceback of an import."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    done = subprocess.run(
        [str(tmp_path / "bare" / "bin" / "python"), "-m", "handson", "install"],
        cwd=tmp_path,
        env=clean() | {"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: install PyTorch first") and len(done.stderr.splitlines()) == 1
