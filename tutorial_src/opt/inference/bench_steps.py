"""What the serving lesson does to a server, step by step; each step logs a line and records its rows."""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import os
import runpy
import shlex
import string
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import urllib3
from handson import worker
from inference import load, served

COMPARE = Path(__file__).with_name("compare_continuous.py")
ENVIRONMENT = "HANDSON_TRANSFORMERS5"
ALONE = 16  # questions that are also asked one after the other
REPEATS = 3
COMPARE_SECONDS = 150
WORDS = tuple(string.ascii_letters + string.digits)  # begin a line of ours; a warning begins with its file's path
DRAINED = 8  # clients that a server which is told to end has inside


def fine_tune(model: str, arguments: Sequence[str], text: str, folder: Path) -> Path:
    """Run run_clm.py in a process of its own, as a job of one rank; gives the folder with the model that it exports.

    Raises:
        SystemExit: with the last lines that it wrote, when it fails.
    """
    learned = folder.with_suffix(".txt")
    learned.write_text(text, encoding="utf-8")
    words = ["--model_name_or_path", model, "--train_file", str(learned), *arguments, "--output_dir", str(folder)]
    rows, log = folder.with_suffix(".rows"), folder.with_suffix(".log")
    began = time.monotonic()
    # Forked, not started anew: torch, which this process may hold already, need not be imported once more.
    child = multiprocessing.get_context("fork").Process(target=_run_clm, args=(words, str(rows), str(log)))
    child.start()
    child.join()
    said = log.read_text().replace(str(folder), "DIR").splitlines()
    command = f"python run_clm.py {shlex.join(words)}".replace(str(learned), "FILE").replace(str(folder), "DIR")
    if child.exitcode:
        raise SystemExit("\n".join([f"error: {command} ended with exit code {child.exitcode}:", *said[-15:]]))
    found = [json.loads(line) for line in rows.read_text().splitlines()]
    losses = [row["loss"] for row in found if row["kind"] == "loss"]
    told = [line for line in said if line.startswith(WORDS) and not line.startswith("step")]
    worker.log("\n".join([command, *told]))
    worker.log(f"loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps")
    figures = {"steps": len(losses), "first": losses[0], "last": losses[-1], "seconds": time.monotonic() - began}
    worker.record("fine_tuned", model=model, command=command, **figures)
    return folder / "model"


def _run_clm(words: list[str], rows: str, log: str) -> None:
    for name in served.OF_A_JOB:
        os.environ.pop(name, None)
    os.environ["HANDSON_ROWS"] = rows
    worker.place()  # a job of one rank
    with Path(log).open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    import torch

    # The fork left the parent's threads behind; renewed here, before two threads do it at once (backward's is another).
    torch.set_num_threads(torch.get_num_threads())
    sys.argv = ["run_clm.py", *words]
    runpy.run_path(str(Path(__file__).parent.parent / "run_clm.py"), run_name="__main__")


class Bench:
    """One checkpoint and the questions asked of it.

    Args:
        model: its name for opt_fastapi.py.
        checkpoint: its folder.
        asked: the questions, with the answers of plain transformers.
        device: cpu or cuda.
        rows: the --max_batch_size of a server that batches.
    """

    def __init__(self, model: str, checkpoint: Path, asked: list[load.Question], device: str, rows: int) -> None:
        self.model, self.checkpoint, self.asked, self.device, self.rows = model, checkpoint, asked, device, rows
        self.labels: dict[str, str] = {}
        said = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
        names = {"layers": "num_hidden_layers", "hidden": "hidden_size", "positions": "max_position_embeddings"}
        worker.record("model", name=model, **{name: said[key] for name, key in names.items()})
        different = len({question.truth for question in asked})
        worker.record("questions", count=len(asked), different=different, lengths=sorted({q.max_tokens for q in asked}))
        worker.log(f"{len(asked)} questions, {different} different answers by plain transformers")

    @contextlib.contextmanager
    def server(self, label: str, **options: Any) -> Iterator[served.Served]:
        """Start the server, record its command, its words, and how it ended."""
        began = time.monotonic()
        with served.serve(self.model, self.checkpoint, device=self.device, **options) as found:
            self.labels[found.url] = label
            seconds = time.monotonic() - began
            worker.log(f"{label}: ready after {seconds:.1f} s")
            yield found
            said = [line.replace(str(self.checkpoint), "DIR") for line in found.log if line.startswith(WORDS)]
            about = {"label": label, "tp": options.get("tp", 1), "max_batch_size": options["max_batch_size"]}
            command = found.command.replace(str(self.checkpoint), "DIR").replace(" --http_port 0", "")
        worker.record("server", **about, command=command, log=said, ready_s=seconds, exit_code=found.process.returncode)

    def load(self, server: served.Served, clients: int, **how: Any) -> load.Load:
        """Send load and record its figures, with the mean number of requests in a step while it ran."""
        before = scrape(server.url)
        sent = load.send(server.url, self.asked, clients=clients, **how)
        after = scrape(server.url)
        steps = after["opt_batch_size_count"] - before["opt_batch_size_count"]
        batch = (after["opt_batch_size_sum"] - before["opt_batch_size_sum"]) / steps if steps else None
        step = (after["opt_step_seconds_sum"] - before["opt_step_seconds_sum"]) / steps if steps else None
        label = self.labels[server.url]
        # A client that asks again at once keeps the number of requests under way constant until the time is over.
        figures = {"closed": "seconds" in how, "mean_batch": batch, "mean_step_ms": step and 1e3 * step}
        worker.record("load", server=label, **sent.fields(), **figures)
        worker.log(
            f"{label}, {clients} clients: {sent.per_second():.4g} answers/s, {sent.tokens_per_second():.4g} tokens/s, "
            f"p50 {1e3 * sent.latency(50):.4g} ms"
        )
        return sent

    def timeline(self, server: served.Served, clients: int) -> None:
        """Let so many clients ask one question each at the same time; record when each was answered."""
        sent = load.send(server.url, self.asked, clients=clients, each=1)
        for reply in sent.replies:
            worker.record(
                "request",
                server=self.labels[server.url],
                client=reply.client,
                began_ms=1e3 * reply.began,
                ended_ms=1e3 * reply.ended,
                tokens=reply.tokens,
            )

    def examples(self, server: served.Served) -> None:
        """Three answers as they come over the wire, the OpenAPI document, the state, and seeds."""
        for question in self.asked[:3]:
            body = {"prompt": question.prompt, "max_tokens": max(q.max_tokens for q in self.asked)}
            status, said = call(server.url, "/generation", json=body)
            worker.record("example", body=body, status=status, answer=said)
        worker.record("openapi", document=call(server.url, "/openapi.json")[1])
        worker.record("health", **call(server.url, "/health")[1])
        body |= {"temperature": 0.9, "top_k": 50}
        texts = [call(server.url, "/generation", json=body | {"seed": seed})[1]["text"] for seed in (7, 7, 8)]
        with ThreadPoolExecutor(1) as pool:  # the same seed once more, now in a crowd
            crowd = pool.submit(load.send, server.url, self.asked, clients=16, each=1)
            texts.append(call(server.url, "/generation", json=body | {"seed": 7})[1]["text"])
            crowd.result()
        worker.record(
            "seeds", body=body, again=texts[1] == texts[0], other=texts[2] != texts[0], crowd=texts[3] == texts[0]
        )

    def refusals(self, server: served.Served) -> None:
        """Requests that cannot be answered, and what the server says to them."""
        words = {"Content-Type": "application/json"}
        long = " ".join(question.prompt for question in self.asked) * 20
        for what, how in {
            "no JSON": {"body": b'{"prompt": ', "headers": words},
            "max_tokens of 0": {"json": {"prompt": "A", "max_tokens": 0}},
            "max_tokens as a text": {"json": {"prompt": "A", "max_tokens": "ten"}},
            "a field that is unknown": {"json": {"prompt": "A", "tempreature": 1.0}},
            "a prompt that is too long": {"json": {"prompt": long}},
            "a body of 2 MiB": {},
        }.items():
            status, said = call(server.url, "/generation", **how) if how else announce(server.url, 2 << 20)
            worker.record("refusal", what=what, status=status, detail=_first(said["detail"]))

    def parity(self, server: served.Served) -> None:
        """Ask the questions one after the other, then all at once; compare each answer with plain transformers'."""
        crowd = min(len(self.asked), self.rows)
        for how, clients, each in (("alone", 1, ALONE), (f"{crowd} at once", crowd, len(self.asked) // crowd)):
            sent = load.send(server.url, self.asked, clients=clients, each=each)
            counts = sent.verdicts()
            label = self.labels[server.url]
            different = len({self.asked[reply.question].truth for reply in sent.answers})
            worker.record("parity", server=label, how=how, answers=len(sent.replies), different=different, **counts)
            worker.log(f"{label}, {how}: {counts['right']} of {len(sent.replies)} as plain transformers")

    def engine(self, server: served.Served) -> None:
        """All questions at once, as the other engines get them; the median of some rounds."""
        rounds = [load.send(server.url, self.asked, clients=len(self.asked), each=1) for _ in range(REPEATS)]
        middle = sorted(rounds, key=lambda sent: sent.seconds)[REPEATS // 2]
        self._engine("this server, over HTTP", self.rows, middle.seconds, [s.seconds for s in rounds], middle)

    def _engine(self, name: str, rows: int, seconds: float, every: list[float], sent: load.Load) -> None:
        tokens = sum(reply.tokens for reply in sent.answers)
        fields = {"engine": name, "rows": rows, "requests": len(sent.replies), "seconds": seconds, "all_seconds": every}
        worker.record("engine", **fields, tokens=tokens, right=sent.verdicts()["right"])

    def metrics(self, server: served.Served) -> None:
        """What /metrics says at the end, without its explanations and buckets."""
        text = urllib3.request("GET", f"{server.url}/metrics", timeout=10).data.decode()
        kept = [
            line
            for line in text.splitlines()
            if not line.startswith("#") and not any(w in line for w in ("_bucket", "_created"))
        ]
        worker.record("metrics", lines=kept)

    def drain(self, server: served.Served) -> None:
        """Ask the server to end while it answers: who was inside still gets an answer."""
        # Long answers, so that SIGTERM comes while all of them are under way.
        asked = [load.Question(question.prompt, 128) for question in self.asked[:DRAINED]]
        with ThreadPoolExecutor(1) as pool:
            inside = pool.submit(load.send, server.url, asked, clients=DRAINED, each=1)
            limit = time.monotonic() + 10
            while (running := scrape(server.url)["opt_running"]) < DRAINED and time.monotonic() < limit:
                time.sleep(0.002)
            began = time.monotonic()
            code = server.stop()
            seconds = time.monotonic() - began
            answers = len(inside.result().answers)
        worker.record("drain", running=running, asked=DRAINED, answers=answers, seconds=seconds, exit_code=code)
        worker.log(f"SIGTERM with {running:.0f} requests inside: {answers} answered, exit code {code}")

    def other_engines(self) -> None:
        """The same questions by plain transformers, in an environment that has continuous batching if there is one."""
        command, environment, version, why = other_python()
        ways = ["alone", "batch"] if why else ["alone", "batch", "continuous"]
        if why:
            worker.record("absent", engine="transformers 5, continuous batching", why=why)
            worker.log(f"no continuous batching by transformers: {why}")
        with tempfile.TemporaryDirectory(prefix="opt-") as folder:
            path = Path(folder, "questions.json")
            path.write_text(json.dumps([{"prompt": q.prompt, "max_tokens": q.max_tokens} for q in self.asked]))
            words = [*command, str(COMPARE), "--checkpoint", str(self.checkpoint), "--questions", str(path)]
            words += ["--rows", str(self.rows), "--device", self.device, "--rounds", str(REPEATS), "--ways", *ways]
            try:
                done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=COMPARE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.record("absent", engine=f"transformers {version}", why=f"no end within {COMPARE_SECONDS} s")
                return
        for line in done.stdout.splitlines():
            row = json.loads(line)
            texts = row.pop("texts")
            right = sum(text == question.truth for text, question in zip(texts, self.asked, strict=True))
            worker.record("engine", engine=ENGINES[row.pop("way")].format(version), **row, right=right)
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
            worker.record("absent", engine=f"transformers {version}", why=f"exit code {done.returncode}: {last[:300]}")


ENGINES = {
    "alone": "transformers {}, generate, one at a time",
    "batch": "transformers {}, generate, fixed batches",
    "continuous": "transformers {}, generate_batch",
}


def other_python() -> tuple[list[str], dict[str, str], str, str]:
    """A Python with transformers 5: its command, environment and version, and why not, where there is none.

    It is the one that HANDSON_TRANSFORMERS5 names, else this one without PYTHONPATH, which on some hosts hides a newer
    transformers of the host's own. Without either it is this Python as it is.
    """
    named = os.environ.get(ENVIRONMENT)
    bare = {name: value for name, value in os.environ.items() if name not in (*served.OF_A_JOB, "PYTHONPATH")}
    bare |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ask = "import importlib.metadata as m; print(m.version('transformers'), m.version('torch'))"
    command = [named or sys.executable]
    try:
        done = subprocess.run([*command, "-c", ask], env=bare, capture_output=True, text=True, timeout=60)
        version = done.stdout.split()[0] if done.returncode == 0 else ""
    except OSError as error:
        worker.refuse(f"{ENVIRONMENT}={named} cannot be started ({error.strerror}): name a Python, or leave it out")
    if version and int(version.split(".")[0]) >= 5:
        return command, bare, version, ""
    import transformers

    own = transformers.__version__
    held = f"has transformers {version}" if version else "has no transformers and torch"
    why = f"{'the Python of ' + ENVIRONMENT if named else 'this host’s Python'} {held}, and it came with 5"
    return [sys.executable], bare | {"PYTHONPATH": os.environ.get("PYTHONPATH", "")}, own, why


def call(url: str, path: str, **how: Any) -> tuple[int, Any]:
    """One request: the status and the JSON that came back. A POST where there is something to send."""
    answer = urllib3.request("POST" if how else "GET", url + path, retries=False, timeout=60, **how)
    return answer.status, answer.json()


def announce(url: str, size: int) -> tuple[int, Any]:
    """Say how large a body will be and read the answer before a byte of it is sent, as curl does with large ones."""
    line = http.client.HTTPConnection(url.removeprefix("http://"), timeout=60)
    line.putrequest("POST", "/generation")
    line.putheader("Content-Type", "application/json")
    line.putheader("Content-Length", str(size))
    line.endheaders()
    answer = line.getresponse()
    return answer.status, json.loads(answer.read())


def scrape(url: str) -> dict[str, float]:
    """The numbers at /metrics, by their names and labels."""
    text = urllib3.request("GET", f"{url}/metrics", retries=False, timeout=60).data.decode()
    lines = [line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


def _first(detail: Any) -> str:
    """A refusal in one line: a schema error names its field."""
    if isinstance(detail, list):
        where = ".".join(f"character {part}" if isinstance(part, int) else part for part in detail[0]["loc"][1:])
        return f"{where}: {detail[0]['msg']}" if where else detail[0]["msg"]
    return str(detail)
