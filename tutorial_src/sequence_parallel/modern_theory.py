"""How many bytes of activations a rank must send in one step under each mode, derived from what the layers do.

With P ranks, an activation of A = batch x length x hidden x 4 bytes and ring algorithms, a rank sends 2 (P-1)/P A for
an all-reduce, (P-1)/P A for an all-gather or a reduce-scatter, and (P-1)/P² A for an all-to-all of the A/P it holds.

A layer has c linear layers cut by columns (BERT: query, key, value and the MLP's first; LLaMA has a gate besides), each
of which gathers its input or, backward, sums its gradient; and two cut by rows, which sum their output. Beside the
layers come the ends, embedding and head; under all_to_all the head works on a rank's own tokens, loss included.
"""

from __future__ import annotations

from modern_layout import FLASH, WITH_WEIGHTS, Layout
from modern_models import Sizes

COLUMNS = {"bert": 4, "llama": 5}


def activation_bytes(model: str, way: str, sizes: Sizes, layout: Layout) -> tuple[str, float] | None:
    """The formula, in the letters above and L layers, and its value for one step; None where there is none.

    Only for one data-parallel copy without a pipeline.
    """
    way, c, layers = way.removesuffix(FLASH), COLUMNS[model], sizes.layers
    activation = sizes.batch * sizes.length * sizes.hidden * 4
    if layout.data * layout.pipeline > 1:
        return None
    if way == "tensor":
        # Each all-reduce is a reduce-scatter and an all-gather, so sequence parallelism moves the same bytes.
        p = layout.tensor
        return f"({2 * (c + 2)} L + 4) (P−1)/P A", (2 * (c + 2) * layers + 4) * (p - 1) / p * activation
    if way in WITH_WEIGHTS:
        p = layout.sequence
        return f"({2 * (c + 2)} L + 6) (P−1)/P A", (2 * (c + 2) * layers + 6) * (p - 1) / p * activation
    if way == "all_to_all" and layout.tensor == 1:
        p = layout.sequence
        return "(8 L/P + 1) (P−1)/P A", (8 * layers / p + 1) * (p - 1) / p * activation
    return None
