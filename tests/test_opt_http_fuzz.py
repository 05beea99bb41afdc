"""The server against its own OpenAPI document and against bodies that no client should send: 4xx, never 5xx."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile

import pytest
import schemathesis
import urllib3
from conftest import SCRIPTS as PROBES
from handson.sources import SCRIPTS
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.configuration import set_hypothesis_home_dir
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

KEPT = tempfile.TemporaryDirectory(prefix="hypothesis-")  # what it keeps belongs into no checkout
set_hypothesis_home_dir(KEPT.name)
sys.path.append(str(SCRIPTS / "opt"))
from inference import served  # noqa: E402

pytestmark = pytest.mark.ranks
EXAMPLES = 40  # of each operation
SHORT = 3  # tokens of an answer: the fuzzing is of the interface
LIMIT = 256
OPERATIONS = {"POST /generation", "GET /health", "GET /metrics"}
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A server of a small OPT."""
    folder = tmp_path_factory.mktemp("opt") / "model"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, PROBES / "opt_truth.py", folder], env=environment, check=True, capture_output=True)
    with served.serve("own", folder, device="cpu", max_batch_size=8) as server:
        yield server.url
        assert not [line for line in server.log if "Traceback" in line]
    assert server.process.returncode == 0


@pytest.fixture(scope="module")
def document(url):
    return schemathesis.openapi.from_url(f"{url}/openapi.json")


def operations(document):
    return {f"{found.ok().method.upper()} {found.ok().path}": found.ok() for found in document.get_all_operations()}


def test_the_document_names_every_way_to_ask(document):
    assert operations(document).keys() == OPERATIONS


# Not by schemathesis' plugin of pytest, which reads what pytest 9 has no more.
@pytest.mark.parametrize(
    ("name", "mode", "statuses"),
    [
        ("POST /generation", GenerationMode.POSITIVE, {200, 422}),  # 422: prompt and answer too long for the model
        ("POST /generation", GenerationMode.NEGATIVE, {400, 422}),
        ("GET /health", GenerationMode.POSITIVE, {200}),
        ("GET /metrics", GenerationMode.POSITIVE, {200}),
    ],
    ids=["valid questions", "invalid questions", "health", "metrics"],
)
def test_the_server_keeps_to_its_own_document(document, name, mode, statuses):
    operation = operations(document)[name]
    answered = []

    # No database: a run depends on nothing that another left; derandomized: it is the same on every host.
    @settings(max_examples=EXAMPLES, database=None, derandomize=True, deadline=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case):
        if isinstance(case.body, dict):
            asked = case.body.get("max_tokens", LIMIT)
            case.body["max_tokens"] = SHORT if type(asked) is int and SHORT < asked <= LIMIT else asked
        answered.append(case.call_and_validate(checks=CHECKS, timeout=60).status_code)

    ask()
    assert answered and set(answered) <= statuses, set(answered)


# Beside those in test_opt_server.py.
BODIES = {
    "an object a thousand deep": b'{"prompt": ' * 1000 + b"1" + b"}" * 1000,
    "infinity": b'{"prompt": "a", "top_p": Infinity}',
    "a negative seed": b'{"prompt": "a", "seed": -1}',
    "null": b"null",
    "a prompt that is a list": b'{"prompt": ["a", "b"]}',
    "two texts": b'{"prompt": "a"}{"prompt": "b"}',
    "zero bytes": b"\0" * 1000,
}


def well(url):
    """The server is healthy and answers."""
    assert urllib3.request("GET", f"{url}/health", timeout=10).json()["status"] == "ok"
    said = urllib3.request("POST", f"{url}/generation", json={"prompt": "Python", "max_tokens": SHORT}, timeout=30)
    assert said.status == 200 and 1 <= said.json()["tokens"] <= SHORT


@pytest.mark.parametrize("name", BODIES)
def test_a_body_that_means_nothing_is_refused_with_a_reason(url, name):
    said = urllib3.request(
        "POST", f"{url}/generation", body=BODIES[name], headers={"Content-Type": "application/json"}, timeout=30
    )
    assert 400 <= said.status < 500 and json.loads(said.data)["detail"], said.data[:200]
    well(url)


@pytest.mark.parametrize("kind", ["text/plain", "application/xml", "multipart/form-data; boundary=x", ""])
def test_another_content_type_is_refused(url, kind):
    headers = {"Content-Type": kind} if kind else {}
    said = urllib3.request("POST", f"{url}/generation", body=b"prompt=a", headers=headers, timeout=30)
    assert 400 <= said.status < 500
    well(url)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD"])
def test_another_method_is_refused(url, method):
    assert urllib3.request(method, f"{url}/generation", timeout=30).status == 405


def test_a_chunked_body_without_end_is_cut_off(url):
    host, port = url.removeprefix("http://").split(":")
    head = f"POST /generation HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    sent, said = 0, b""
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            while sent < 64 << 20:
                line.sendall(chunk)
                sent += 65536
        with contextlib.suppress(OSError):
            said = line.recv(4096)
    # Either the answer was read or the connection was closed on what nobody will read; never 64 MiB taken in.
    assert sent < 64 << 20 and (not said or said.startswith(b"HTTP/1.1 413"))
    well(url)


def test_a_header_of_a_megabyte_is_refused(url):
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        with contextlib.suppress(OSError):
            line.sendall(b"GET /health HTTP/1.1\r\nX: " + b"x" * (1 << 20))
        with contextlib.suppress(OSError):
            said = line.recv(4096)
            assert not said or said.startswith(b"HTTP/1.1 4")
    well(url)
