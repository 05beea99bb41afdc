"""Tables of the serving lesson: answers against plain transformers, loads, engines, refusals, the papers."""

from __future__ import annotations

import re
from typing import Any

from handson.show.conditions import RunLike, Runs, conditions, crowded, hardware
from handson.show.serving_plots import BATCHED, SERIAL
from handson.show.style import listed, number, quantity, relative
from handson.show.tables import Table, code, failure, lines, soft


def example_table(run: RunLike) -> Table:
    """Some prompts and what the server made of them."""
    body = []
    for row in run.rows("example"):
        said = row["answer"]
        body.append([row["body"]["prompt"], said["text"].strip(), said["tokens"], said["finish_reason"]])
    return Table(["prompt", "text", "tokens", "finish_reason"], body, "Greedy answers of the fine-tuned model")


def parity_table(runs: Runs) -> Table:
    """Whether each server's greedy answers are those of plain transformers: alone, at once, and under load."""
    body = []
    for run in runs.values():
        for row in run.rows("parity"):
            body.append(_verdict(row["server"], row["how"], row["answers"], row.get("right", 0), row["different"]))
        different = run.rows("questions")[0]["different"]
        for server in dict.fromkeys(row["server"] for row in run.rows("load")):
            rows = [row for row in run.rows("load") if row["server"] == server]
            total = sum(row["requests"] for row in rows)
            how = f"under load, {listed([str(row['clients']) for row in rows])} clients"
            body.append(_verdict(server, how, total, sum(row["right"] for row in rows), different))
        for row in run.rows("engine"):
            if row["engine"] != OURS:
                given = row["requests"]
                body.append(_verdict(_named(row["engine"]), f"{given} given", given, row["right"], different))
    notes = [
        "Right: the same text, letter for letter, as transformers' own generate makes of the same prompt alone, from "
        "the same checkpoint. Different answers: so many of the right answers differ, so that an answer given to the "
        "wrong client would be seen."
    ]
    columns = ["engine", "asked", "right", "different answers", "verdict"]
    return Table(columns, body, "The same answers?", notes)


def _named(engine: str) -> object:
    """An engine's name in two lines: what is called, and of what."""
    of, _, what = engine.partition(", ")
    return lines(what, soft(of)) if what else engine


def _verdict(server: object, how: str, answers: int, right: int, different: int) -> list[Any]:
    good = answers > 0 and right == answers
    verdict = "equal" if good else failure(f"{answers - right} DIFFERENT")
    return [server, how, f"{right} of {answers}", different, verdict]


def load_table(runs: Runs) -> Table:
    """Each load: answers a second, the mean batch of a step, latencies, and lost or refused requests."""
    body, turns = [], []
    for run in runs.values():
        for row in run.rows("load"):
            if crowded(run) and row["server"] not in turns:
                turns.append(row["server"])
            body.append(
                [
                    lines(row["server"], soft(hardware(run))),
                    row["clients"],
                    number(row["per_second"]),
                    number(row["mean_batch"]),
                    quantity(row["mean_step_ms"], "ms"),
                    *[quantity(row[f"p{p}_ms"], "ms") for p in (50, 95, 99)],
                    row["lost"] + row["wrong"] + row["mixed"],
                ]
            )
    notes = [
        "Batch and step: requests in a step and its time, as the server itself counted during the load (/metrics)."
    ]
    if turns:
        notes.append(f"{listed(turns)}: more ranks than CPU cores, so they took turns; these say nothing about speed.")
    columns = ["server", "clients", "answers/s", "batch", "step", "p50", "p95", "p99", "lost or wrong"]
    return Table(columns, body, "Every load", notes)


def gain(run: RunLike, clients: int = 32) -> float:
    """How many times the answers a second batching gives at so many clients, in the same run."""
    rate = {row["server"]: row["per_second"] for row in run.rows("load") if row["clients"] == clients}
    return rate[BATCHED] / rate[SERIAL]


def little_rows(run: RunLike) -> list[dict[str, Any]]:
    """Rows for `show.formula_table`: the mean latency that throughput and clients leave (Little's law)."""
    return [
        {
            "what": row["server"],
            "clients": row["clients"],
            "formula": "clients ÷ answers a second",
            "expected": row["clients"] / row["per_second"],
            "counted": row["mean_ms"] / 1e3,
            "unit": "s",
        }
        for row in run.rows("load")
        if row["closed"] and row["clients"] > 1
    ]


def memory_rows(runs: Runs) -> list[dict[str, Any]]:
    """Rows for `show.formula_table`: the keys and values that a rank keeps, by formula and by the server's word."""
    found = []
    for run in runs.values():
        shape = run.rows("model")[0]
        for row in run.rows("server"):
            said = re.search(r"keys and values: ([\d,]+) MiB a rank", "\n".join(row["log"]))
            size = 2 * 4 * shape["layers"] * shape["hidden"] / row["tp"] * row["max_batch_size"] * shape["positions"]
            found.append(
                {
                    "what": row["label"],
                    "ranks": row["tp"],
                    "formula": "2 × 4 B × layers × hidden ÷ tp × rows × tokens",
                    "expected": size,
                    "counted": int(said[1].replace(",", "")) * 2**20 if said else None,
                    "unit": "B",
                }
            )
    return found


OURS = "this server, over HTTP"


def engine_table(run: RunLike) -> Table:
    """The same questions by other engines on the same device; and which engine is absent, and why."""
    rows = run.rows("engine")
    ours = next(row for row in rows if row["engine"] == OURS)
    body = []
    for row in rows:
        rate = row["requests"] / row["seconds"]
        right = f"{row['right']} of {row['requests']}"
        body.append(
            [_named(row["engine"]), row["rows"], quantity(row["seconds"], "s"), quantity(rate, "answers/s"),
             relative(ours["seconds"], row["seconds"]), right]
        )  # fmt: skip
    for row in run.rows("absent"):
        body.append([_named(row["engine"]), "—", f"absent: {row['why']}", "—", "—", "—"])
    notes = [
        f"{ours['requests']} questions given at once, answers of {listed(_lengths(run))} tokens; the median of "
        f"{len(ours['all_seconds'])} rounds (one at a time: one round). The others are called inside their process, "
        "this server is asked by as many clients over HTTP. Rows: requests that may share a step."
    ]
    columns = ["engine", "rows", "all answered in", "answers", "× this server", "right"]
    return Table(columns, body, "Side by side", notes)


def _lengths(run: RunLike) -> list[str]:
    return [str(length) for length in run.rows("questions")[0]["lengths"]]


def refusal_table(run: RunLike) -> Table:
    """What the server refuses, with which status, in which words."""
    body = [[row["what"], row["status"] or failure("no answer"), row["detail"]] for row in run.rows("refusal")]
    return Table(["request", "status", "detail"], body, "What is refused")


ORCA = ("Yu et al. 2022, Orca", "https://www.usenix.org/conference/osdi22/presentation/yu")
VLLM = ("Kwon et al. 2023, vLLM", "https://arxiv.org/abs/2309.06180")
ENERGON = ("Du et al. 2022, EnergonAI", "https://arxiv.org/abs/2209.02341")


def claims(run: RunLike, divided: RunLike) -> list[dict[str, Any]]:
    """Rows for `show.paper_table`: what batching and tensor parallelism gained here, beside the papers."""
    rate = {row["engine"]: row["requests"] / row["seconds"] for row in run.rows("engine")}
    fixed = next((value for name, value in rate.items() if name.endswith("fixed batches")), None)
    paged = next((value for name, value in rate.items() if name.endswith("generate_batch")), None)
    against = f"{relative(rate[OURS], fixed)} fixed batches" if fixed else "not measured"
    absent = next((row["why"] for row in run.rows("absent")), "")
    if crowded(divided) or conditions(divided) != conditions(run):
        faster = "not comparable here: the ranks shared cores or ran on other hardware"
    else:
        one, more = (_ms_a_token(found, name) for found, name in ((run, BATCHED), (divided, f"tp {divided.ranks}")))
        faster = f"tp {divided.ranks}: {relative(more, one)} the time a token of one rank, one client"
    return [
        {
            "claim": "continuous batching: throughput",
            "paper": "36.9× FasterTransformer at equal latency, 175 billion parameters",
            "measured": f"{against}; {relative(gain(run), 1)} one at a time, 32 clients",
            "source": ORCA,
            "why": "unequal answers make fixed batches wait: the gain grows with their spread and with the batch",
        },
        {
            "claim": "a paged cache: throughput",
            "paper": "2 to 4× Orca and FasterTransformer at equal latency",
            "measured": f"transformers: {relative(paged, rate[OURS])} this server" if paged else f"absent: {absent}",
            "source": VLLM,
            "why": "paging pays where memory limits the batch; here every row has room for the longest text",
        },
        {
            "claim": "tensor parallelism: latency",
            "paper": "37 % less than FasterTransformer",
            "measured": faster,
            "source": ENERGON,
            "why": "another comparison: the paper's is between two engines on several GPUs; here one rank holds the "
            "model with ease, and two pay for every exchange",
        },
    ]  # fmt: skip


def _ms_a_token(run: RunLike, server: str) -> float:
    """One client's time for a token; not the latency, for the servers' questions have answers of unlike lengths."""
    (row,) = [row for row in run.rows("load") if row["server"] == server and row["clients"] == 1]
    return 1e3 / row["tokens_per_second"]


def sources(run: RunLike) -> Table:
    """What was served and how it was started."""
    tuned = run.rows("fine_tuned")[0]
    body = [["fine-tuned by", code(tuned["command"])], ["loss", f"{number(tuned['first'])} to {number(tuned['last'])}"]]
    body += [[f"served by, {row['label']}", code(row["command"])] for row in run.rows("server")]
    return Table(["step", "how"], body, "What is served")
