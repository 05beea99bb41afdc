"""Build the site, or ask every link of it: `python docs/build.py [--runs=auto|live|recorded] [--links]`.

`nox -s build_docs` and `nox -s linkcheck` call this after they have prepared the environment. A host that already has
what is needed (an offline GPU host, say) can call it directly.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SITE = Path("build", "html")
LINKS = Path("build", "linkcheck")
WAYS = ("auto", "live", "recorded")
# A slow host is asked again; one that answers with "too many requests" is waited for. Addresses of a preview and files
# that lie beside the pages are not links to elsewhere.
LINK_OPTIONS = {
    "linkcheck_timeout": "20",
    "linkcheck_retries": "3",
    "linkcheck_workers": "4",
    "linkcheck_rate_limit_timeout": "60",
    "linkcheck_anchors": "0",
    "linkcheck_ignore": r"https?://(localhost|127\.0\.0\.1)[:/].*,[\w./-]+\.(ipynb|whl|json|py|html)(#.*)?$",
}


def main(arguments: list[str]) -> int:
    """Run Sphinx with every warning an error; say where the page is and how long it took."""
    way, links = os.environ.get("HANDSON_RUNS") or "auto", False
    for argument in arguments:
        name, _, value = argument.partition("=")
        if argument == "--links":
            links = True
        elif name == "--runs":
            way = value
        else:
            print(f"error: {argument} is no option of build_docs: it takes --runs=auto|live|recorded", file=sys.stderr)
            return 2
    if way not in WAYS:
        print(f"error: --runs={way} is no way to get runs: use {', '.join(WAYS)}", file=sys.stderr)
        return 2

    if importlib.util.find_spec("sphinx") is None:
        print("error: this Python has no Sphinx: build with nox -s build_docs, or .venv/bin/python", file=sys.stderr)
        return 2

    began = time.monotonic()
    environment = os.environ | {"HANDSON_RUNS": way, "MPLBACKEND": "Agg"}
    options = ["-m", "sphinx", "-W", "--keep-going", "-c", ".", "-d", "build/doctrees", "docs"]
    asked = [str(SITE)]
    if links:
        asked = [str(LINKS), "-b", "linkcheck", *(f"-D{name}={value}" for name, value in LINK_OPTIONS.items())]
        (ROOT / LINKS / "output.json").unlink(missing_ok=True)
    process = subprocess.Popen([sys.executable, *options, *asked], cwd=ROOT, env=environment)
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
    if links and (ROOT / LINKS / "output.json").is_file():
        return report_links(ROOT / LINKS / "output.json", took)
    if failed:
        print(f"\nThe build failed after {took}; the lines above say where.", file=sys.stderr)
        return failed
    print(f"\nThe site was built in {took}, runs: {way}.")
    print(f"Open {SITE / 'index.html'} in a browser, or serve it: python3 -m http.server --directory {SITE}")
    return 0


def report_links(file: Path, took: str) -> int:
    """Name each link that leads nowhere, and each page that has moved for good; return 1 where one leads nowhere."""
    answers = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    lost = [answer for answer in answers if answer["status"] in ("broken", "timeout")]
    moved = [answer for answer in answers if answer["status"] == "redirected" and answer["code"] in (301, 308)]
    asked = [answer for answer in answers if answer["status"] not in ("ignored", "unchecked", "local")]
    for title, some in (("moved", moved), ("broken", lost)):
        for answer in some:
            where = f"{answer['filename']}:{answer['lineno']}"
            print(f"{title}: {where}: {answer['uri']} {answer['info']}".strip(), file=sys.stderr)
    print(f"\n{len(asked)} links asked in {took}: {len(lost)} broken, {len(moved)} moved for good.")
    if lost and len(lost) == len(asked):
        print("Not one answered: this host seems to have no network.", file=sys.stderr)
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
