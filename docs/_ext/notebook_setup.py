"""The first cells of notebook.ipynb: the kit and the training scripts, packed, and the installation of the rest."""

from __future__ import annotations

import base64
import functools
import json
import lzma
import re
import textwrap
from pathlib import Path

from lesson_cells import Cell, code_cell, text_cell

FOLDER = "colossalai_handson/sources"
UNPACK = '''
# The kit and the training scripts, packed: {count} files, the same as in the wheel of the site.
import base64
import json
import lzma
import os
import sys
from pathlib import Path

if not (3, 11) <= sys.version_info[:2] <= (3, 12):
    raise RuntimeError(f"Python 3.11 or 3.12 is needed; this kernel is {{sys.version_info[0]}}.{{sys.version_info[1]}}")
PACKED = """
{packed}
"""
SOURCES = Path("{folder}").resolve()
for name, text in json.loads(lzma.decompress(base64.b64decode(PACKED))).items():
    path = SOURCES / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
if str(SOURCES) not in sys.path:
    sys.path.insert(0, str(SOURCES))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCES), os.environ.get("PYTHONPATH")]))
print("unpacked into {folder}")
'''
INSTALL = """
import importlib

if importlib.util.find_spec("torch") is None:
    %pip install --quiet "torch{torch}"
if importlib.util.find_spec("colossalai") is None:
    !"{{sys.executable}}" -m handson install
importlib.invalidate_caches()
missing = [name for name in ("torch", "colossalai") if importlib.util.find_spec(name) is None]
if missing:
    raise RuntimeError(f"{{' and '.join(missing)}} could not be installed: the lines above say why")

from handson import provenance

versions = provenance.versions()
print(f"PyTorch {{versions['torch']}}, Colossal-AI {{versions['colossalai']}}, {{len(provenance.gpus())}} GPUs")
"""


def sources(root: Path) -> dict[str, str]:
    """The kit and the training scripts: name relative to tutorial_src/ -> text.

    Raises:
        ValueError: naming a file that is no text.
    """
    found = {}
    folder = root / "tutorial_src"
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and path.suffix != ".png" and not any(part[0] in "._" for part in name.parts[:-1]):
            try:
                found[name.as_posix()] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"tutorial_src/{name} is no text: the notebook could not hold it") from None
    return found | {"handson/requirements.txt": (root / "requirements.txt").read_text(encoding="utf-8")}


def pack(files: dict[str, str]) -> str:
    """Files as lines of text: JSON, compressed, in base 64."""
    return _packed(json.dumps(files, sort_keys=True))


@functools.lru_cache(1)
def _packed(text: str) -> str:
    return "\n".join(textwrap.wrap(base64.b64encode(lzma.compress(text.encode())).decode(), 120))


def setup_cells(packed: dict[str, str]) -> list[Cell]:
    """Cells that unpack these files and install what they need.

    Raises:
        ValueError: when requirements.txt does not say which PyTorch.
    """
    torch = re.search(r"^torch([^\s#]+)", packed["handson/requirements.txt"], re.M)
    if torch is None:
        raise ValueError("requirements.txt names no torch")
    return [
        text_cell("## Setup\n\nThe next cell holds the kit and the training scripts, packed, and writes them out."),
        code_cell(UNPACK.format(count=len(packed), packed=pack(packed), folder=FOLDER), folded=True),
        text_cell("The next one installs PyTorch and Colossal-AI where they are missing. That takes minutes, once."),
        code_cell(INSTALL.format(torch=torch[1])),
    ]
