"""Pack what a GPU host without a network needs: `python docs/offline/pack.py [--python=3.12] [--without=numpy,scipy]`.

`nox -s offline_site` calls this. The folder that it makes holds an archive (every package of requirements.txt but
PyTorch, unzipped, and this checkout), `unpack.py`, `manifest.json` and `README.txt`: copy it to the host and call
`unpack.py` there.

Packages are unzipped, not installed: pip refuses wheels of another Python, and a host may forbid pip. A folder that is
first on PYTHONPATH wins over the host's own, perhaps newer, packages.
"""

from __future__ import annotations

import argparse
import configparser
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[2]
MACHINE = "x86_64"
PLATFORMS = [f"manylinux_2_{minor}_{MACHINE}" for minor in (28, 27, 26, 24, 17, 12, 5)] + [f"manylinux2014_{MACHINE}"]
# These publish no wheel; all are pure Python, which is checked when they are built.
WITHOUT_WHEEL = {"colossalai", "titans", "contexttimer"}
# Parts that no lesson loads: CUDA kernels that bitsandbytes brings for each version of CUDA, solvers for other systems.
LEFT_OUT = re.compile(
    r"bitsandbytes/libbitsandbytes_(?!cpu)\w+\.so$"
    r"|pulp/solverdir/cbc/(?!linux/i64/)"
    r"|(numpy|scipy|sklearn|matplotlib|networkx|sympy)/(.*/)?tests/"
)
PROGRAMS = ("colossalai",)
README = """Colossal-AI Tutorial Hands-on, for a host without a network
===========================================================

For Python {python} with PyTorch ({torch}), on Linux, {machine}. Copy this folder to the host, then:

    python unpack.py colossalai-handson
    . colossalai-handson/activate
    cd colossalai-handson/checkout
    python -m handson doctor

`python -m handson record all` executes the lessons and writes docs/recordings/: bring that folder back.
`python docs/build.py` builds the site on the host itself, in build/html.
"""


class PackError(RuntimeError):
    """The pack cannot be made; the text says why in one sentence."""


def pins(listed: str, without: Sequence[str] = ()) -> list[str]:
    """The requirements without PyTorch and the packages `without`, which the host has, and what only the tests use.

    Raises:
        PackError: when one of `without` is not among them.
    """
    used, found, _ = listed.partition("# --- tests")
    if not found:
        raise PackError("requirements.txt has no section `# --- tests` any more")
    lines = [line.partition("#")[0].strip() for line in used.splitlines()]
    wanted = {plain(line.partition("==")[0]): line for line in lines if line and not re.match(r"torch\W", line)}
    for name in without:
        if wanted.pop(plain(name), None) is None:
            raise PackError(f"--without {name}: requirements.txt has no such package for the site")
    return list(wanted.values())


def plain(name: str) -> str:
    """A package's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(wanted: list[str], python: str, folder: Path) -> list[Path]:
    """Download a wheel for each pin, or build it where its project publishes none; return the wheels."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    built = [pin for pin in wanted if pin.partition("==")[0].lower() in WITHOUT_WHEEL]
    ready = [pin for pin in wanted if pin not in built]
    target = ["--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    target += [word for name in PLATFORMS for word in ("--platform", name)]
    for words in (
        ["download", "--no-deps", "--quiet", *target, "--dest", str(folder), *ready],
        ["wheel", "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder), *built],
    ):
        if words[-1] != str(folder) and subprocess.run([*pip, *words]).returncode:
            raise PackError(f"pip could not {words[0]} what the pack needs: its own lines above name the package")
    wheels = sorted(folder.glob("*.whl"))
    names = {plain(pin.partition("==")[0]) for pin in built}
    for wheel in wheels:
        if plain(wheel.name.partition("-")[0]) in names and "-none-any" not in wheel.name:
            raise PackError(
                f"{wheel.name} was built for this machine alone: the pack needs a wheel for Python {python}"
            )
    return wheels


def place(member: str) -> str | None:
    """Where a wheel's file goes among the packages, or nothing for one that is left out."""
    if member.endswith("/"):
        return None
    parts = PurePosixPath(member).parts
    if parts[0].endswith(".data"):
        if parts[1] not in ("purelib", "platlib"):
            return None
        parts = parts[2:]
    name = "/".join(parts)
    return None if LEFT_OUT.search(name) else name


def unzip(wheels: list[Path], packages: Path) -> dict[str, str]:
    """Lay the wheels out in one folder; return the programs that the reader calls: name -> module:function."""
    programs = {}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for member in archive.infolist():
                if name := place(member.filename):
                    path = packages / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(archive.read(member))
                if member.filename.endswith(".dist-info/entry_points.txt"):
                    entries = configparser.ConfigParser(delimiters="=")
                    entries.read_string(archive.read(member).decode())
                    if entries.has_section("console_scripts"):
                        programs |= dict(entries["console_scripts"])
    return {name: programs[name] for name in PROGRAMS if name in programs}


def copy_checkout(target: Path) -> None:
    """Copy what git tracks, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        raise PackError("git could not list the files of this checkout: pack from a clone")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def pack(python: str, output: Path, requirements: str, without: Sequence[str] = ()) -> dict:
    """Make the folder; return its manifest."""
    version = re.search(r'^version = "([^"]+)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
    archive = f"colossalai-handson-{version[1] if version else 'dev'}-cp{python.replace('.', '')}.tar.xz"
    with tempfile.TemporaryDirectory(prefix="offline-") as name:
        work = Path(name)
        wheels = fetch(pins(requirements, without), python, work / "wheels")
        programs = unzip(wheels, work / "tree" / "packages")
        copy_checkout(work / "tree" / "checkout")
        files = sorted(path for path in (work / "tree").rglob("*") if path.is_file())
        if output.exists():
            shutil.rmtree(output)
        output.mkdir(parents=True)
        # Preset 3: a tenth larger than the best, in a fifth of the time.
        with tarfile.open(output / archive, "w:xz", preset=3) as packed:
            for path in files:
                packed.add(path, path.relative_to(work / "tree").as_posix())
        size = sum(path.stat().st_size for path in files)
    with (output / archive).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    torch = re.search(r"^torch([^\s#]+)", requirements, re.M)
    made = {
        "archive": archive,
        "sha256": digest,
        "python": python,
        "machine": MACHINE,
        "files": len(files),
        "bytes": size,
        "programs": programs,
        "without": list(without),
        "wheels": [wheel.name for wheel in wheels],
    }
    (output / "manifest.json").write_text(json.dumps(made, indent=1) + "\n")
    (output / "README.txt").write_text(
        README.format(python=python, torch=torch[1] if torch else "any", machine=MACHINE), encoding="utf-8"
    )
    shutil.copy2(Path(__file__).with_name("unpack.py"), output / "unpack.py")
    return made


def main(arguments: list[str]) -> int:
    """Pack, and say what was made."""
    parser = argparse.ArgumentParser(prog="nox -s offline_site --", description=main.__doc__)
    parser.add_argument("--python", default="3.12", choices=("3.11", "3.12"), help="the host's Python")
    parser.add_argument("--without", default="", metavar="NAME,NAME", help="packages that the host has itself")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "offline", help="an empty or new folder")
    parser.add_argument("--requirements", type=Path, default=ROOT / "requirements.txt")
    asked = parser.parse_args(arguments)
    ours = asked.output / "manifest.json"
    if asked.output.exists() and any(asked.output.iterdir()) and not ours.is_file():
        print(f"error: {asked.output} holds something else: name a new folder by --output", file=sys.stderr)
        return 2
    began = time.monotonic()
    try:
        without = [name.strip() for name in asked.without.split(",") if name.strip()]
        made = pack(asked.python, asked.output, asked.requirements.read_text(encoding="utf-8"), without)
    except PackError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = (asked.output / made["archive"]).stat().st_size
    print(
        f"{asked.output}: {len(made['wheels'])} packages and the checkout, {size / 1e6:.0f} MB "
        f"({made['bytes'] / 1e6:.0f} MB unpacked), in {time.monotonic() - began:.0f} s"
    )
    print("Copy this folder to the host and call `python unpack.py` there; README.txt says the rest.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
