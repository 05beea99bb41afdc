"""GPipe's order out of the parts of Colossal-AI's 1F1B schedule: all forwards, then all backwards.

Upstream has it in `legacy.pipeline.rpc` alone, an engine of its own over torch's RPC; this is its order (and the test
says so) for the engine that the tutorial uses. The two orders take equally long; they differ in how many
micro-batches a stage holds at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any

import colossalai.legacy.communication as comm
import torch
from colossalai.legacy.context import ParallelMode
from colossalai.legacy.core import global_context as gpc
from colossalai.legacy.engine import Engine
from colossalai.legacy.engine.schedule import PipelineSchedule
from handson import worker


class GPipeSchedule(PipelineSchedule):
    """Every micro-batch forward, then every one backward, both in their order."""

    def forward_backward_step(self, engine: Engine, data_iter: Iterator, **ignored: Any) -> tuple[None, None, Any]:
        """Run one batch; the loss on the last stage, None on the others."""
        self.load_batch(data_iter)
        cut = {"scatter_gather_tensors": self.scatter_gather_tensors}
        first, last = gpc.is_first_rank(ParallelMode.PIPELINE), gpc.is_last_rank(ParallelMode.PIPELINE)
        loss = torch.zeros(1, device=worker.device()) if last else None
        shape, tell = self.tensor_shape, self.tensor_shape is None
        held: deque[tuple[Any, torch.Tensor]] = deque()

        for _ in range(self.num_microbatches):
            if not first:
                shape = comm.recv_obj_meta(shape)  # its shape comes before the first tensor only
            received = comm.recv_forward(shape, dtype=self.dtype, **cut)
            output = self._forward_step(engine, received, [], return_output_label=False, accum_loss=loss)
            if not last:
                tell = comm.send_obj_meta(output, tell)
            comm.send_forward(output, **cut)
            held.append((received, output))

        while held:
            received, output = held.popleft()
            gradient = None if last else comm.recv_backward(output.shape, dtype=self.dtype, **cut)
            comm.send_backward(self._backward_step(engine, received, output, gradient), **cut)
            del received, output, gradient
        return None, None, loss
