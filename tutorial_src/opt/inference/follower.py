"""A rank other than 0: it makes its part of the model, then does what rank 0 says, until rank 0 is gone.

`opt_fastapi.py` starts it; by itself it can do nothing. Orders come through a pair of sockets that only the two know,
not through a collective: an idle rank waits for nothing that could time out.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import traceback
from multiprocessing.connection import Connection
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))  # as in opt_fastapi.py

from options import Options


def main(fd: int) -> None:
    """Follow the rank 0 at the other end of this socket."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches every rank: rank 0 decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    rank0 = Connection(fd)
    options, rank, kind, columns = rank0.recv()
    os.environ["RANK"] = str(rank)
    orders: queue.SimpleQueue[tuple[str, tuple]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(rank0, orders), daemon=True).start()
    try:
        _follow(rank0, orders, options, rank, kind, columns)
    except SystemExit:
        threading.Event().wait()  # rank 0 refuses for the same reason, says why, and ends this process
    except Exception as error:
        traceback.print_exc()
        rank0.send(("failed", f"{type(error).__name__}: {error}".splitlines()[0][:300]))
        sys.stderr.flush()
        os._exit(1)


def _listen(rank0: Connection, orders: queue.SimpleQueue) -> None:
    """Hand the orders on; when rank 0 is gone, end, whatever collective the rest of this process waits in."""
    while True:
        try:
            orders.put(rank0.recv())
        except (EOFError, OSError):
            os._exit(0)


def _follow(rank0: Connection, orders: queue.SimpleQueue, options: Options, rank: int, kind: str, columns: int) -> None:
    import model_part
    from engine import Engine

    model, _ = model_part.load(options, rank, kind, lambda line: None)
    engine = Engine(model, ranks=options.tp, rows=options.max_batch_size, columns=columns)
    rank0.send(("ready", None))
    while True:
        order, arguments = orders.get()
        if order == "alive?":
            rank0.send(("alive", None))
        else:
            getattr(engine, order)(*arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]))
