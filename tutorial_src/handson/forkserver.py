"""A process that imports the heavy modules once and then forks ranks that start in milliseconds.

A cold import of torch and colossalai costs about ten CPU-seconds a rank; on a laptop an 8-rank job would spend a
minute on imports alone. Python's own forkserver re-imports the caller's main module in every child, which for a
lesson means running the lesson again, so this one is written out: it takes one message per rank on a socket
(SOCK_SEQPACKET keeps messages whole) with three pipe ends attached, forks, and reports each exit.

No rank outlives its job: when the launcher goes away, by whatever death, the socket closes and every rank is
killed; when this process goes away the kernel kills its ranks (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import time

# Everything a lesson's ranks may need. Importing it initialises CUDA in this process when a GPU is visible, after
# which no child could use that GPU; so this list serves jobs that run on the CPU, with GPUs hidden.
PRELOAD_CPU = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch.utils.data",
    "transformers.modeling_utils",
    "colossalai.legacy",
    "colossalai.booster",
)
# The part that leaves CUDA untouched (with PYTORCH_NVML_BASED_CUDA_CHECK=1).
PRELOAD_GPU = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.data",
    "transformers.modeling_utils",
)
POLL_SECONDS = 0.02
PR_SET_PDEATHSIG = 1


def serve(control: socket.socket, preload: tuple[str, ...]) -> None:
    """Import `preload`, say so, then fork a rank for each message until the launcher goes away."""
    began = time.monotonic()
    missing = []
    for name in preload:
        # A host without colossalai can still run scripts that do not need it; the rank that does will say so.
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    # What is loaded stays: a rank's garbage collector must neither walk it nor, by doing so, copy its pages.
    gc.collect()
    gc.freeze()
    _send(control, ready=time.monotonic() - began, missing=missing)
    ranks: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([control], [], [], POLL_SECONDS if ranks else None)
        if readable:
            message, fds, _, _ = socket.recv_fds(control, 1 << 20, 8)
            if not message:
                break
            order = json.loads(message)
            if order["do"] == "fork":
                ranks[_fork(control, order, fds)] = order["rank"]
            elif order["do"] == "signal":
                for pid, rank in ranks.items():
                    if order["rank"] in (None, rank):
                        _signal(pid, order["signal"])
        for pid in list(ranks):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                _signal(pid, signal.SIGKILL)  # whatever the rank itself started and left behind
                _send(control, exit=ranks.pop(pid), status=status)
    for pid in ranks:
        _signal(pid, signal.SIGKILL)


def _signal(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def _send(control: socket.socket, **message: object) -> None:
    with contextlib.suppress(BrokenPipeError):
        control.send(json.dumps(message).encode())


def _fork(control: socket.socket, order: dict, fds: list[int]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, 0)
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:
                os._exit(1)
            control.close()
            out, err, rows = fds
            os.dup2(out, 1)
            os.dup2(err, 2)
            order["env"]["HANDSON_ROWS_FD"] = str(rows)
            code = _run(order)
        finally:
            os._exit(code)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.setpgid(pid, pid)
    for fd in fds:
        os.close(fd)
    return pid


def _run(order: dict) -> int:
    """In the child: run the script as `__main__`; return its exit code."""
    import faulthandler
    import runpy
    import traceback

    # The launcher asks a rank that hangs where it is, by SIGUSR1.
    faulthandler.register(signal.SIGUSR1, file=sys.stderr, all_threads=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.stdout.reconfigure(line_buffering=True)
    os.environ.clear()
    os.environ.update(order["env"])
    os.chdir(order["cwd"])
    sys.argv = [order["script"], *order["argv"]]
    # Python tells a stale .pyc by the second and the size of its source; an edit may change neither.
    sys.dont_write_bytecode = True
    sys.path.insert(0, order["cwd"])  # the server itself runs with -P: no folder of the caller's is on its path
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(int(order["env"].get("OMP_NUM_THREADS", 1)))
    code = 0
    try:
        runpy.run_path(order["script"], run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
            _tell("_refused", message=stop.code.removeprefix("error: "))
    except BaseException as error:
        code = 1
        report = traceback.TracebackException.from_exception(error)
        own = [frame for frame in report.stack if "runpy" not in frame.filename and frame.filename != __file__]
        report.stack = traceback.StackSummary.from_list(own)
        text = "".join(report.format()).rstrip()
        # Told before this process lets go of its sockets, so that it is earlier than its peers' complaints.
        _tell("_failed", error=f"{type(error).__name__}: {error}", traceback=text, at=time.monotonic())
        print(text, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    distributed = sys.modules.get("torch.distributed")
    if code == 0 and distributed is not None and distributed.is_initialized():
        distributed.destroy_process_group()
    return code


def _tell(kind: str, **fields: object) -> None:
    from handson import worker

    worker.record(kind, **fields)


if __name__ == "__main__":
    serve(
        socket.socket(fileno=int(sys.argv[1])),
        PRELOAD_GPU if sys.argv[2] == "gpu" else PRELOAD_CPU,
    )
