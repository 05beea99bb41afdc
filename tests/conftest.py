"""Shared by all tests: each gets its own build folder and recordings, so that none sees another's runs.

The tests of the built site share one build, one server and one browser.
"""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
ROOT = Path(__file__).parent.parent
SITE = ROOT / "build" / "html"
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.hookimpl(tryfirst=True)  # else pytest-xdist has looked for groups before they are there
def pytest_collection_modifyitems(items):
    """Which tests share a worker where several run at once (pytest -n): those of a file, and all of the built site.

    The site's come first, as they take longest.
    """
    for item in items:
        group = "site" if item.path.stem.startswith("test_site") else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=lambda item: not item.path.stem.startswith("test_site"))


@pytest.fixture(autouse=True)
def own_stores(tmp_path, monkeypatch):
    """No test reads or writes the checkout's runs."""
    monkeypatch.setenv("HANDSON_BUILD", str(tmp_path / "build"))
    monkeypatch.setenv("HANDSON_RECORDINGS", str(tmp_path / "recordings"))
    monkeypatch.setenv("HANDSON_LEASES", str(tmp_path / "leases"))
    for name in (
        "HANDSON_RUNS",
        "HANDSON_PRESET",
        "HANDSON_WITHOUT",
        "HANDSON_TIMEOUT",
        "HANDSON_LESSON",
        "HANDSON_SINCE",
        "HANDSON_JOBS",
    ):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


@pytest.fixture(autouse=True)
def topics_apart():
    """Each test imports its topic's modules afresh: other topics have some of the same names."""
    kit = ROOT / "tutorial_src" / "handson"
    for name, module in list(sys.modules.items()):
        file = getattr(module, "__dict__", {}).get("__file__") or ""
        if file.startswith(str(kit.parent)) and not file.startswith(str(kit)):
            del sys.modules[name]


@pytest.fixture
def opt_module(monkeypatch):
    """Imports a module of OPT's folder by name. Asks no hub."""
    monkeypatch.syspath_prepend(str(ROOT / "tutorial_src" / "opt"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return __import__


def gone(pid: int, within: float = 5.0) -> bool:
    """Whether the process has ended (or is a zombie that its parent will reap) within so many seconds."""
    limit = time.monotonic() + within
    while time.monotonic() < limit:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def children_of(pid: int) -> set[int]:
    """Every process below this one."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            except (FileNotFoundError, ProcessLookupError):
                continue
    found, waiting = set(), [pid]
    while waiting:
        below = [child for child, parent in parents.items() if parent == waiting[-1] and child not in found]
        waiting.pop()
        found |= set(below)
        waiting += below
    return found


def build():
    """Build the site as nox does, with the checkout's own runs."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("HANDSON_BUILD", "HANDSON_RECORDINGS")
    }
    command = [sys.executable, str(ROOT / "docs" / "build.py")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, *arguments):
        """Say nothing."""


class Server(http.server.ThreadingHTTPServer):
    """A browser that moves on to the next page drops what it was still loading: no error of ours."""

    def handle_error(self, request, client_address):
        """Report anything else."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@pytest.fixture(scope="session")
def site():
    """The address of the built site."""
    build()
    handler = functools.partial(Quiet, directory=str(SITE))
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium of this host: $CHROMIUM, else the one on PATH."""
    program = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        reason = "there is no Chromium: install Debian's `chromium`, or name one by CHROMIUM=/path"
        if "CI" in os.environ:
            pytest.fail(reason)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=program, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def visit(site, browser):
    """Opens a page of the site, in a theme and at a size."""
    contexts = []

    def open_page(path, theme="light", size=DESKTOP):
        context = browser.new_context(color_scheme=theme, viewport=size)
        contexts.append(context)
        page = context.new_page()
        page.goto(site + path)
        return page

    yield open_page
    for context in contexts:
        context.close()


@dataclass
class Seen:
    """What loading a page, with every picture of it, made the browser do; and how wide it is on a phone."""

    asked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    bytes: float = 0.0
    links: list[str] = field(default_factory=list)
    wider_than_a_phone: bool = False


@pytest.fixture(scope="session")
def tour(site, browser):
    """Every page, visited once with an empty cache: what was `Seen` there."""
    page = browser.new_context(viewport=DESKTOP).new_page()
    network = page.context.new_cdp_session(page)
    network.send("Network.enable")
    network.send("Network.setCacheDisabled", {"cacheDisabled": True})
    found, now = {}, Seen()
    network.on("Network.loadingFinished", lambda event: setattr(now, "bytes", now.bytes + event["encodedDataLength"]))
    page.on("request", lambda request: now.asked.append(request.url))
    page.on("pageerror", lambda error: now.errors.append(str(error)))
    page.on("response", lambda answer: answer.ok or now.errors.append(f"{answer.status} {answer.url}"))
    for path in pages():
        now = found[path] = Seen()
        page.set_viewport_size(DESKTOP)
        page.goto(site + path)
        # Pictures come when they are near: look at all of them.
        page.evaluate("for (const image of document.images) image.offsetParent && (image.loading = 'eager')")
        page.wait_for_load_state("networkidle")
        now.links = page.eval_on_selector_all("a[href]", "links => links.map(link => link.href)")
        page.set_viewport_size(PHONE)
        now.wider_than_a_phone = page.evaluate("document.documentElement.scrollWidth > window.innerWidth")
    page.context.close()
    return found


def pages():
    """Every page, relative to the site."""
    return sorted(path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html") if "_static" not in path.parts)
