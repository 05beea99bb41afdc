"""Unpack the tutorial on a host without a network: `python unpack.py [FOLDER]`.

Needs the Python that the pack was made for, with PyTorch, and nothing else. Writes into FOLDER (colossalai-handson,
here, by default), tries the imports, and says what to type next.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import platform
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECK = (
    "import torch, handson, colossalai; print('PyTorch', torch.__version__, '· Colossal-AI', colossalai.__version__)"
)
ACTIVATE = """# . {folder}/activate
export PYTHONPATH={packages}:{kit}${{PYTHONPATH:+:$PYTHONPATH}}
export PATH={programs}:$PATH
"""
PROGRAM = """#!{python}
import sys
from {module} import {function}
sys.exit({function}())
"""


def refusal(manifest: dict, target: Path) -> str | None:
    """Why this host cannot use the pack, in one sentence."""
    here = f"{sys.version_info[0]}.{sys.version_info[1]}"
    if here != manifest["python"]:
        return (
            f"this pack is for Python {manifest['python']}, and this is {here}: call that Python, or pack for this one"
        )
    if (sys.platform, platform.machine()) != ("linux", manifest["machine"]):
        return f"this pack is for Linux on {manifest['machine']}, and this is {sys.platform} on {platform.machine()}"
    if importlib.util.find_spec("torch") is None:
        return "this Python has no PyTorch, which the pack leaves to the host: call the Python that has it"
    for name in manifest["without"]:
        try:
            importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return f"this pack leaves {name} to the host, and this Python has none: pack it too, or install it"
    if target.exists() and any(target.iterdir()):
        return f"{target} is there and not empty: name another folder"
    packed = HERE / manifest["archive"]
    if not packed.is_file():
        return f"{packed.name} does not lie beside unpack.py: copy the whole folder"
    with packed.open("rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != manifest["sha256"]:
            return f"{packed.name} is damaged: copy it again"
    return None


def main(arguments: list[str]) -> int:
    """Unpack, write `activate`, and try the imports."""
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        print("error: unpack.py takes one folder, or nothing", file=sys.stderr)
        return 2
    target = Path(*arguments or ["colossalai-handson"]).resolve()
    manifest = json.loads((HERE / "manifest.json").read_text())
    if reason := refusal(manifest, target):
        print(f"error: {reason}", file=sys.stderr)
        return 2
    print(f"unpacking {manifest['files']} files, {manifest['bytes'] / 1e6:.0f} MB, into {target}", flush=True)
    with tarfile.open(HERE / manifest["archive"]) as archive:
        # Older 3.11 has no filters; what is in the archive is checked by its digest.
        archive.extractall(target, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    packages, kit, programs = target / "packages", target / "checkout" / "tutorial_src", target / "bin"
    programs.mkdir()
    for name, entry in manifest["programs"].items():
        module, _, function = entry.partition(":")
        (programs / name).write_text(PROGRAM.format(python=sys.executable, module=module, function=function))
        (programs / name).chmod(0o755)
    words = {"folder": target, "packages": packages, "kit": kit, "programs": programs}
    (target / "activate").write_text(ACTIVATE.format(**{name: shlex.quote(str(path)) for name, path in words.items()}))
    print("trying the imports; the first time takes a while", flush=True)
    tried = subprocess.run(
        [
            "bash",
            "-c",
            f". {shlex.quote(str(target / 'activate'))} && {shlex.quote(sys.executable)} -c {shlex.quote(CHECK)}",
        ],
        cwd=target,
    )
    if tried.returncode:
        print("error: the imports failed: the lines above say why; the files stay for a closer look", file=sys.stderr)
        return 1
    print(
        f"\nReady. Next:\n  . {target / 'activate'}\n  cd {target / 'checkout'}\n  python -m handson doctor\n"
        "  python -m handson record all --resume     # then bring docs/recordings/ back\n"
        "  python docs/build.py                      # the site, in build/html"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
