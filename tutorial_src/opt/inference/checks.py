"""What can be said before anything heavy is loaded: can the port be had, is the folder whole, do the ranks fit?"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path

import manifest
from handson import worker
from options import Options

BACKLOG = 2048


@dataclass(frozen=True)
class Bounds:
    """What the server must know of a model before it is loaded."""

    layers: int
    hidden: int
    heads: int
    positions: int


def check(options: Options) -> Bounds:
    """The sizes of the model that is asked for.

    Raises:
        SystemExit: with code 2 and one sentence, when it cannot be served as asked.
    """
    bounds = _folder(Path(options.checkpoint)) if options.checkpoint else _known(options.model)
    if bounds.heads % options.tp:
        fit = ", ".join(str(ranks) for ranks in range(1, bounds.heads + 1) if bounds.heads % ranks == 0)
        worker.refuse(f"--tp {options.tp} does not divide the model's {bounds.heads} attention heads: use one of {fit}")
    gpus = 0 if options.device == "cpu" else _gpus()
    if gpus < options.tp and (gpus or options.device == "cuda"):
        worker.refuse(f"--tp {options.tp} needs a GPU for each rank, this host has {gpus}: lower --tp, or --device cpu")
    if options.checkpoint:
        _called_right(options, bounds)
    return bounds


def bind(host: str, port: int) -> socket.socket:
    """Take the port before anything is loaded.

    Raises:
        SystemExit: with code 2 and one sentence, when it cannot be had.
    """
    try:
        listener = socket.socket(_family(host))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        worker.refuse(f"--http_host {host} --http_port {port} cannot be had: {error.strerror}")
    listener.setblocking(False)
    return listener


def meeting_port(host: str, port: int) -> int:
    """The port at which the ranks of this host meet: the one that is asked for, or for 0 a free one.

    Raises:
        SystemExit: with code 2 and one sentence, when they cannot meet there.
    """
    try:
        with socket.socket(_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return probe.getsockname()[1]
    except OSError as error:
        worker.refuse(
            f"--master_host {host} --master_port {port} cannot be had: {error.strerror}; the ranks are all on this "
            "host, leave both out"
        )


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def device_kind(options: Options) -> str:
    """`cuda` or `cpu`: the CPU is taken where it is asked for, and on a host without a GPU."""
    return "cuda" if options.device == "cuda" or (options.device == "auto" and _gpus()) else "cpu"


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _known(model: str) -> Bounds:
    from models import SIZES, size_name

    size = size_name(model)
    if size is None:
        names = ", ".join(f"opt-{name}" for name in SIZES)
        worker.refuse(f"{model} is no OPT model: use one of {names}, or a name of your own with --checkpoint DIR")
    shape = SIZES[size]
    return Bounds(shape.layers, shape.hidden, shape.heads, shape.positions)


def _folder(folder: Path) -> Bounds:
    """Read config.json, and of the other files what says whether they are whole."""
    try:
        said = manifest.servable(folder)
    except manifest.Unusable as fault:
        worker.refuse(f"--checkpoint {folder}: {fault}")
    return Bounds(*(said[key] for key in manifest.SIZES[:4]))


def _called_right(options: Options, found: Bounds) -> None:
    """A folder may be called anything, but not by the name of another size."""
    from models import SIZES, size_name

    size = size_name(options.model)
    if size is None or (found.layers, found.hidden) == (SIZES[size].layers, SIZES[size].hidden):
        return
    right = [f"opt-{name}" for name, s in SIZES.items() if (s.layers, s.hidden) == (found.layers, found.hidden)]
    worker.refuse(
        f"--checkpoint {options.checkpoint}: {found.layers} layers of width {found.hidden} are not {options.model}; "
        f"call it {right[0] if right else 'by a name that is no published size'}"
    )
