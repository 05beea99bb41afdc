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
from collections.abc import Iterator

from handson import leases
from handson.processes import stay_below

# Everything a lesson's ranks may need.
PRELOAD = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch.utils.data",
    "transformers.modeling_utils",
    "colossalai.legacy",
    "colossalai.booster",
)
# The part that leaves CUDA untouched whatever colossalai does when it is imported.
PRELOAD_WITHOUT_COLOSSALAI = (
    "torch",
    "torch.distributed",
    "torch._dynamo",
    "torch._inductor",
    "torch.utils.data",
    "transformers.modeling_utils",
)
POLL_SECONDS = 0.02
CUDA_ERROR_NOT_INITIALIZED = 3


def serve(control: socket.socket, flavour: str) -> None:
    """Import what ranks of this flavour need, say so, then fork a rank for each message until the launcher goes away.

    `cpu` and `gpu` import everything, `gpu-without-colossalai` all else.
    """
    began = time.monotonic()
    if flavour == "gpu":
        with _asking_the_driver():
            missing = _import(PRELOAD)
        if _cuda_began():
            os.execv(sys.executable, [*sys.orig_argv[:-1], "gpu-without-colossalai"])
    else:
        missing = _import(PRELOAD if flavour == "cpu" else PRELOAD_WITHOUT_COLOSSALAI)
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


def _import(names: tuple[str, ...]) -> list[str]:
    missing = []
    for name in names:
        # A host without colossalai can still run scripts that do not need it; the rank that does will say so.
        try:
            importlib.import_module(name)
        except ImportError as error:
            missing.append(f"{name}: {error}")
    return missing


@contextlib.contextmanager
def _asking_the_driver() -> Iterator[None]:
    """What colossalai asks of CUDA when it is imported is answered without starting CUDA, while the block runs.

    No process can use a GPU when CUDA was started in the one that it was forked from. quantization/fp8.py and
    bitsandbytes ask for the compute capability, zero/gemini/gemini_optimizer.py for the current device: a new process
    is told the same by CUDA.
    """
    try:
        import torch
    except ImportError:
        yield
        return
    asked = torch.cuda.get_device_capability, torch.cuda.current_device
    torch.cuda.get_device_capability, torch.cuda.current_device = _capability, lambda: 0
    try:
        yield
    finally:
        torch.cuda.get_device_capability, torch.cuda.current_device = asked


def _capability(device: object = None) -> tuple[int, int]:
    """The compute capability of the first GPU, from the driver's management library."""
    library, handle, major, minor = ctypes.CDLL("libnvidia-ml.so.1"), ctypes.c_void_p(), ctypes.c_int(), ctypes.c_int()
    for failed in (
        library.nvmlInit_v2(),
        library.nvmlDeviceGetHandleByIndex_v2(0, ctypes.byref(handle)),
        library.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)),
    ):
        if failed:
            raise RuntimeError(f"the NVIDIA driver does not say which GPU this is: NVML error {failed}")
    return major.value, minor.value


def _cuda_began() -> bool:
    """Whether CUDA was started in this process: then its children could not use it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return driver.cuDeviceGetCount(ctypes.byref(ctypes.c_int())) != CUDA_ERROR_NOT_INITIALIZED


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
            stay_below(parent)
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
    if cores := order["env"].get(leases.CORES):  # before any thread starts
        os.sched_setaffinity(0, map(int, cores.split(",")))
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
    serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2])
