"""Today's sequence parallelism (Booster, HybridParallelPlugin) on BERT and LLaMA: silent faults, cured or refused.

Most of them make no error: a gradient is wrong, a mask is lost, or nothing is divided. What can be cured is cured,
exactly; a mode that cannot do what its name says is refused where the plugin is made or the model is divided, on every
rank alike, so that no rank waits for another. `modern.py` of the topic `sequence_parallel` measures each fault.
"""

from __future__ import annotations

import functools
import inspect
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from handson.repairs import Repair

if TYPE_CHECKING:
    from colossalai.shardformer import ShardConfig

SHARED = ("split_gather", "ring")  # the modes whose ranks cut the sequence and the weights alike


def _source(module: str, name: str) -> str:
    """The source of a class or function of an upstream module, to see whether it still has the fault."""
    found: Any = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return inspect.getsource(found)


def _marks_no_bias() -> bool:
    return "partial" not in _source("colossalai.shardformer.layer.linear", "Linear1D_Row")


def _mark_row_biases() -> None:
    from colossalai.shardformer.layer import Linear1D_Row
    from colossalai.shardformer.layer.utils import SeqParallelUtils

    plain = Linear1D_Row.__init__

    @functools.wraps(plain)
    def init(self: Linear1D_Row, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if self.bias is not None and self.seq_parallel_mode in SHARED:
            SeqParallelUtils.marked_as_sp_partial_derived_param(self.bias)

    Linear1D_Row.__init__ = init


def _keeps_what_it_sent() -> bool:
    last_hop = _source("colossalai.shardformer.layer._operation", "_ring_as_gather").partition("# final round")[2]
    return "input_tensors.append(send_tensors)" in last_hop


def _keep_what_arrives() -> None:
    import torch
    import torch.distributed as dist
    from colossalai.shardformer.layer import _operation

    def ring_as_gather(
        func: Any, input_to_gather: Any = None, input_local: Any = None, process_group: Any = None, gather_dim: int = 1,
        keep_item: bool = False,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:  # fmt: skip
        """`func` on every rank's piece while the pieces travel; the outputs and the pieces, in order of the ranks."""
        ranks = dist.get_process_group_ranks(process_group)
        size, own = len(ranks), dist.get_rank(process_group)
        before, after = ranks[(own - 1) % size], ranks[(own + 1) % size]
        piece = {name: tensor.contiguous() for name, tensor in input_to_gather.items()}
        pieces: list[Any] = [None] * size
        outputs: list[Any] = [None] * size
        for hop in range(size):
            arriving, works = {}, []
            if hop < size - 1:
                # Fresh buffers at every hop: what arrives is kept for the backward, so nothing may overwrite it.
                arriving = {name: torch.empty_like(tensor) for name, tensor in piece.items()}
                works = dist.batch_isend_irecv(
                    [dist.P2POp(dist.irecv, arriving[name], after, group=process_group) for name in piece]
                    + [dist.P2POp(dist.isend, piece[name], before, group=process_group) for name in piece]
                )
            pieces[(own + hop) % size] = piece
            outputs[(own + hop) % size] = func(**piece, **input_local)
            for work in works:
                work.wait()
            piece = arriving
        gathered = {name: torch.cat([piece[name] for piece in pieces], dim=gather_dim) for name in input_to_gather}
        return torch.cat(outputs, dim=gather_dim), gathered

    _operation._ring_as_gather = ring_as_gather


def _leaves_sdpa() -> bool:
    return '_attn_implementation = "eager"' not in _source("colossalai.shardformer.policies.llama", "LlamaPolicy")


def _ask_for_the_mask() -> None:
    from colossalai.shardformer.policies.llama import LlamaPolicy

    plain = LlamaPolicy.preprocess

    @functools.wraps(plain)
    def preprocess(self: LlamaPolicy) -> Any:
        model = plain(self)
        if self.shard_config.enable_sequence_parallelism and not self.shard_config.enable_flash_attention:
            model.config._attn_implementation = "eager"
        return model

    LlamaPolicy.preprocess = preprocess


def _masks_the_piece() -> bool:
    forward = _source("colossalai.shardformer.modeling.llama", "LlamaPipelineForwards.llama_model_forward")
    return "seq_length *= sp_size" in forward and "attention_mask, hidden_states, cache_position" in forward


def _mask_the_sequence() -> None:
    from transformers.models.llama.modeling_llama import LlamaModel

    plain = LlamaModel._update_causal_mask

    @functools.wraps(plain)
    def update(self: LlamaModel, attention_mask: Any, piece: Any, cache_position: Any, *args: Any, **kw: Any) -> Any:
        if len(cache_position) != piece.shape[1]:
            # Only the shape, type and device of this argument are read, and the positions are the whole sequence's.
            piece = piece.new_empty(piece.shape[0], len(cache_position), 0)
        return plain(self, attention_mask, piece, cache_position, *args, **kw)

    LlamaModel._update_causal_mask = update


def _turns_ring_into_split_gather() -> bool:
    return 'sp_mode = "split_gather"' in _source("colossalai.shardformer.policies.bert", "BertPolicy.module_policy")


def _give_bert_its_ring() -> None:
    from colossalai.shardformer.policies.bert import BertPolicy

    plain = BertPolicy.module_policy

    @functools.wraps(plain)
    def module_policy(self: BertPolicy) -> Any:
        config = self.shard_config
        ring = config.sequence_parallelism_mode == "ring"
        if ring:
            # BERT's own forward cuts and joins the sequence in both modes alike; only the layers differ.
            config.sequence_parallelism_mode = "split_gather"
        policy = plain(self)
        for description in policy.values() if ring else ():
            for replacement in description.sub_module_replacement or ():
                if (replacement.kwargs or {}).get("seq_parallel_mode"):
                    replacement.kwargs["seq_parallel_mode"] = "ring"
        return policy

    BertPolicy.module_policy = module_policy


def _takes_ring_attn() -> bool:
    return "ring_attn" not in _source("colossalai.shardformer.policies.bert", "BertPolicy.module_policy")


def _refuse_bert_ring_attn() -> None:
    from colossalai.shardformer.policies.bert import BertPolicy

    plain = BertPolicy.config_sanity_check

    @functools.wraps(plain)
    def check(self: BertPolicy) -> None:
        plain(self)
        if self.shard_config.enable_sequence_parallelism and self.shard_config.sequence_parallelism_mode == "ring_attn":
            raise ValueError(
                "ring_attn divides nothing in BERT: upstream wrote it for causal models; use split_gather or ring"
            )

    BertPolicy.config_sanity_check = check


def _two_defaults() -> bool:
    plugin = _source("colossalai.booster.plugin.hybrid_parallel_plugin", "HybridParallelPlugin.__init__")
    config = _source("colossalai.shardformer", "ShardConfig.__post_init__")
    return 'is not None else "all_to_all"' in plugin and '"split_gather" if' in config


def _refuse_no_mode() -> None:
    from colossalai.shardformer import ShardConfig

    plain = ShardConfig.__post_init__

    @functools.wraps(plain)
    def post_init(self: ShardConfig) -> None:
        if self.enable_sequence_parallelism and self.sequence_parallelism_mode is None:
            raise ValueError(
                "enable_sequence_parallelism=True needs a sequence_parallelism_mode: upstream has two defaults for it, "
                "all_to_all in the plugin and split_gather in the model's division"
            )
        plain(self)

    ShardConfig.__post_init__ = post_init


def _refuse_ring_attn_without_kernels() -> None:
    from colossalai.shardformer.policies.base_policy import Policy

    plain = Policy.set_shard_config

    @functools.wraps(plain)
    def set_shard_config(self: Policy, shard_config: ShardConfig) -> None:
        plain(self, shard_config)
        if shard_config.enable_sequence_parallelism and shard_config.sequence_parallelism_mode == "ring_attn":
            raise ValueError("ring_attn needs the package flash-attn (GPUs, fp16 or bf16), which is not installed here")

    Policy.set_shard_config = set_shard_config


def _keeps_sdpa_for_cuda() -> bool:
    import torch

    kernel = "colossalai.kernel.extensions.pybind.flash_attention.flash_attention_sdpa_cuda"
    asks = "cuda.is_available" in _source(kernel, "FlashAttentionSdpaCudaExtension.is_available")
    return asks and not torch.cuda.is_available()


def _lend_sdpa_to_the_cpu() -> None:
    from colossalai.kernel.extensions import FlashAttentionSdpaCudaExtension

    FlashAttentionSdpaCudaExtension.is_available = lambda self: True


REPAIRS = (
    Repair(
        name="rowbias",
        area="booster sequence",
        symptom="BERT, split_gather: the loss is right, but each rank's gradients of the biases of "
        "attention.output.dense and output.dense are those of its own tokens alone; the ranks' copies drift apart",
        cause="shardformer/layer/linear.py:592 adds the bias of Linear1D_Row to a rank's tokens and does not mark it, "
        "as normalization.py marks its weights, for the sum over the ranks (LLaMA has no such biases)",
        upstream="",
        where="CPU and CUDA",
        needed=_marks_no_bias,
        patch=_mark_row_biases,
    ),
    Repair(
        name="ringgather",
        area="booster sequence",
        symptom="LLaMA, ring: the loss is right, the gradients of q_proj, k_proj, v_proj, gate_proj and up_proj are "
        "off by as much as their size",
        cause="shardformer/layer/_operation.py:470 keeps for the backward, as the last piece of the gathered input, "
        "what was sent instead of what arrived, and line 464 keeps buffers that later hops overwrite",
        upstream="",
        where="CPU and CUDA",
        needed=_keeps_what_it_sent,
        patch=_keep_what_arrives,
    ),
    Repair(
        name="sdpamask",
        area="booster sequence",
        symptom="LLaMA, split_gather, ring and all_to_all: wrong loss and gradients, since each token sees those after "
        "it; only with transformers' default attention (sdpa), and only where no sequence is padded",
        cause="shardformer/modeling/llama.py:143 asks transformers for the mask, which for sdpa is None (it would set "
        "is_causal); line 576 then adds no mask",
        upstream="",
        where="CPU and CUDA",
        needed=_leaves_sdpa,
        patch=_ask_for_the_mask,
    ),
    Repair(
        name="stagemask",
        area="booster sequence",
        symptom="LLaMA, sequence and pipeline: RuntimeError: The size of tensor a (64) must match the size of tensor b "
        "(128) at non-singleton dimension 0, on the second stage, while the ranks of the first wait for it",
        cause="shardformer/modeling/llama.py:143 builds a later stage's mask for the piece of the sequence that it was "
        "sent, though line 102 has just restored the length",
        upstream="",
        where="CPU and CUDA",
        needed=_masks_the_piece,
        patch=_mask_the_sequence,
    ),
    Repair(
        name="bertring",
        area="booster sequence",
        symptom="BERT, ring: UserWarning: For Bert, sequence parallelism is currently not support mode ring, will set "
        "to be split_gather; in a pipeline it then does not run",
        cause="shardformer/policies/bert.py:72 replaces the mode, though BERT's layers are the ones that can do it",
        upstream="",
        where="CPU and CUDA",
        needed=_turns_ring_into_split_gather,
        patch=_give_bert_its_ring,
    ),
    Repair(
        name="bertringattn",
        area="booster sequence",
        symptom="BERT, ring_attn: no error and a right loss, but nothing is divided: every rank computes every token",
        cause="shardformer/policies/bert.py:70 knows nothing of the mode and lets it pass; refused now, since "
        "upstream's ring attention is for causal models",
        upstream="",
        where="CPU and CUDA",
        needed=_takes_ring_attn,
        patch=_refuse_bert_ring_attn,
    ),
    Repair(
        name="spmode",
        area="booster sequence",
        symptom="ValueError: Attention weights should be of size (4, 2, 128, 128), but is torch.Size([4, 4, 128, 128]) "
        "(LLaMA, where no mode is given)",
        cause="hybrid_parallel_plugin.py:1061 takes all_to_all where no mode is given, shard_config.py:82 takes "
        "split_gather; refused now",
        upstream="",
        where="CPU and CUDA",
        needed=_two_defaults,
        patch=_refuse_no_mode,
    ),
    Repair(
        name="flashattn",
        area="booster sequence",
        symptom="RuntimeError: Flash Attention is not installed. You can install it via 'pip install flash-attn "
        "--no-build-isolation', in the first forward",
        cause="shardformer/layer/attn.py:363 looks for flash-attn when it is first used; refused now, before the model "
        "is divided",
        upstream="",
        where="CPU, and CUDA without flash-attn",
        needed=lambda: find_spec("flash_attn") is None,
        patch=_refuse_ring_attn_without_kernels,
    ),
    Repair(
        name="sdpakernel",
        area="booster sequence",
        symptom="AssertionError: No usable kernel found for FlashAttentionForFloatAndCustomMaskLoader on the current "
        "machine., with enable_flash_attention=True",
        cause="flash_attention_sdpa_cuda.py:8 offers its kernel where CUDA is available, though it only calls "
        "torch.nn.functional.scaled_dot_product_attention, which runs anywhere",
        upstream="",
        where="CPU",
        needed=_keeps_sdpa_for_cuda,
        patch=_lend_sdpa_to_the_cpu,
    ),
)
