"""Send requests from many clients at once, say how long they took, and check every answer.

    python load.py --clients 32 --seconds 10
    python load.py --clients 64 --seconds 120 --check --checkpoint DIR

Each client asks, waits for the answer, and asks again. With --check every answer must be, letter for letter, what
plain transformers makes of the same prompt alone, with the weights in DIR. Exit code 1 where an answer is wrong,
belongs to another request, or never came.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import urllib3

TEXT = Path(__file__).resolve().parent.parent / "python_reference.txt"
SENTENCES = 16  # that the questions are from
PERCENTILES = (50, 95, 99)
PAUSE_SECONDS = 0.05  # after a refusal, before the client asks again


@dataclass(frozen=True)
class Question:
    """What a client may ask; `truth` is the only right answer, where it is known."""

    prompt: str
    max_tokens: int
    truth: str | None = None


@dataclass(frozen=True)
class Reply:
    """What became of one request. Times are seconds since the load began; `status` is 0 where no answer came."""

    client: int
    question: int
    began: float
    ended: float
    status: int
    text: str = ""
    tokens: int = 0
    why: str = ""

    @property
    def seconds(self) -> float:
        """The request's latency."""
        return self.ended - self.began


@dataclass(frozen=True)
class Load:
    """What `clients` clients got from a server."""

    clients: int
    questions: Sequence[Question]
    replies: Sequence[Reply]

    @property
    def answers(self) -> list[Reply]:
        """The requests that were answered."""
        return [reply for reply in self.replies if reply.status == 200]

    @property
    def seconds(self) -> float:
        """From the first request to the last answer."""
        return max((reply.ended for reply in self.replies), default=0.0)

    def per_second(self) -> float:
        """Answers a second."""
        return len(self.answers) / self.seconds if self.answers else 0.0

    def tokens_per_second(self) -> float:
        """Generated tokens a second."""
        return sum(reply.tokens for reply in self.answers) / self.seconds if self.answers else 0.0

    def latency(self, percent: float) -> float:
        """The latency, in seconds, that so many percent of the answers do not exceed (nearest rank)."""
        times = sorted(reply.seconds for reply in self.answers)
        return times[max(0, math.ceil(percent / 100 * len(times)) - 1)] if times else math.nan

    def verdicts(self) -> Counter[str]:
        """How many requests were `right`, `wrong`, `mixed` (another request's answer), `refused` (406) or `lost`."""
        others = {question.truth for question in self.questions if question.truth is not None}
        return Counter(_verdict(reply, self.questions[reply.question].truth, others) for reply in self.replies)

    def fields(self) -> dict[str, Any]:
        """The figures of this load as one row: rates per second, latencies in milliseconds, counts."""
        counts = self.verdicts()
        times = [reply.seconds for reply in self.answers]
        return {
            "clients": self.clients,
            "seconds": round(self.seconds, 3),
            "requests": len(self.replies),
            "answers": len(self.answers),
            "per_second": self.per_second(),
            "tokens_per_second": self.tokens_per_second(),
            "mean_ms": 1e3 * sum(times) / len(times) if times else math.nan,
            **{f"p{p}_ms": 1e3 * self.latency(p) for p in PERCENTILES},
            **{name: counts[name] for name in ("right", "wrong", "mixed", "refused", "lost")},
        }


def _verdict(reply: Reply, truth: str | None, others: set[str]) -> str:
    if reply.status == 406:
        return "refused"
    if reply.status != 200:
        return "lost"
    if truth is None:
        return "unchecked"
    if reply.text == truth:
        return "right"
    return "mixed" if reply.text in others else "wrong"


def sentences(count: int, text: Path = TEXT) -> list[str]:
    """So many different sentences, taken evenly from a text; by default the one of the fine-tuning lesson.

    Raises:
        ValueError: when the text does not hold so many.
    """
    words = " ".join(text.read_text(encoding="utf-8").split())
    found = list(dict.fromkeys(re.findall(r"(?<=\. )[A-Z][a-z][^.*=()\"`]{90,170}\.(?= )", words)))
    if len(found) < count:
        raise ValueError(f"{text.name} holds {len(found)} sentences of the right length, not {count}")
    return found[:: len(found) // count][:count]


def questions(count: int, max_tokens: Sequence[int], text: Path = TEXT) -> list[Question]:
    """So many different questions: openings of 3, 5, 7 ... words of SENTENCES sentences, lengths in turn."""
    learned = sentences(SENTENCES, text)
    asked = []
    for index in range(count):
        again, which = divmod(index, SENTENCES)
        opening = " ".join(learned[which].split()[: 3 + 2 * again])
        asked.append(Question(opening, max_tokens[(index + again) % len(max_tokens)]))
    return list(dict.fromkeys(asked))


def excerpt(copies: int, text: Path = TEXT) -> str:
    """The sentences that the questions are from, `copies` times, each time in another order."""
    draw, learned, paragraphs = random.Random(0), sentences(SENTENCES, text), []
    for _ in range(copies):
        draw.shuffle(learned)
        paragraphs.append(" ".join(learned))
    return "\n\n".join(paragraphs)


def send(
    url: str,
    asked: Sequence[Question],
    *,
    clients: int,
    seconds: float | None = None,
    each: int | None = None,
    timeout: float = 300.0,
) -> Load:
    """Let `clients` clients ask at once, for so many seconds, or `each` questions a client.

    A request that was begun in time is waited for. Client c begins with question c, so that clients who ask at the
    same time ask different questions where there are enough.

    Raises:
        ValueError: unless exactly one of `seconds` and `each` is given.
    """
    if (seconds is None) == (each is None):
        raise ValueError("say how long (seconds) or how often (each) a client asks, and only one of them")
    replies: list[Reply] = []
    pool = urllib3.PoolManager(num_pools=1, maxsize=clients, block=True, retries=False, timeout=timeout)
    gate = threading.Barrier(clients + 1)
    start = [0.0]

    def client(number: int) -> None:
        gate.wait()
        begun = 0
        while begun < each if each is not None else time.perf_counter() - start[0] < seconds:
            index = (number + begun * clients) % len(asked) if each is not None else (number + begun) % len(asked)
            reply = _ask(pool, url, asked[index], number, index, start[0])
            replies.append(reply)
            if reply.status != 200:
                time.sleep(PAUSE_SECONDS)
            begun += reply.status != 406 or each is None

    threads = [threading.Thread(target=client, args=(number,), daemon=True) for number in range(clients)]
    for thread in threads:
        thread.start()
    start[0] = time.perf_counter()
    gate.wait()
    for thread in threads:
        thread.join()
    pool.clear()
    return Load(clients, asked, sorted(replies, key=lambda reply: reply.began))


def _ask(pool: urllib3.PoolManager, url: str, question: Question, client: int, index: int, start: float) -> Reply:
    body = {"prompt": question.prompt, "max_tokens": question.max_tokens}
    began = time.perf_counter() - start
    status, text, tokens, why = 0, "", 0, ""
    try:
        answer = pool.request("POST", f"{url}/generation", json=body)
        said = answer.json()
        status = answer.status
        if status == 200:
            text, tokens = said["text"], said["tokens"]
        else:
            why = str(said.get("detail", said))
    except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
        status, why = 0, f"{type(error).__name__}: {error}"
    return Reply(client, index, began, time.perf_counter() - start, status, text, tokens, why)


def with_truth(asked: Sequence[Question], checkpoint: str, *, device: str = "cpu") -> list[Question]:
    """The same questions with what plain transformers answers: one prompt at a time, greedy, in single precision."""
    return [
        Question(question.prompt, question.max_tokens, text)
        for question, text in zip(asked, greedy(asked, checkpoint, device=device), strict=True)
    ]


def greedy(asked: Sequence[Question], checkpoint: str, *, device: str = "cpu") -> Iterator[str]:
    """What plain `transformers` says to each question by itself."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, torch_dtype=torch.float32).to(device).eval()
    for question in asked:
        ids = tokenizer(question.prompt, return_tensors="pt")["input_ids"].to(device)
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=question.max_tokens, do_sample=False
            )
        yield tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def main() -> int:
    """Read the command line, send the load, print what came of it; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:7070")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--max_tokens", type=int, nargs="+", default=[32], help="taken in turn by the questions")
    parser.add_argument("--questions", type=int, default=64, help="how many different prompts there are")
    parser.add_argument("--check", action="store_true", help="compare every answer with plain transformers'")
    parser.add_argument("--checkpoint", help="the folder that the server serves; needed by --check")
    parser.add_argument("--device", default="cpu", help="where --check computes the right answers")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    parser.error = _refuse
    options = parser.parse_args()
    if options.clients < 1 or options.seconds <= 0 or options.questions < 1 or min(options.max_tokens) < 1:
        parser.error("--clients, --seconds, --questions and --max_tokens must be above 0")
    options.url = options.url.rstrip("/")
    if options.check and not options.checkpoint:
        parser.error("--check needs --checkpoint DIR, the folder that the server serves")
    try:
        if options.check:
            _whole(Path(options.checkpoint))
        asked = questions(options.questions, options.max_tokens)
    except ValueError as error:
        parser.error(str(error))
    try:
        urllib3.request("GET", f"{options.url}/health", retries=False, timeout=10)
    except (urllib3.exceptions.HTTPError, ValueError) as error:
        parser.error(
            f"no server answers at {options.url} ({type(error).__name__}); start opt_fastapi.py, or give --url"
        )
    if options.check:
        try:
            asked = with_truth(asked, options.checkpoint, device=options.device)
        except (OSError, RuntimeError, ValueError) as error:
            why = str(error).strip().splitlines()[0].rstrip(".:")
            parser.error(f"plain transformers cannot use --checkpoint {options.checkpoint} on {options.device}: {why}")
    load = send(options.url, asked, clients=options.clients, seconds=options.seconds)
    figures = load.fields()
    print(json.dumps(figures) if options.json else _report(load, figures))
    return int(figures["wrong"] + figures["mixed"] + figures["lost"] > 0)


def _whole(folder: Path) -> None:
    """Look at the folder as the server does before it loads anything.

    Raises:
        ValueError: in one sentence, when it cannot be served.
    """
    sys.path.append(str(Path(__file__).resolve().parent.parent))  # as in opt_fastapi.py
    import manifest

    try:
        manifest.servable(folder)
    except manifest.Unusable as fault:
        raise ValueError(f"--checkpoint {folder}: {fault}") from None


def _refuse(sentence: str) -> NoReturn:
    print(f"error: {sentence}", file=sys.stderr)
    raise SystemExit(2)


def _report(load: Load, figures: dict[str, Any]) -> str:
    lines = [
        f"{load.clients} clients, {load.seconds:.1f} s: {figures['answers']} answers, {figures['per_second']:.3g} a "
        f"second, {figures['tokens_per_second']:.4g} tokens a second",
        "latency " + ", ".join(f"p{p} {load.latency(p):.3g} s" for p in PERCENTILES),
    ]
    if any(question.truth is not None for question in load.questions):
        different = len({question.truth for question in load.questions})
        lines.append(
            f"checked against plain transformers ({different} different answers): {figures['right']} right, "
            f"{figures['wrong']} wrong, {figures['mixed']} another request's"
        )
    lines.append(f"{figures['lost']} lost, {figures['refused']} refused because the queue was full")
    lines += [f"  {count} x {why}" for why, count in Counter(r.why for r in load.replies if r.why).most_common(5)]
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
