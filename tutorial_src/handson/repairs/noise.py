"""Messages that importing the packages prints and that tell the reader of a page nothing: each silenced by its text.

Only these messages are silenced, by their words; any other warning still appears.
"""

from __future__ import annotations

import logging
import warnings

from handson.repairs import Repair

# (category, how the message begins, why it says nothing here)
WARNINGS = (
    (FutureWarning, r"`torch\.cuda\.amp\.custom_(fwd|bwd)\(", "old spelling in colossalai.legacy, same meaning"),
    (
        FutureWarning,
        r"`torch\.distributed\.(all_gather_into_tensor|reduce_scatter_tensor)` is deprecated",
        "old names in colossalai.legacy, same collectives",
    ),
    (FutureWarning, r"`broadcast_buffers` is deprecated", "old name in Colossal-AI's plugins, same buffers"),
    (FutureWarning, r"`isinstance\(treespec, LeafSpec\)` is deprecated", "old question in a pipeline, same answer"),
    (UserWarning, r"Please install the latest tensornvme", "offload to NVMe disks is not used"),
    (UserWarning, r"Please install apex from source", "torch's own RMSNorm is used"),
)
BITSANDBYTES = ("Failed to load CPU gemm_4bit", "bitsandbytes library load error")


class _Without4Bit(logging.Filter):
    """Drops what bitsandbytes says about its missing 4-bit kernels; galore_torch only needs it to import."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith(BITSANDBYTES)


def _silence_warnings() -> None:
    for category, message, _ in WARNINGS:
        warnings.filterwarnings("ignore", message=message, category=category)


def _silence_bitsandbytes() -> None:
    # A logger's filter does not see its children's records, so it must sit on the loggers that speak.
    for name in ("bitsandbytes.cextension", "bitsandbytes.backends.cpu.ops"):
        logging.getLogger(name).addFilter(_Without4Bit())


REPAIRS = (
    Repair(
        name="warnings",
        area="noise",
        symptom="FutureWarning: `torch.cuda.amp.custom_fwd(args...)` is deprecated (about 60 of these and the like), "
        "UserWarning: Please install apex from source, UserWarning: Please install the latest tensornvme",
        cause="legacy/nn/layer/*/_operation.py, shardformer/layer/normalization.py:48, utils/safetensors.py:13",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_silence_warnings,
    ),
    Repair(
        name="bitsandbytes",
        area="noise",
        symptom="Failed to load CPU gemm_4bit_forward from kernels-community: No module named 'kernels'",
        cause="nn/optimizer/__init__.py:1 imports galore_torch, which imports bitsandbytes for its kernels",
        upstream="",
        where="CPU and CUDA",
        needed=lambda: True,
        patch=_silence_bitsandbytes,
    ),
)
