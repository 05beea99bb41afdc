"""`python opt_fastapi.py`: right answers, clear refusals, and no way to end without saying so or to leave a process."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3
from conftest import SCRIPTS as PROBES
from conftest import children_of, gone
from handson.sources import SCRIPTS

sys.path.append(str(SCRIPTS / "opt"))
from inference import served

pytestmark = pytest.mark.ranks
BODY = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """The folder of a small OPT, and [prompt, max_tokens, text] as plain transformers answers one by one."""
    folder = tmp_path_factory.mktemp("opt") / "model"
    environment = os.environ | {"PYTHONPATH": str(SCRIPTS), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, PROBES / "opt_truth.py", folder], env=environment, check=True, capture_output=True)
    return folder, json.loads(Path(f"{folder}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    yield
    os.environ["OMP_NUM_THREADS"] = before or "1"


BEGUN = []


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left():
    yield
    for process in BEGUN:
        process.kill()  # where a test failed before it ended its server


def begin(words):
    BEGUN.append(served.begin([str(word) for word in words]))
    return BEGUN[-1]


def start(folder, **options) -> served.Served:
    words = served.arguments("own", folder, device="cpu", **options)
    return served.ready(begin(words), words)


@pytest.fixture(scope="module")
def alone(truth):
    """A server of one rank, small enough to be filled."""
    server = start(truth[0], max_batch_size=4, queue_size=4, cache_size=8)
    yield server
    server.stop()


class Client:
    """Sends to one server, from any thread."""

    def __init__(self, server: served.Served) -> None:
        self.url, self.pool = server.url, urllib3.PoolManager(maxsize=40, retries=False)

    def raw(self, body, **options):
        return self.pool.request("POST", f"{self.url}/generation", body=body, headers=BODY, timeout=60, **options)

    def ask(self, prompt, max_tokens, **more):
        said = self.raw(json.dumps({"prompt": prompt, "max_tokens": max_tokens, **more}))
        return said.status, said.json()

    def get(self, path):
        said = self.pool.request("GET", self.url + path, timeout=10)
        return said.status, said.data.decode()

    def health(self):
        status, text = self.get("/health")
        return status, json.loads(text)

    def metric(self, name):
        (line,) = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(name + " ")]
        return float(line.rpartition(" ")[2])


def together(client, asked, **more):
    with ThreadPoolExecutor(len(asked)) as pool:
        return list(pool.map(lambda one: client.ask(one[0], one[1], **more), asked))


def until(true, seconds=10.0):
    limit = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < limit, "waited in vain"
        time.sleep(0.02)


def texts(answers):
    assert {status for status, _ in answers} == {200}, answers
    return [said["text"] for _, said in answers]


# --- one rank ---------------------------------------------------------------------------------------------------


def test_greedy_answers_are_those_of_transformers(alone, truth):
    client, asked = Client(alone), truth[1]
    right = [text for _, _, text in asked]
    assert len(set(right)) == 24
    assert texts([client.ask(prompt, most) for prompt, most, _ in asked[:6]]) == right[:6]
    for first in range(0, 24, 8):
        assert texts(together(client, asked[first : first + 8])) == right[first : first + 8]
    assert client.metric("opt_batch_size_sum") > client.metric("opt_batch_size_count"), "no step was ever shared"
    status, said = client.ask(asked[0][0], 5)
    assert (status, said["tokens"], said["finish_reason"], len(said)) == (200, 5, "length", 3)


def test_a_seed_makes_sampling_repeatable_in_any_company(alone, truth):
    client, asked = Client(alone), truth[1]
    how = {"temperature": 1.1, "top_k": 50, "top_p": 0.95}
    first = client.ask(asked[3][0], 40, **how, seed=5)
    assert client.ask(asked[3][0], 40, **how, seed=6) != first
    with ThreadPoolExecutor(6) as pool:
        crowd = [pool.submit(client.ask, asked[at][0], 60, temperature=0.9) for at in range(5)]
        # one token more: not the kept answer
        among = pool.submit(client.ask, asked[3][0], 41, **how, seed=5).result()
        assert all(one.result()[0] == 200 for one in crowd)
    assert among[1]["text"].startswith(first[1]["text"].rstrip("\ufffd")) and among[1]["tokens"] == 41
    unseeded = {client.ask(asked[3][0], 40, **how)[1]["text"] for _ in range(3)}
    assert len(unseeded) == 3


def test_answers_with_one_possible_text_are_kept(alone, truth):
    client = Client(alone)
    prompt, most, right = truth[1][7]
    client.ask(prompt, most, seed=1)
    hits, steps = client.metric("opt_cache_hits_total"), client.metric("opt_batch_size_count")
    assert client.ask(prompt, most, seed=2)[1]["text"] == right, "greedy: no seed matters"
    assert client.metric("opt_cache_hits_total") == hits + 1 and client.metric("opt_batch_size_count") == steps
    client.ask(prompt, most, top_k=5, seed=1)
    client.ask(prompt, most, top_k=6, seed=1)
    client.ask(prompt, most, top_k=5, seed=2)
    client.ask(prompt, most, top_k=5)
    client.ask(prompt, most, top_k=5)
    assert client.metric("opt_cache_hits_total") == hits + 1, "other parameters, other answers"
    client.ask(prompt, most, top_k=5, seed=1)
    assert client.metric("opt_cache_hits_total") == hits + 2


REFUSED = {
    "no JSON": (b"{", 422),
    "no bytes": (b"", 422),
    "no UTF-8": (b'{"prompt": "\xff\xfe"}', 400),
    "no object": (b"[1]", 422),
    "deep": (b"[" * 100_000, 400),
    "no prompt": (b"{}", 422),
    "empty prompt": (b'{"prompt": ""}', 422),
    "prompt is a number": (b'{"prompt": 5}', 422),
    "half a surrogate pair": (b'{"prompt": "\\ud800"}', 422),
    "unknown field": (b'{"prompt": "a", "max_token": 5}', 422),
    "tokens as text": (b'{"prompt": "a", "max_tokens": "5"}', 422),
    "tokens as truth": (b'{"prompt": "a", "max_tokens": true}', 422),
    "no tokens": (b'{"prompt": "a", "max_tokens": 0}', 422),
    "257 tokens": (b'{"prompt": "a", "max_tokens": 257}', 422),
    "too many digits": (b'{"prompt": "a", "max_tokens": ' + b"9" * 5000 + b"}", 400),
    "temperature 0": (b'{"prompt": "a", "temperature": 0}', 422),
    "temperature NaN": (b'{"prompt": "a", "temperature": NaN}', 422),
    "temperature 1e999": (b'{"prompt": "a", "temperature": 1e999}', 422),
    "top_p over 1": (b'{"prompt": "a", "top_p": 1.5}', 422),
    "top_k 0": (b'{"prompt": "a", "top_k": 0}', 422),
    "seed too large": (b'{"prompt": "a", "seed": 9223372036854775808}', 422),
    "too large": (b'{"prompt": "' + b"a" * (1 << 20) + b'"}', 413),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_answered_is_refused(alone, name):
    body, status = REFUSED[name]
    said = Client(alone).raw(body)
    assert said.status == status and said.json()["detail"], said.data


def test_a_body_that_grows_without_end_is_refused(alone):
    said = Client(alone).raw(iter([b"x" * 65536] * 64), chunked=True)
    assert said.status == 413 and said.json() == {"detail": "The body has more than 1048576 bytes."}


def test_a_body_that_is_too_large_is_read_to_its_end_so_that_its_sender_sees_why(alone):
    client, line = Client(alone), 'opt_refused_total{reason="too large"}'
    assert client.raw(b"x" * (2 << 20)).status == 413
    before = client.metric(line)
    assert client.raw(b'{"prompt": "' + b"a" * (6 << 20) + b'"}').status == 413
    assert client.metric(line) == before + 1


@pytest.mark.parametrize(
    "prompt", ["\0", "a\0b", "\ufeff", "\u202e\U0001f468\u200d\U0001f469", "\uffff", " ", "\n" * 50, "</s><s><pad>"]
)
def test_odd_prompts_are_answered(alone, prompt):
    status, said = Client(alone).ask(prompt, 4)
    assert status == 200 and said["tokens"] == 4


@pytest.mark.parametrize("how", [{"temperature": 5e-324}, {"temperature": 1e308}, {"top_p": 1e-300}, {"top_k": 2**31}])
def test_extreme_parameters_are_answered(alone, how):
    assert Client(alone).ask("Tensor", 4, **how, seed=2**63 - 1)[0] == 200


def test_a_prompt_and_an_answer_that_are_too_long_are_refused_with_the_numbers(alone, truth):
    client = Client(alone)
    status, said = client.ask("a " * 3000, 64)
    assert status == 422 and "with max_tokens 64 that is more than the 512 that this model can hold" in said["detail"]
    asked, counted = (1000, 2000), []
    for times in asked:
        counted.append(int(client.ask("a " * times, 1)[1]["detail"].split()[3]))
    each = (counted[1] - counted[0]) // 1000
    most = (512 - 256 - (counted[0] - 1000 * each)) // each
    assert client.ask("a " * most, 256)[0] == 200
    assert client.ask("a " * (most + 1), 256)[0] == 422


def test_a_full_queue_is_refused_and_loses_nobody(alone, truth):
    client, asked = Client(alone), [(prompt, 200) for prompt, _, _ in truth[1][:20]]
    said = together(client, asked)
    assert [status for status, _ in said].count(200) >= 8
    refused = [body for status, body in said if status == 406]
    assert refused and {status for status, _ in said} == {200, 406}
    assert refused[0] == {"detail": "The queue is full: 4 requests wait beside the 4 of a step."}
    for (prompt, _), (status, body) in zip(asked, said, strict=True):
        if status == 200:
            assert client.ask(prompt, 200) == (200, body)


def test_a_client_that_goes_frees_its_place(alone, truth):
    client = Client(alone)
    left = client.metric("opt_left_total")
    body = json.dumps({"prompt": truth[1][1][0], "max_tokens": 256, "temperature": 1.0}).encode()
    head = (
        b"POST /generation HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        % len(body)
    )
    host, port = alone.url.removeprefix("http://").split(":")
    tokens = client.metric("opt_generated_tokens_total")
    with socket.create_connection((host, int(port))) as link:
        link.sendall(head + body)
        until(lambda: client.metric("opt_running") == 1)
    until(lambda: client.metric("opt_running") == 0, 1.0)
    assert client.metric("opt_left_total") == left + 1
    assert client.metric("opt_generated_tokens_total") - tokens < 250


def test_the_interface_describes_itself_without_another_host(alone):
    client = Client(alone)
    status, page = client.get("/docs")
    assert status == 200 and "http://" not in page and "https://" not in page
    for word in page.split('"'):
        if word.startswith("/") and word.endswith((".js", ".css")):
            assert client.get(word)[0] == 200
    described = json.loads(client.get("/openapi.json")[1])
    assert set(described["paths"]) == {"/generation", "/health", "/metrics"}
    assert set(described["paths"]["/generation"]["post"]["responses"]) == {
        "200",
        "400",
        "406",
        "408",
        "413",
        "422",
        "503",
    }
    status, said = client.health()
    assert status == 200 and said["status"] == "ok" and said["tp"] == 1
    for name in ("opt_queue_length", "opt_running", "opt_generated_tokens_total", "opt_request_seconds_count"):
        assert client.metric(name) >= 0


# --- more ranks -------------------------------------------------------------------------------------------------


def test_two_ranks_answer_as_transformers_and_sigterm_drains_them(truth):
    folder, asked = truth
    server = start(folder, tp=2, max_batch_size=8, queue_size=64)
    client = Client(server)
    ranks = children_of(server.process.pid)
    assert len(ranks) == 1
    right = [text for _, _, text in asked]
    assert texts([client.ask(prompt, most) for prompt, most, _ in asked[:4]]) == right[:4]
    assert texts(together(client, asked)) == right
    with ThreadPoolExecutor(9) as pool:
        under_way = [pool.submit(client.ask, prompt, most) for prompt, most, _ in asked[:8]]
        long = pool.submit(client.ask, asked[0][0], 250)
        until(lambda: client.metric("opt_running") >= 1)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: client.health()[1]["status"] == "draining")
        status, said = client.ask(asked[9][0], 5)
        assert (status, said["detail"]) == (503, "the server ends (SIGTERM)")
        assert texts([one.result() for one in under_way]) == right[:8]
        assert long.result()[0] == 200
    assert server.process.wait(10) == 0
    assert all(gone(rank) for rank in ranks)


@pytest.mark.alone
def test_a_killed_rank_is_named_and_the_server_ends(truth):
    folder, asked = truth
    server = start(folder, tp=2, max_batch_size=2)
    client = Client(server)
    (rank,) = children_of(server.process.pid)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(client.ask, asked[0][0], 256) for _ in range(6)]
        until(lambda: client.metric("opt_running") == 2)
        os.kill(rank, signal.SIGKILL)
        began = time.monotonic()
        said = [one.result() for one in waiting]
    assert time.monotonic() - began < 5
    why = f"rank 1 (process {rank}) was ended by signal 9 (SIGKILL)"
    assert {status for status, _ in said} == {503} and said[0][1] == {"detail": why}
    assert client.ask(asked[0][0], 5) == (503, {"detail": why})
    status, health = client.health()
    assert status == 503 and health["status"] == "dead" and health["detail"] == why
    assert server.process.wait(10) == 1
    assert any(line.startswith(f"error: {why}") for line in server.log)


@pytest.mark.alone
def test_a_hung_rank_is_named_in_bounded_time_but_idling_ends_nothing(truth):
    folder, asked = truth
    server = start(folder, tp=2, rank_timeout=1.5)
    client = Client(server)
    (rank,) = children_of(server.process.pid)
    time.sleep(3.5)
    assert client.ask(asked[0][0], asked[0][1])[1]["text"] == asked[0][2]
    os.kill(rank, signal.SIGSTOP)
    began = time.monotonic()
    assert client.ask(asked[0][0], 256) == (503, {"detail": f"rank 1 (process {rank}) gave no sign of life for 2 s"})
    assert time.monotonic() - began < 6
    assert server.process.wait(10) == 1 and gone(rank)


def test_no_rank_outlives_rank_0(truth):
    process = begin(served.arguments("own", truth[0], device="cpu", tp=2))
    until(lambda: children_of(process.pid), 60)
    (rank,) = children_of(process.pid)
    until(lambda: "follower.py" in Path(f"/proc/{rank}/cmdline").read_text())
    time.sleep(1)
    process.kill()
    process.wait()
    assert gone(rank)


# --- what cannot be served --------------------------------------------------------------------------------------


def refusal(*words) -> str:
    process = begin(words)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and said.count("\n") == 1 and said.startswith("error: "), said
    return said[7:].rstrip("\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["opt-tiny", "--tp", 0], "--tp 0: it must be from 1 to 64"),
        (["opt-tiny", "--pipe_size", 2], "share every layer (--tp)"),
        (["opt-tiny", "--cache_list_size", 4], "only requests with one possible answer are kept"),
        (["opt-tiny", "--rpc_port", 1], "need no RPC"),
        (["opt-tiny", "--http_port", 65536], "--http_port 65536: it must be from 0 to 65535"),
        (["opt-tiny", "--speed", 2], "unrecognized arguments: --speed 2"),
        (["opt-tiny", "--http_host", "256.1.1.1"], "cannot be had"),
        (
            ["opt-tiny", "--device", "cpu", "--http_port", 0, "--tp", 2, "--master_host", "192.0.2.1"],
            "--master_host 192.0.2.1 --master_port 0 cannot be had: Cannot assign requested address; the ranks are all",
        ),
    ],
)
def test_impossible_options_are_refused(words, says):
    assert says in refusal(*words)


def test_a_name_that_is_no_model_is_refused():
    said = refusal("opt-126m", "--http_port", 0)
    assert said.startswith("opt-126m is no OPT model: use one of opt-tiny, opt-small, opt-125m")


def test_a_taken_port_is_refused(alone):
    port = alone.url.rsplit(":", 1)[1]
    assert refusal("opt-tiny", "--http_port", port) == (
        f"--http_host 127.0.0.1 --http_port {port} cannot be had: Address already in use"
    )


def test_damaged_folders_are_refused_by_the_name_of_the_file(truth, tmp_path):
    def given(**options):
        return refusal(*served.arguments("own", tmp_path, **options))

    def put(name, change=lambda data: data):
        (tmp_path / name).write_bytes(change((truth[0] / name).read_bytes()))

    assert "there is no such folder" in refusal(*served.arguments("own", tmp_path / "none"))
    assert "it has no config.json" in given()
    put("config.json")
    put("tokenizer.json")
    assert "it has no weights (*.safetensors)" in given()
    put("model.safetensors", lambda data: data[:-100])
    assert "model.safetensors is cut short" in given()
    put("model.safetensors", lambda data: data[:3])
    assert "model.safetensors is cut short, or no safetensors file" in given()
    put("model.safetensors")
    put("tokenizer.json", lambda data: data[:1000])
    assert "tokenizer.json is damaged; copy the folder again" in given()
    put("tokenizer.json")
    put("config.json", lambda data: data[:20])
    assert "config.json is damaged" in given()
    put("config.json", lambda data: data.replace(b'"ffn_dim": 512', b'"ffn_dim": "x"'))
    assert "config.json has no whole number ffn_dim, but 'x'" in given()
    put("config.json")
    assert "--tp 3 does not divide the model's 4 attention heads: use one of 1, 2, 4" in given(tp=3)
    assert "call it opt-tiny" in refusal(*served.arguments("opt-125m", tmp_path))
    put("config.json", lambda data: data.replace(b'"ffn_dim": 512', b'"ffn_dim": 500'))
    process = begin(served.arguments("own", tmp_path, device="cpu"))
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 2 and "do not fit its config.json (size mismatch for " in said.splitlines()[-1]
