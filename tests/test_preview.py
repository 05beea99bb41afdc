"""`nox -s serve` and `nox -s linkcheck`: what they refuse, what they rebuild, what they report."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def serve(*arguments, checkout=ROOT, **options):
    command = [sys.executable, str(checkout / "docs" / "serve.py"), *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


@pytest.fixture
def taken():
    """A port at which somebody serves already."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


def test_a_port_that_is_taken_is_one_sentence(taken):
    process = serve(f"--port={taken}")
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 2
    assert said == f"error: port {taken} is taken or not allowed: choose another by --port=N\n"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--port=http", "error: --port=http is no port: use a number from 1024 to 65535"),
        ("--port=70000", "error: --port=70000 is no port"),
        ("--runs=sometimes", "error: --runs=sometimes is no way to get runs: use auto, live, recorded"),
        ("--open", "error: --open is no option of serve"),
    ],
)
def test_what_it_does_not_know_is_refused_in_one_sentence(argument, said):
    process = serve(argument)
    answer, _ = process.communicate(timeout=30)
    assert process.returncode == 2 and answer.startswith(said) and len(answer.splitlines()) == 1


@pytest.fixture
def preview(tmp_path, taken):
    """The preview of a small checkout: its address, its folder of pages and its sources."""
    docs = tmp_path / "docs"
    docs.mkdir()
    for name in ("serve.py", "build.py"):
        shutil.copy2(ROOT / "docs" / name, docs / name)
    (tmp_path / "conf.py").write_text("project = 'x'\nextensions = ['myst_parser']\n")
    (docs / "index.md").write_text("# One\n\n```{toctree}\nother\napart\n```\n")
    (docs / "apart.md").write_text("# Three\n")
    (docs / "other.md").write_text("# Two\n\nas it was\n")
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        port = asked.getsockname()[1]
    process = serve(f"--port={port}", checkout=tmp_path, start_new_session=True)
    yield f"http://127.0.0.1:{port}/", tmp_path, process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def fetched(address, holding, within=60.0):
    """The page's text as soon as it holds this."""
    limit, text = time.monotonic() + within, ""
    while time.monotonic() < limit:
        try:
            with urllib.request.urlopen(address, timeout=5) as answer:
                text = answer.read().decode()
            if holding in text:
                return text
        except (urllib.error.URLError, ConnectionError):
            pass
        time.sleep(0.2)
    raise AssertionError(f"{address} did not come to hold {holding!r}: {text[-500:]}")


def test_a_change_rebuilds_its_page_alone_and_reloads_the_browser(preview):
    address, checkout, process = preview
    page = fetched(address + "other.html", "as it was")
    assert "websocket-reload" in page or re.search(r"new WebSocket\(", page)
    html = checkout / "build" / "preview" / "html"
    untouched = (html / "apart.html").stat().st_mtime_ns
    (checkout / "docs" / "other.md").write_text("# Two\n\nas it is now\n")
    fetched(address + "other.html", "as it is now")
    assert (html / "apart.html").stat().st_mtime_ns == untouched
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=30)
    assert "[other]" in said or "1 changed" in said


@pytest.fixture
def build(monkeypatch):
    """The module of the build."""
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    monkeypatch.delitem(sys.modules, "build", raising=False)
    import build

    return build


def answers(folder, *states):
    file = folder / "output.json"
    told = {"filename": "start.md", "lineno": 3, "info": "", "code": 0}
    file.write_text("".join(json.dumps(told | state) + "\n" for state in states))
    return file


def test_a_broken_link_is_named_with_its_page_and_line(build, tmp_path, capsys):
    file = answers(
        tmp_path,
        {"uri": "https://example.org/gone", "status": "broken", "info": "404 Client Error"},
        {"uri": "https://example.org/old", "status": "redirected", "code": 301, "info": "https://example.org/new"},
        {"uri": "https://example.org/today", "status": "redirected", "code": 302, "info": "https://example.org/x"},
        {"uri": "https://example.org/", "status": "working"},
        {"uri": "#anchor", "status": "unchecked"},
    )
    assert build.report_links(file, "2.0 s") == 1
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "moved: start.md:3: https://example.org/old https://example.org/new",
        "broken: start.md:3: https://example.org/gone 404 Client Error",
    ]
    assert "4 links asked in 2.0 s: 1 broken, 1 moved for good." in said.out


def test_links_that_all_lead_somewhere_pass(build, tmp_path, capsys):
    assert build.report_links(answers(tmp_path, {"uri": "https://example.org/", "status": "working"}), "1.0 s") == 0
    assert "1 links asked in 1.0 s: 0 broken" in capsys.readouterr().out


def test_a_host_without_a_network_is_told_so(build, tmp_path, capsys):
    file = answers(tmp_path, {"uri": "https://example.org/", "status": "timeout"})
    assert build.report_links(file, "1.0 s") == 1
    assert "this host seems to have no network" in capsys.readouterr().err
