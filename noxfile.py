"""Everything one does with this repository: `nox -s build_docs`, `nox -s tests`, `nox -s serve`, ...

All sessions share one environment, `.venv`, so that torch is installed once. It is filled from requirements.txt
on first use and again only when requirements.txt or pyproject.toml changes.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).parent
ENVIRONMENT = ROOT / ".venv"
BIN = ENVIRONMENT / "bin"
STAMP = ENVIRONMENT / "handson.stamp"
WAYS = ("auto", "live", "recorded")
# Texts of others, what a program wrote, and what is no text.
NOT_OUR_SPELLING = "./build,./docs/lessons,./docs/recordings,./docs/inventories,./tutorial_src/*/*.txt,*.ipynb,*.svg"

nox.needs_version = ">=2024.4.15"
nox.options.sessions = ["lint", "tests", "build_docs"]
# The environment is ours, not nox's: nox would make one for each session, with one torch in each.
nox.options.default_venv_backend = "none"


def prepare(session: nox.Session) -> None:
    """Make the shared environment, or leave it alone when it already holds what is asked for."""
    wanted = hashlib.sha256()
    for name in ("requirements.txt", "pyproject.toml"):
        wanted.update((ROOT / name).read_bytes())
    python = BIN / "python"
    if not python.exists():
        if not (3, 11) <= sys.version_info[:2] <= (3, 12):
            session.error(
                f"Python 3.11 or 3.12 is needed, and this nox runs on {sys.version_info[0]}.{sys.version_info[1]}"
            )
        session.run(sys.executable, "-m", "venv", str(ENVIRONMENT))
    if STAMP.exists() and STAMP.read_text() == wanted.hexdigest():
        session.debug("the environment is up to date")
        return
    STAMP.unlink(missing_ok=True)
    pip = (str(python), "-m", "pip", "--disable-pip-version-check", "install")
    session.log("Installing into .venv: about 300 MB where torch is a CPU build, 3 GB where it brings CUDA.")
    session.run(*pip, "-c", "requirements.txt", "torch")
    session.run(*pip, "--no-deps", "-r", "requirements.txt")
    session.run(*pip, "--no-deps", "--no-build-isolation", "--editable", ".")
    STAMP.write_text(wanted.hexdigest())


def run(session: nox.Session, program: str, *arguments: str) -> None:
    """Run one of the environment's programs, with the others of it first on PATH (torchrun, colossalai)."""
    path = os.pathsep.join([str(BIN), os.environ.get("PATH", "")])
    environment = {"PATH": path, "PYTHONUNBUFFERED": "1"}
    # After Ctrl-C a job still has its ranks to end; nox would kill it after 0.3 s.
    session.run(str(BIN / program), *arguments, env=environment, external=True, interrupt_timeout=30)


@nox.session
def build_docs(session: nox.Session) -> None:
    """Build the site into build/html; `-- --runs=auto|live|recorded` says how lessons get their runs."""
    # Said here too, so that a slip of the finger does not cost an installation.
    asked = [argument.removeprefix("--runs=") for argument in session.posargs if argument.startswith("--runs=")]
    for way in asked or [os.environ.get("HANDSON_RUNS") or "auto"]:
        if way not in WAYS:
            session.error(f"--runs={way} is no way to get runs: use {', '.join(WAYS)}")
    prepare(session)
    run(session, "python", "docs/build.py", *session.posargs)


@nox.session
def serve(session: nox.Session) -> None:
    """Preview the site, rebuilt and reloaded at every change; `-- --port=8000 --runs=auto|live|recorded`."""
    prepare(session)
    run(session, "python", "docs/serve.py", *session.posargs)


@nox.session
def notebook(session: nox.Session) -> None:
    """Write notebook.ipynb, the whole tutorial in one file; `-- --execute` runs it and keeps what came out."""
    prepare(session)
    run(session, "python", "docs/_ext/notebooks.py", *session.posargs)


@nox.session
def offline_site(session: nox.Session) -> None:
    """Pack what a GPU host without a network needs into build/offline; `-- --python=3.11` for such a host."""
    prepare(session)
    run(session, "python", "docs/offline/pack.py", *session.posargs)


@nox.session
def linkcheck(session: nox.Session) -> None:
    """Ask every link of the site whether it still leads somewhere."""
    prepare(session)
    run(session, "python", "docs/build.py", "--links", *session.posargs)


@nox.session
def tests(session: nox.Session) -> None:
    """Run the tests, two at a time, then alone those that measure time; arguments after `--` go to pytest instead."""
    prepare(session)
    if session.posargs:
        run(session, "python", "-m", "pytest", *session.posargs)
        return
    failed = []
    for words in (("-n", "2", "--dist", "loadgroup", "-m", "not alone"), ("-m", "alone")):
        try:
            run(session, "python", "-m", "pytest", *words)
        except nox.command.CommandFailed:
            failed.append(shlex.join(words))
    if failed:
        session.error(f"tests failed: pytest {' and pytest '.join(failed)}")


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and format with ruff, and spelling with codespell."""
    prepare(session)
    run(session, "ruff", "check", ".")
    run(session, "ruff", "format", "--check", ".")
    # "tempreature" is what a misspelt field is called where the server is asked to refuse it; Joo is a name.
    run(session, "codespell", "--skip", NOT_OUR_SPELLING, "--ignore-words-list", "tempreature,joo")


@nox.session
def record(session: nox.Session) -> None:
    """Execute lessons on this host and keep what they measured: `-- LESSON...`, none means all."""
    prepare(session)
    run(session, "python", "-m", "handson", "record", *session.posargs)


@nox.session
def bench(session: nox.Session) -> None:
    """Start the same jobs by `colossalai run` and through the kit, and compare: `-- LESSON...` says whose jobs."""
    prepare(session)
    run(session, "python", "docs/bench.py", *session.posargs)
