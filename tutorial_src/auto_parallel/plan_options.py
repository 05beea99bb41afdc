"""The command line of plan.py: what was asked, read and checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import plan_machines as machines
from handson import worker
from plan_machines import UnitError
from plan_models import MODELS


@dataclass(frozen=True)
class Case:
    """One machine: its mesh, FLOP/s of a device; for each axis of the mesh bytes a second and seconds of latency."""

    mesh: tuple[int, int]
    flops: float
    bandwidths: tuple[float, float]
    latencies: tuple[float, float]
    label: str


@dataclass(frozen=True)
class Question:
    """Everything that was asked: a model, the machines, and for each of them the budgets [bytes, None: no limit]."""

    model: str
    batch: int
    size: int
    loader: str
    hardware: str
    cases: tuple[Case, ...]
    budgets: tuple[float | None, ...]
    gap: float
    limit: float
    csv: str | None
    nodes: bool
    brief: bool

    def label(self, case: Case, budget: float | None) -> str:
        """What tells one plan of this job from the others."""
        several = [case.label] if len(self.cases) > 1 or len(self.budgets) == 1 else []
        return ", ".join([*several, said(budget)] if len(self.budgets) > 1 else several)


def said(budget: float | None) -> str:
    """A budget in words."""
    return "no budget" if budget is None else f"{budget / machines.GIB:.3g} GiB"


class Parser(argparse.ArgumentParser):
    """argparse whose complaints are one sentence that also reaches the lesson."""

    def error(self, message: str) -> NoReturn:
        worker.refuse(f"{message}; --help lists the options")


def read(argv: list[str] | None, *, prog: str, about: str) -> Question:
    """Read a command line.

    Raises:
        SystemExit: with code 2 after one sentence, where something in it cannot be.
    """
    asked = _parser(prog, about).parse_args(argv)
    try:
        return _question(asked)
    except UnitError as error:
        worker.refuse(str(error))


def _parser(prog: str, about: str) -> Parser:
    known = "; ".join(f"{name} (size: {entry.means})" for name, entry in MODELS.items())
    profiles = [
        "\n  ".join([f"{key}: {one.name}", *(f"{what}: {source}" for what, source in one.sources.items())])
        for key, one in machines.HARDWARE.items()
    ]
    figures = "\n\n".join(profiles)
    parser = Parser(
        prog=prog,
        description=about,
        epilog=f"Figures of --hardware, all peaks:\n\n{figures}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", help=f"one of: {known}")
    add("--mesh", default="2x4", help="devices along the axes, such as 2x4 or 8; several: 2x2,2x4,4x8")
    add("--hardware", default="h200", help=f"whose figures to use: {', '.join(machines.HARDWARE)}")
    add(
        "--bandwidth",
        default="",
        help="of one device in one direction: one figure, or one for each axis: 50GB/s,450GB/s",
    )
    add("--latency", default="", help="of a collective: one figure, or one for each axis: 20us,10us")
    add("--flops", help="of one device; a multiply-accumulate counts as two: 495TFLOPS")
    add("--memory", default="none", help="budget of a device, or several: none,80GiB,40GiB")
    add("--sweep", default="", help="solve once for each of these bandwidths of axis 0: 450GB/s,50GB/s")
    add("--batch", type=int, help="global batch")
    add("--size", type=int, help="the model's size: the side of an image, the tokens of a sequence, a layer's features")
    add(
        "--loader",
        default="distributed",
        help="distributed: a rank is fed its share of the batch; replicated: all of it",
    )
    add("--gap", type=float, default=0.0, help="be content with a plan within this fraction of the best, 0.01 say")
    add("--limit", type=float, default=60.0, help="seconds for one budget")
    add("--csv", metavar="FILE", help="write the nodes of the last plan to this file, its edges beside it")
    add("--nodes", action="store_true", help="print the strategy of every node of the last plan")
    add("--brief", action="store_true", help="for a lesson: record the plans, not the nodes of the first and the last")
    return parser


def _question(asked: argparse.Namespace) -> Question:
    for name, given, known in (
        ("model", asked.model, MODELS),
        ("--hardware", asked.hardware, machines.HARDWARE),
        ("--loader", asked.loader, ("replicated", "distributed")),
    ):
        if given not in known:
            raise UnitError(f"{name} {given} is unknown: use {', '.join(known)}")
    if not 0 <= asked.gap < 1 or not asked.limit > 0:
        raise UnitError("--gap is a fraction from 0 to below 1, --limit a number of seconds above 0")
    if asked.csv:
        _writable(Path(asked.csv))
    entry = MODELS[asked.model]
    batch = entry.batch if asked.batch is None else asked.batch
    size = entry.size if asked.size is None else asked.size
    if size < entry.least:
        raise UnitError(f"--size {size} is too small for {asked.model}: {entry.means}, at least {entry.least}")
    cases = [case for text in _words(asked.mesh, "--mesh") for case in _cases(asked, text, batch)]
    budgets = [None if word == "none" else machines.size(word, "--memory") for word in _words(asked.memory, "--memory")]
    return Question(
        asked.model, batch, size, asked.loader, "given" if asked.flops else asked.hardware, tuple(cases),
        tuple(dict.fromkeys(budgets)), asked.gap, asked.limit, asked.csv, asked.nodes, asked.brief,
    )  # fmt: skip


def _writable(file: Path) -> None:
    """Refuse a file that could not be written now: the plan for it takes a while."""
    folder = file.absolute().parent
    if not folder.is_dir():
        raise UnitError(f"--csv {file} is in a folder that does not exist; make it, or name another")
    if file.is_dir():
        raise UnitError(f"--csv {file} is a folder; name a file in it")
    if not os.access(folder, os.W_OK):
        raise UnitError(f"--csv {file} is in a folder that cannot be written to; name another")


def _cases(asked: argparse.Namespace, text: str, batch: int) -> list[Case]:
    """The machines with this mesh: one, or one for each bandwidth of the sweep."""
    mesh = machines.mesh(text)
    devices = mesh[0] * mesh[1]
    if batch < 1 or batch % devices:
        raise UnitError(
            f"--batch {batch} is not divisible by the {devices} devices of the {text} mesh: use a multiple of "
            f"{devices}, such as {max(1, round(batch / devices)) * devices}"
        )
    hardware = machines.HARDWARE[asked.hardware]
    links = hardware.links(mesh)
    flops = machines.flops(asked.flops) if asked.flops else hardware.flops
    latencies = _per_axis("--latency", asked.latency, machines.latency, [delay for _, delay in links])
    bandwidths = _per_axis("--bandwidth", asked.bandwidth, machines.bandwidth, [rate for rate, _ in links])
    if not asked.sweep:
        return [Case(mesh, flops, bandwidths, latencies, text)]
    several = "," in asked.mesh
    return [
        Case(mesh, flops, (rate, bandwidths[1]), latencies, f"{text}, {_rate(rate)}" if several else _rate(rate))
        for rate in (machines.bandwidth(word, "--sweep") for word in _words(asked.sweep, "--sweep"))
    ]


def _per_axis(option: str, text: str, read_one, usual: list[float]) -> tuple[float, float]:
    given = [read_one(word) for word in _words(text, option)] if text else usual
    if len(given) > 2:
        raise UnitError(f"{option} has {len(given)} figures: give one, or one for each axis of the mesh")
    return given[0], given[-1]


def _words(text: str, option: str) -> list[str]:
    words = [word.strip() for word in text.split(",")]
    if not all(words):
        raise UnitError(f"{option} {text!r} has an empty place: write its values with one comma between them")
    return words


def _rate(value: float) -> str:
    return f"{value / 1e9:g} GB/s"
