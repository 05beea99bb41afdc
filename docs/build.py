"""Build the site: `python docs/build.py [--runs=auto|live|recorded]`.

`nox -s build_docs` calls this after it has prepared the environment. A host that already has what is needed (an
offline GPU host, say) can call it directly.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path("build", "html")
WAYS = ("auto", "live", "recorded")


def main(arguments: list[str]) -> int:
    """Run Sphinx with every warning an error; say where the page is and how long it took."""
    way = os.environ.get("HANDSON_RUNS") or "auto"
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name != "--runs":
            print(f"error: {argument} is no option of build_docs: it takes --runs=auto|live|recorded", file=sys.stderr)
            return 2
        way = value
    if way not in WAYS:
        print(f"error: --runs={way} is no way to get runs: use {', '.join(WAYS)}", file=sys.stderr)
        return 2

    if importlib.util.find_spec("sphinx") is None:
        print("error: this Python has no Sphinx: build with nox -s build_docs, or .venv/bin/python", file=sys.stderr)
        return 2

    began = time.monotonic()
    environment = os.environ | {"HANDSON_RUNS": way, "MPLBACKEND": "Agg"}
    options = "-m sphinx -W --keep-going -c . -d build/doctrees docs"
    process = subprocess.Popen([sys.executable, *options.split(), str(SITE)], cwd=ROOT, env=environment)
    try:
        failed = process.wait()
    except KeyboardInterrupt:
        # Sphinx got the same signal. Killing it now would leave the ranks that it is about to end.
        failed = process.wait() and 130
    took = f"{time.monotonic() - began:.1f} s"
    if failed == 130:
        print(f"\nThe build was interrupted after {took}.", file=sys.stderr)
        return failed
    if failed:
        # Else the next build would not read the pages with warnings again, and pass.
        shutil.rmtree(ROOT / "build" / "doctrees", ignore_errors=True)
        print(f"\nThe build failed after {took}; the lines above say where.", file=sys.stderr)
        return failed
    print(f"\nThe site was built in {took}, runs: {way}.")
    print(f"Open {SITE / 'index.html'} in a browser, or serve it: python3 -m http.server --directory {SITE}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
