"""colossalai's activation-checkpoint solvers call what is gone, or was never shipped: three cures.

Rotor's table is computed here with numpy, over all memory slots at once: entry for entry what upstream's Python
computes (tests/test_auto_checkpoint.py compares them), in a fiftieth of its time or less, without a compiler.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from handson.repairs import Repair

if TYPE_CHECKING:
    import numpy as np

GONE = "colossalai.utils.activation_checkpoint"


def _checkpoint_is_gone() -> bool:
    import colossalai.utils

    return not hasattr(colossalai.utils, "activation_checkpoint")


def _bring_checkpoint_back() -> None:
    import colossalai.utils
    from torch.utils.checkpoint import checkpoint as torch_checkpoint

    def checkpoint(function: Any, activation_offload: bool, *args: Any, use_reentrant: bool = False) -> Any:
        if activation_offload:
            raise NotImplementedError("activation_offload=True: torch.utils.checkpoint keeps activations on the device")
        return torch_checkpoint(function, *args, use_reentrant=use_reentrant)

    module = ModuleType(GONE)
    module.checkpoint = checkpoint
    sys.modules[GONE] = colossalai.utils.activation_checkpoint = module


def _chen_misplaces_its_arguments() -> bool:
    import inspect

    from colossalai.auto_parallel.checkpoint import CheckpointSolverChen

    return "super().__init__(graph, 0, 0, True, cnode)" in inspect.getsource(CheckpointSolverChen.__init__)


def _give_chen_its_arguments() -> None:
    from copy import deepcopy

    from colossalai.auto_parallel.checkpoint import CheckpointSolverChen
    from colossalai.auto_parallel.checkpoint.ckpt_solver_base import CheckpointSolverBase

    def __init__(self: Any, graph: Any, cnode: list[str] | None = None, num_grids: int = 6) -> None:
        CheckpointSolverBase.__init__(self, graph, free_memory=0, requires_linearize=True, cnode=cnode)
        self.num_grids = num_grids

    def solve(self: Any) -> Any:
        for region, (start, stop) in enumerate(self.grid_search()):
            for node in (node for stage in self.node_list[start:stop] for node in stage):
                node.meta["activation_checkpoint"] = [region]
        return deepcopy(self.graph)

    CheckpointSolverChen.__init__ = __init__
    CheckpointSolverChen.solve = solve


def _no_compiled_table() -> bool:
    from importlib.util import find_spec

    return find_spec("colossalai.auto_parallel.checkpoint.rotorc") is None


def _compute_table_with_numpy() -> None:
    from colossalai.auto_parallel.checkpoint import CheckpointSolverRotor

    CheckpointSolverRotor._compute_table_c = staticmethod(rotor_table)


def rotor_table(chain: Any, mmax: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotor's dynamic programme (Beaumont et al. 2019, https://arxiv.org/abs/1911.13214), vectorised over memory.

    Args:
        chain: colossalai's `Chain` of n stages, its sizes in memory slots. It may have `skipped`, which upstream does
            not know: the seconds of each stage's forward pass that a recomputation saves when it ends with this
            stage, because torch.utils.checkpoint stops once backward has all it needs.
        mmax: number of memory slots.

    Returns:
        `cost[m, i, j]`, the least time to run stages i..j forward and backward in m slots (infinite where it does not
        fit), and `back[m, i, j]`, a pair: (1, 0) to run stage i keeping everything, (0, k) to keep only its input and
        run on to stage k; shapes [mmax + 1, n + 1, n + 1] and [mmax + 1, n + 1, n + 1, 2]. Indexed as upstream's lists.
    """
    import numpy as np

    stages, slots = len(chain) + 1, mmax + 1
    time, backward_time = [*chain.ftime, 0.0], chain.btime
    x, everything = [*chain.x, 0], [*chain.xbar, 0]
    forward_extra, backward_extra = [*chain.ftmp, 0], [*chain.btmp, 0]
    skipped = [*getattr(chain, "skipped", [0.0] * len(chain)), 0.0]
    # Infinite costs lie before memory 0, so that "with s slots less" is the same row, read s entries earlier.
    padded = np.full((stages, stages, 2 * slots), np.inf)
    cost = padded[:, :, slots:]
    chosen = np.zeros((stages, stages, slots), dtype=np.int32)  # 0: keep everything; k: run on to stage k

    def with_less(i: int, j: int, taken: int) -> np.ndarray:
        taken = min(taken, slots)
        return padded[i, j, slots - taken : 2 * slots - taken]

    for i in range(stages):
        least = x[i + 1] + everything[i + 1] + max(forward_extra[i], backward_extra[i])
        cost[i, i, least:] = time[i] + backward_time[i] - skipped[i]
    for length in range(1, stages):
        for i in range(stages - length):
            j = i + length
            least = x[j + 1] + x[i + 1] + forward_extra[i]
            if length > 1:
                least = max(least, x[j + 1] + max(x[k] + x[k + 1] + forward_extra[k] for k in range(i + 1, j)))
            if least >= slots:
                continue
            run_on = np.empty((length, slots))
            for row, k in zip(run_on, range(i + 1, j + 1), strict=True):
                # The order of these additions is upstream's, so that equal costs stay equal to the last bit.
                np.add(sum(time[i:k]), with_less(k, j, x[k]), out=row)
                row += cost[i, k - 1]
            best = run_on.argmin(axis=0)
            leaf = np.take_along_axis(run_on, best[None], axis=0)[0]
            keep = cost[i, i] + skipped[i] + with_less(i + 1, j, everything[i + 1])
            cost[i, j, least:] = np.minimum(leaf, keep)[least:]
            chosen[i, j] = np.where(leaf <= keep, best + i + 1, 0)
    pointers = np.stack([chosen == 0, chosen], axis=-1)
    return np.moveaxis(cost, -1, 0), np.moveaxis(pointers, 2, 0)


REPAIRS = (
    Repair(
        name="activation",
        area="activation checkpoint",
        symptom="AttributeError: module 'colossalai.utils' has no attribute 'activation_checkpoint', from the "
        "generated code",
        cause="fx/codegen/activation_checkpoint_codegen.py:232 writes calls of a module that 0.3 removed; "
        "torch.utils.checkpoint serves",
        upstream="",
        where="CPU and CUDA",
        needed=_checkpoint_is_gone,
        patch=_bring_checkpoint_back,
    ),
    Repair(
        name="chen",
        area="activation checkpoint",
        symptom="TypeError: unsupported operand type(s) for +: 'NoneType' and 'int', from CheckpointSolverChen",
        cause="auto_parallel/checkpoint/ckpt_solver_chen.py:33 gives its base four arguments by wrong position; :49 "
        "labels a node with a number where the code generator reads a list",
        upstream="",
        where="CPU and CUDA",
        needed=_chen_misplaces_its_arguments,
        patch=_give_chen_its_arguments,
    ),
    Repair(
        name="rotor",
        area="activation checkpoint",
        symptom="rotorc built failed! Using python version!, after a compiler has run in vain, at every solve; then "
        "21 to 24 s in Python for GPT-2 medium",
        cause="ckpt_solver_rotor.c is in neither the wheel nor the sdist, and auto_parallel/checkpoint/"
        "ckpt_solver_rotor.py:278 tries to build it each time",
        upstream="",
        where="CPU and CUDA",
        needed=_no_compiled_table,
        patch=_compute_table_with_numpy,
    ),
)
