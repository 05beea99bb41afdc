"""The pack for a GPU host without a network: what goes in, and that it unpacks where it may and says no elsewhere."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACK = ROOT / "docs" / "offline" / "pack.py"
HERE = f"{sys.version_info[0]}.{sys.version_info[1]}"


def a_wheel(folder, name, files, *, tag="py3-none-any", scripts=""):
    """Write a small wheel: a zip archive with this text in its files."""
    folder.mkdir(exist_ok=True)
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(folder / f"{name}-1.0-{tag}.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
        archive.writestr(f"{info}/RECORD", "")
        if scripts:
            archive.writestr(f"{info}/entry_points.txt", f"[console_scripts]\n{scripts}\n")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A small checkout under git with the packer in it, and an index of two packages that needs no network."""
    folder = tmp_path / "checkout"
    (folder / "docs" / "offline").mkdir(parents=True)
    for name in ("pack.py", "unpack.py"):
        shutil.copy2(PACK.with_name(name), folder / "docs" / "offline" / name)
    (folder / "pyproject.toml").write_text('[project]\nversion = "0.1.0"\n')
    (folder / "tutorial_src" / "handson").mkdir(parents=True)
    (folder / "tutorial_src" / "handson" / "__init__.py").write_text("WHERE = __file__\n")
    (folder / "requirements.txt").write_text(
        "torch>=2.11,<2.14  # the host's\ncolossalai-like==1.0\ngpu-part==1.0\n# --- tests ---\npytest==9.2.0\n"
    )
    subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    subprocess.run(["git", "add", "."], cwd=folder, check=True)
    (folder / "untracked.txt").write_text("a secret")
    index = tmp_path / "index"
    a_wheel(
        index,
        "colossalai_like",
        {
            "colossalai/__init__.py": "__version__ = 'of the pack'\n\ndef main():\n    print('started')\n",
            "numpy/tests/test_x.py": "1 / 0\n",
        },
        scripts="colossalai = colossalai:main",
    )
    tag = f"cp{HERE.replace('.', '')}-cp{HERE.replace('.', '')}-manylinux_2_17_x86_64"
    parts = {
        "bitsandbytes/__init__.py": "",
        "bitsandbytes/libbitsandbytes_cpu.so": "kept",
        "bitsandbytes/libbitsandbytes_cuda130.so": "left out",
        "pulp/solverdir/cbc/linux/i64/cbc": "kept",
        "pulp/solverdir/cbc/win/i64/cbc.exe": "left out",
        "gpu_part-1.0.data/platlib/gpu_part.py": "",
        "gpu_part-1.0.data/scripts/gpu": "left out",
    }
    a_wheel(index, "gpu_part", parts, tag=tag)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    return folder


def pack(checkout, *arguments):
    command = [sys.executable, str(checkout / "docs" / "offline" / "pack.py"), f"--python={HERE}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture
def packed(checkout):
    """The folder to be copied to the host."""
    done = pack(checkout)
    assert done.returncode == 0, done.stderr
    return checkout / "build" / "offline"


def test_it_holds_the_packages_without_what_no_lesson_loads_and_what_git_tracks(packed):
    manifest = json.loads((packed / "manifest.json").read_text())
    with tarfile.open(packed / manifest["archive"]) as archive:
        held = set(archive.getnames())
    assert {name for name in held if not name.endswith(("METADATA", "WHEEL", "RECORD", "entry_points.txt"))} == {
        "packages/colossalai/__init__.py",
        "packages/bitsandbytes/__init__.py",
        "packages/bitsandbytes/libbitsandbytes_cpu.so",
        "packages/pulp/solverdir/cbc/linux/i64/cbc",
        "packages/gpu_part.py",
        "checkout/pyproject.toml",
        "checkout/requirements.txt",
        "checkout/tutorial_src/handson/__init__.py",
        "checkout/docs/offline/pack.py",
        "checkout/docs/offline/unpack.py",
    }
    assert manifest["files"] == len(held) and manifest["programs"] == {"colossalai": "colossalai:main"}
    readme = (packed / "README.txt").read_text()
    assert f"Python {HERE} with PyTorch (>=2.11,<2.14)" in readme and "python unpack.py" in readme


def test_what_the_host_has_itself_stays_out_and_is_looked_for_there(checkout, tmp_path):
    assert pack(checkout, "--without=GPU_part").returncode == 0
    packed = checkout / "build" / "offline"
    manifest = json.loads((packed / "manifest.json").read_text())
    with tarfile.open(packed / manifest["archive"]) as archive:
        assert "packages/gpu_part.py" not in archive.getnames()
    refused = unpack(packed, str(tmp_path / "host"))
    assert refused.returncode == 2
    assert "this pack leaves GPU_part to the host, and this Python has none: pack it too" in refused.stderr
    (packed / "manifest.json").write_text(json.dumps(manifest | {"without": ["pytest"]}))
    assert unpack(packed, str(tmp_path / "host"), PYTHONPATH="").returncode == 0
    done = pack(checkout, "--without=numpi")
    assert done.returncode == 1 and done.stderr.startswith("error: --without numpi: requirements.txt has no such")


def unpack(packed, *arguments, python=(sys.executable,), **environment):
    command = [*python, str(packed / "unpack.py"), *arguments]
    return subprocess.run(
        command, cwd=packed.parent, env=os.environ | environment, capture_output=True, text=True, timeout=120
    )


def test_what_it_unpacks_wins_over_what_the_host_has(packed, tmp_path):
    target = tmp_path / "with space" / "host"
    done = unpack(packed, str(target), PYTHONPATH="")
    assert done.returncode == 0, done.stderr
    assert "Colossal-AI of the pack" in done.stdout and f". {target}/activate" in done.stdout
    words = f". '{target}/activate' && python -c 'import handson, gpu_part; print(handson.WHERE)' && colossalai"
    said = subprocess.run(["bash", "-ec", words], capture_output=True, text=True, timeout=60)
    assert said.stdout.splitlines() == [f"{target}/checkout/tutorial_src/handson/__init__.py", "started"], said.stderr


def test_it_says_so_where_the_imports_fail(checkout, tmp_path):
    kit = checkout / "tutorial_src" / "handson" / "__init__.py"
    kit.write_text("import no_such_package\n")
    assert pack(checkout).returncode == 0
    failed = unpack(checkout / "build" / "offline", str(tmp_path / "host"), PYTHONPATH="")
    assert failed.returncode == 1 and "No module named 'no_such_package'" in failed.stderr
    assert failed.stderr.splitlines()[-1].startswith("error: the imports failed: the lines above say why")


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"python": "3.9"}, "this pack is for Python 3.9, and this is"),
        ({"machine": "riscv64"}, "this pack is for Linux on riscv64"),
        ({"sha256": "0" * 64}, "is damaged: copy it again"),
        ({"archive": "gone.tar.xz"}, "gone.tar.xz does not lie beside unpack.py"),
    ],
)
def test_a_host_that_cannot_use_it_is_told_why_in_one_sentence(packed, tmp_path, changed, said):
    manifest = packed / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | changed))
    refused = unpack(packed, str(tmp_path / "host"))
    assert refused.returncode == 2 and not (tmp_path / "host").exists()
    assert refused.stderr.startswith("error: ") and said in refused.stderr and len(refused.stderr.splitlines()) == 1


def test_it_overwrites_nothing(packed, tmp_path):
    (tmp_path / "host").mkdir()
    (tmp_path / "host" / "results.txt").write_text("mine")
    refused = unpack(packed, str(tmp_path / "host"))
    assert refused.returncode == 2 and "is there and not empty" in refused.stderr
    assert (tmp_path / "host" / "results.txt").read_text() == "mine"


def test_a_python_without_pytorch_is_refused(packed, tmp_path):
    refused = unpack(packed, str(tmp_path / "host"), python=(sys.executable, "-S", "-E"))
    assert refused.returncode == 2 and "this Python has no PyTorch" in refused.stderr


def test_a_package_that_cannot_be_had_is_one_sentence_after_pips_own(checkout):
    requirements = checkout / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("gpu-part==1.0", "gpu-part==2.0"))
    done = pack(checkout)
    assert done.returncode == 1 and not (checkout / "build" / "offline").exists()
    assert done.stderr.splitlines()[-1].startswith("error: pip could not download what the pack needs")
    assert "gpu-part==2.0" in done.stderr and "Traceback" not in done.stderr


def test_a_folder_with_something_else_is_left_alone(checkout, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    done = pack(checkout, f"--output={tmp_path / 'mine'}")
    assert done.returncode == 2 and "holds something else" in done.stderr
    assert (tmp_path / "mine" / "notes.txt").exists()


def test_every_package_without_a_wheel_is_pinned(monkeypatch):
    monkeypatch.syspath_prepend(str(PACK.parent))
    import pack as packer

    wanted = packer.pins((ROOT / "requirements.txt").read_text())
    names = {pin.partition("==")[0].lower() for pin in wanted}
    assert names >= packer.WITHOUT_WHEEL | {"transformers", "sphinx", "pulp"}
    assert not names & {"torch", "pytest", "playwright"}
