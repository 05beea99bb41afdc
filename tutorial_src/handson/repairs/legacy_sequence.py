"""Sequence parallelism in colossalai.legacy trains something else than it says, mostly without an error: seven faults.

The ring's backward pass divides its gradients by the number of ranks, the softmax is scaled as if one head were as wide
as the model, ranks average over the wrong groups, and copies of shared weights are left to themselves. Two more faults
lie in the script of upstream's tutorial, which ours replaces; they are named so that a run can bring them back.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from handson.repairs import Repair, rebind

EXAMPLE = "examples/tutorial/sequence_parallel"


def _divides_by_the_ranks() -> bool:
    from colossalai.legacy.nn.layer.parallel_sequence import RingAV, RingQK

    return all("/= local_world_size" in inspect.getsource(ring.backward) for ring in (RingQK, RingAV))


def _sum_over_the_ranks() -> None:
    from colossalai.legacy.context import ParallelMode
    from colossalai.legacy.core import global_context as gpc
    from colossalai.legacy.nn.layer.parallel_sequence import RingAV, RingQK

    def times(ring: type, *wrong: int) -> None:
        """Multiply the gradients at these positions by the number of ranks that they were divided by."""
        original = ring.backward

        def backward(ctx: Any, gradient: Any) -> tuple[Any, ...]:
            ranks = gpc.get_world_size(ParallelMode.SEQUENCE)
            gradients = original(ctx, gradient)
            return tuple(g.mul_(ranks) if i in wrong and ranks > 1 else g for i, g in enumerate(gradients))

        ring.backward = staticmethod(backward)

    times(RingQK, 0, 1)  # of q and k
    times(RingAV, 1)  # of v; that of the scores is whole


def _scales_by_the_hidden_size() -> bool:
    from colossalai.legacy.nn.layer.parallel_sequence import TransformerSelfAttentionRing

    return "math.sqrt(self.hidden_size)" in inspect.getsource(TransformerSelfAttentionRing.__init__)


def _scale_by_the_head() -> None:
    from colossalai.legacy.nn.layer.parallel_sequence import TransformerSelfAttentionRing

    initialise = TransformerSelfAttentionRing.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        self.norm_factor *= math.sqrt(self.hidden_size_per_attention_head / self.hidden_size)

    TransformerSelfAttentionRing.__init__ = init


def _mixes_the_stages() -> bool:
    from colossalai.legacy.context.process_group_initializer.initializer_sequence import Initializer_Sequence_DP

    return "i * self.dp_size + j" in inspect.getsource(Initializer_Sequence_DP.init_dist_group)


def _keep_to_the_stage() -> None:
    import torch.distributed as dist
    from colossalai.legacy.context import ParallelMode
    from colossalai.legacy.context.process_group_initializer.initializer_sequence import Initializer_Sequence_DP

    def init_dist_group(self: Any) -> tuple[Any, ...]:
        """One group a stage. Ranks count copy by copy, stage by stage, piece by piece of the sequence."""
        tensor, stages = self.tensor_parallel_size, self.pipeline_parallel_size
        for stage in range(stages):
            ranks = [rank for rank in range(self.world_size) if rank // tensor % stages == stage]
            group = dist.new_group(ranks)
            on_cpu = dist.new_group(ranks, backend="gloo") if dist.get_backend() != "gloo" else group
            if self.rank in ranks:
                mine = ranks.index(self.rank), len(ranks), group, on_cpu, ranks, ParallelMode.SEQUENCE_DP
        return mine

    Initializer_Sequence_DP.init_dist_group = init_dist_group


def _leaves_out_missing_gradients() -> bool:
    from colossalai.legacy.engine.gradient_handler import utils

    return "param.grad is not None" in inspect.getsource(utils.bucket_allreduce)


def _take_missing_gradients_as_zero() -> None:
    import torch
    from colossalai.legacy.engine.gradient_handler import utils

    original = utils.bucket_allreduce

    def bucket_allreduce(param_list: Any, group: Any = None) -> None:
        parameters = list(param_list)
        for parameter in parameters:
            if parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        original(parameters, group)

    rebind("colossalai", original, bucket_allreduce)


def _forgets_shared_weights() -> bool:
    from colossalai.legacy.initialize import initialize

    source = inspect.getsource(initialize)
    return "PipelineSharedModuleGradientHandler" in source and "if gradient_handler_cfg is None:" in source


def _add_up_shared_weights() -> None:
    import colossalai.legacy
    from colossalai.legacy.core import global_context as gpc

    original = colossalai.legacy.initialize
    shared = "PipelineSharedModuleGradientHandler"

    def initialize(model: Any, *args: Any, **kwargs: Any) -> Any:
        handlers = gpc.config.get("gradient_handler")
        is_shared = any(getattr(p, "pipeline_shared_module_pg", None) is not None for p in model.parameters())
        if handlers and is_shared and all(handler["type"] != shared for handler in handlers):
            handlers.append(dict(type=shared))
        return original(model, *args, **kwargs)

    rebind("colossalai", original, initialize)


def _the_scripts_own() -> None:
    """Nothing of the package to change: the training script asks whether this name is in force."""


REPAIRS = (
    Repair(
        name="ringgrad",
        area="legacy sequence",
        symptom="no error: on P ranks the gradients of q, k, v are P times too small, and those below them distorted",
        cause="legacy/nn/layer/parallel_sequence/_operation.py:68,87,142 divide a sum over the ranks by their number",
        upstream="",
        where="CPU and CUDA",
        needed=_divides_by_the_ranks,
        patch=_sum_over_the_ranks,
    ),
    Repair(
        name="scale",
        area="legacy sequence",
        symptom="no error: scores are divided by the root of the hidden size, not of a head's: attention is too even",
        cause="legacy/nn/layer/parallel_sequence/layers.py:77: norm_factor = math.sqrt(self.hidden_size)",
        upstream="",
        where="CPU and CUDA",
        needed=_scales_by_the_hidden_size,
        patch=_scale_by_the_head,
    ),
    Repair(
        name="seqdp",
        area="legacy sequence",
        symptom="data x pipeline x sequence: two different pipeline stages average gradients; gloo ends the process",
        cause="legacy/context/process_group_initializer/initializer_sequence.py:47 takes the first copy's ranks for "
        "those of the first stage",
        upstream="",
        where="CPU and CUDA",
        needed=_mixes_the_stages,
        patch=_keep_to_the_stage,
    ),
    Repair(
        name="nograds",
        area="legacy sequence",
        symptom="with the sentence-order head, ranks add up gradients of different lengths: gloo ends the process",
        cause="legacy/engine/gradient_handler/utils.py:15 leaves out parameters without a gradient; that head's have "
        "one on the ring's first rank alone",
        upstream="",
        where="CPU and CUDA",
        needed=_leaves_out_missing_gradients,
        patch=_take_missing_gradients_as_zero,
    ),
    Repair(
        name="tied",
        area="legacy sequence",
        symptom="no error: in a pipeline the first and the last stage's copies of the word embedding drift apart",
        cause="legacy/initialize.py:362 adds their gradients up only where the configuration names no handler, and "
        "sequence parallelism in a pipeline needs one",
        upstream="",
        where="CPU and CUDA",
        needed=_forgets_shared_weights,
        patch=_add_up_shared_weights,
    ),
    Repair(
        name="losssum",
        area="legacy sequence",
        symptom="the loss that is printed on P ranks is P times the mean loss: 13.04 on 2 where one rank has 6.55",
        cause=f"{EXAMPLE}/loss_func/bert_loss.py:23 adds the ranks' means up and never divides by their number",
        upstream="https://github.com/hpcaitech/ColossalAI-Examples/issues/155",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_the_scripts_own,
    ),
    Repair(
        name="lossmean",
        area="legacy sequence",
        symptom="no error: a masked token on a rank with few of them counts more than one on a rank with many",
        cause=f"{EXAMPLE}/loss_func/bert_loss.py:21 divides by the rank's own number of masked tokens",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_the_scripts_own,
    ),
)
