"""What the papers claim of ZeRO, Gemini and offloading, beside what compare.py of the OPT topic measured."""

from __future__ import annotations

from typing import Any

from handson.show.opt_training import in_host, kept, on_device, ways
from handson.show.style import number, relative
from handson.show.tables import lines

ZERO = ("Rajbhandari et al. 2020", "https://arxiv.org/abs/1910.02054")
OFFLOAD = ("Ren et al. 2021", "https://arxiv.org/abs/2101.06840")
README = ("Colossal-AI's README", "https://github.com/hpcaitech/ColossalAI#opt")


def claims(run: Any) -> list[dict[str, Any]]:
    """Return what the papers claim beside what this run of several ranks measured, for `show.paper_table`."""
    memory, taken = kept(run), ways(run)
    sent = {row["way"]: row["bytes"] for row in run.rows("sent", rank=0)}
    parameters, w = run.value("comparison", "parameters"), run.ranks
    total = {way: on_device(row) + in_host(row) for way, row in memory.items()}
    base = "ddp:bf16"

    def share(way: str) -> str:
        return f"{relative(total[base], total[way])} on {w}"

    rows = [
        _claim("bytes a parameter, undivided", "16", number(total[base] / parameters)),
        _claim("memory, ZeRO-1", lines("up to 4× less", _less(4, 12, w)), share("zero1:bf16")),
        _claim("memory, ZeRO-2", lines("up to 8× less", _less(2, 14, w)), share("zero2:bf16")),
        _claim(
            "memory, ZeRO-3", lines("ranks times less", _less(0, 16, w)), share("gemini-static:bf16"),
            why="Gemini's gradients take their weights' place, which saves 2 bytes of 16; its chunks are not full",
        ),
        _claim(
            "bytes sent, ZeRO-1", "as data parallel", relative(sent["zero1:bf16"], sent[base]),
            why="upstream reduces all gradients to every rank, then gathers the weights as well",
        ),
        _claim("bytes sent, ZeRO-2", "as data parallel", relative(sent["zero2:bf16"], sent[base])),
        _claim(
            "bytes sent, ZeRO-3", "1.5× as many", relative(sent["gemini-static:bf16"], sent[base]),
            why="whole chunks are gathered: their padding too, and again for each use of the tied word embedding",
        ),
    ]  # fmt: skip
    if "zero2-offload:bf16" in memory:
        left = number(on_device(memory["zero2-offload:bf16"]) / parameters)
        rows.append(
            _claim(
                "bytes a parameter on the GPU, offloaded", "2", f"{left} on {w}", OFFLOAD,
                "the paper moves each gradient to the host when it is ready, upstream after the backward pass",
            )
        )  # fmt: skip
    slower = relative(taken["gemini-static:bf16"]["median_ms"], taken[base]["median_ms"])
    rows.append(
        _claim(
            "speed of fine-tuning OPT", "45 % faster than DeepSpeed", lines("Gemini's step time", f"{slower} ddp's"),
            README, "another baseline: DeepSpeed is not run here, and this model fits without any division",
        )
    )  # fmt: skip
    return rows


def _less(fixed: int, divided: int, ranks: int) -> str:
    """How many times less than 16 bytes, where `divided` bytes are shared by the ranks."""
    return f"{relative(16, fixed + divided / ranks)} on {ranks}"


def _claim(claim: str, paper: str, measured: str, source: tuple[str, str] = ZERO, why: str = "") -> dict[str, Any]:
    return {
        "claim": claim,
        "paper": paper,
        "measured": measured,
        "source": source,
        "why": why,
    }
