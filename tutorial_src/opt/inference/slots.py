"""The keys and values of the requests being answered: one row each, rows packed from 0 on, so that they come and go.

A row is written from its column 0 on, and a request that leaves gives its row to the last one: the batch of a step is
always rows `0 .. count-1`, without a hole and without moving anybody else. Unused columns hold numbers, not memory that
was never written, because a masked NaN would still be NaN.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers.cache_utils import Cache


class Slots(Cache):
    """Keys and values `[layer, key or value, row, head, column, head_dim]` of at most `rows` requests.

    It is what transformers' attention calls `past_key_value`: `update` stores what a layer has just computed and gives
    back all that the layer may look at. `begin_prompts` and `begin_tokens` say beforehand where that goes.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: int,
        columns: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        super().__init__()
        shape = (layers, 2, rows, heads, columns, head_dim)
        self.bytes = math.prod(shape) * dtype.itemsize
        if device.type == "cpu":
            # calloc: pages that no request has reached yet take no memory, where torch.zeros would write them all
            self._store = torch.from_numpy(np.zeros(self.bytes, np.uint8)).view(dtype).view(shape)
        else:
            self._store = torch.zeros(shape, dtype=dtype, device=device)
        self.device = device
        self.rows = rows
        self.columns = columns
        self.lengths: list[int] = []
        self._prompts: slice | None = None
        self._width = 0
        self._at: torch.Tensor | None = None

    def begin_prompts(self, lengths: list[int]) -> None:
        """New rows follow, behind the others, for prompts of these lengths.

        Raises:
            ValueError: when there are not so many rows left, or a prompt has more tokens than a row has columns.
        """
        first = len(self.lengths)
        if first + len(lengths) > self.rows or max(lengths) > self.columns:
            raise ValueError(
                f"{len(lengths)} prompts of up to {max(lengths)} tokens do not fit into {self.rows - first} free rows "
                f"of {self.columns} columns"
            )
        self._prompts = slice(first, first + len(lengths))
        self.lengths.extend(lengths)

    def begin_tokens(self) -> torch.Tensor:
        """Every row takes one token more; gives the column of each, [rows]."""
        self._prompts = None
        self._at = torch.tensor(self.lengths).to(self.device, non_blocking=True)
        self._row = torch.arange(len(self.lengths), device=self.device)
        self.lengths = [length + 1 for length in self.lengths]
        self._width = max(self.lengths)
        return self._at

    def mask(self, dtype: torch.dtype) -> torch.Tensor:
        """What a step's tokens may not look at, [rows, 1, 1, columns in use]: 0 where they may, else very negative."""
        hidden = torch.arange(self._width, device=self.device)[None, :] > self._at[:, None]
        return torch.zeros(hidden.shape, dtype=dtype, device=self.device).masked_fill_(hidden, torch.finfo(dtype).min)[
            :, None, None, :
        ]

    def drop(self, row: int) -> None:
        """Free a row: the last one takes its place."""
        last = len(self.lengths) - 1
        if row != last:
            used = self.lengths[last]
            self._store[:, :, row, :, :used] = self._store[:, :, last, :, :used]
            self.lengths[row] = self.lengths[last]
        self.lengths.pop()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, cache_kwargs: Any = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store a layer's new keys and values, [rows, heads, tokens, head_dim]; give all that its queries may see."""
        keys, values = self._store[layer_idx]
        if self._prompts is not None:
            width = key_states.shape[2]
            keys[self._prompts, :, :width] = key_states
            values[self._prompts, :, :width] = value_states
            return key_states, value_states
        keys[self._row, :, self._at] = key_states[:, :, 0]
        values[self._row, :, self._at] = value_states[:, :, 0]
        count = len(self.lengths)
        return keys[:count, :, : self._width], values[:count, :, : self._width]

    def get_seq_length(self, layer_idx: int | None = 0) -> int:
        """0: positions and masks are given with each call, transformers need not work them out."""
        return 0
