"""What a rank really computes on in a forward: how many tokens between the layers, heads and queries in attention, and
how much of the MLP. A mode that divides nothing is seen here, whatever its name.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

LAYERS = ("BertLayer", "LlamaDecoderLayer")
MLP_OUTPUTS = ("output.dense", "mlp.down_proj")  # the second linear layer of an MLP, by the end of its name


class Witness(TorchFunctionMode):
    """Context manager around one forward of `model`; afterwards `seen` holds the sizes of the first layer's tensors."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}
        self._hooks = []
        for name, module in model.named_modules():
            if type(module).__name__ in LAYERS:
                self._hooks.append(module.register_forward_pre_hook(self._layer, with_kwargs=True))
            elif name.endswith(MLP_OUTPUTS) and not name.endswith("attention.output.dense"):
                self._hooks.append(module.register_forward_pre_hook(self._mlp))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            self._note(heads=args[0].shape[1], queries=args[0].shape[2], keys=args[1].shape[2])
        elif name == "softmax" and args[0].dim() == 4:  # scores [batch, heads, queries, keys]
            self._note(heads=args[0].shape[1], queries=args[0].shape[2], keys=args[0].shape[3])
        return func(*args, **(kwargs or {}))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()

    def _layer(self, module: torch.nn.Module, args: Any, kwargs: Any) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        self._note(tokens=hidden.shape[1])

    def _mlp(self, module: torch.nn.Module, args: Any) -> None:
        self._note(mlp_tokens=args[0].shape[1], mlp_width=args[0].shape[2])

    def _note(self, **sizes: int) -> None:
        for name, size in sizes.items():
            self.seen.setdefault(name, size)
