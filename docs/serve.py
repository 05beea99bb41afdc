"""Preview the site and reload the browser at every change: `python docs/serve.py [--port=8000] [--runs=auto|...]`.

`nox -s serve` calls this. The preview has folders of its own under build/: it shows pages with warnings, which a build
must not take for good ones.
"""

from __future__ import annotations

import os
import socket
import sys

from build import ROOT, WAYS

WATCHED = ("gallery", "tutorial_src", "conf.py", "README.md", "requirements.txt", "pyproject.toml")
# What a build itself writes; watching it, the preview would build for ever.
WRITTEN = ("docs/lessons", "docs/sg_execution_times.rst")
WRITTEN_NAMES = r"__pycache__|\.(png|pyc|part|swp)$|~$"
HOST = "127.0.0.1"


def free(port: int) -> bool:
    """Whether nobody serves at this port."""
    with socket.socket() as asked:
        asked.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            asked.bind((HOST, port))
        except OSError:
            return False
    return True


def main(arguments: list[str]) -> int:
    """Refuse with 2, or become the server, which builds and watches until Ctrl-C."""
    asked = {"--port": "8000", "--runs": os.environ.get("HANDSON_RUNS") or "auto"}
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name not in asked:
            print(f"error: {argument} is no option of serve: it takes --port=N and --runs=...", file=sys.stderr)
            return 2
        asked[name] = value
    port, way = asked["--port"], asked["--runs"]
    if way not in WAYS:
        print(f"error: --runs={way} is no way to get runs: use {', '.join(WAYS)}", file=sys.stderr)
        return 2
    if not port.isdecimal() or not 0 < int(port) < 65536:
        print(f"error: --port={port} is no port: use a number from 1024 to 65535", file=sys.stderr)
        return 2
    if not free(int(port)):
        print(f"error: port {port} is taken or not allowed: choose another by --port=N", file=sys.stderr)
        return 2
    options = ["-c", ".", "-d", "build/preview/doctrees", "--host", HOST, "--port", port]
    for path in WATCHED:
        options += ["--watch", path] if (ROOT / path).exists() else []
    for path in WRITTEN:
        options += ["--ignore", str(ROOT / path)]
    command = [sys.executable, "-m", "sphinx_autobuild", *options, "--re-ignore", WRITTEN_NAMES]
    environment = os.environ | {"HANDSON_RUNS": way, "MPLBACKEND": "Agg"}
    # In place of this process: whoever ends it ends the server, and Ctrl-C reaches it alone.
    os.chdir(ROOT)
    os.execve(sys.executable, [*command, "docs", "build/preview/html"], environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
