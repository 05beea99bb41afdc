"""One rank's part of the model, and the two things it does: read prompts, and add one token to every request.

Under tensor parallelism each rank holds some heads of every layer and calls the same methods with the same arguments;
the logits are gathered, so that every rank, and rank 0 for the rest of the server, has the whole of them.
"""

from __future__ import annotations

from typing import Any

import torch
from slots import Slots


class Engine:
    """The model with the keys and values of the requests it is at.

    Args:
        model: an OPTForCausalLM, whole or this rank's part of it.
        ranks: how many ranks share the model (each holds heads / ranks of them).
        rows: how many requests at most, at a time.
        columns: how many tokens a request may have, prompt and answer together.
    """

    def __init__(self, model: Any, *, ranks: int, rows: int, columns: int) -> None:
        config = model.config
        self.device = model.device
        self._decoder = model.model.decoder
        self._head = model.lm_head
        self._dtype = self._decoder.embed_positions.weight.dtype
        self.slots = Slots(
            layers=config.num_hidden_layers,
            rows=rows,
            heads=config.num_attention_heads // ranks,
            columns=columns,
            head_dim=config.hidden_size // config.num_attention_heads,
            dtype=self._dtype,
            device=self.device,
        )

    @torch.inference_mode()
    def read(self, prompts: list[list[int]]) -> torch.Tensor:
        """Take new requests in, behind the others; the logits of their first tokens, [prompts, vocabulary].

        Shorter prompts are filled up on the right: nothing that counts looks that way.
        """
        lengths = [len(prompt) for prompt in prompts]
        width = max(lengths)
        self.slots.begin_prompts(lengths)
        ids = torch.tensor([prompt + [0] * (width - len(prompt)) for prompt in prompts]).to(self.device)
        later = torch.full((width, width), torch.finfo(self._dtype).min, dtype=self._dtype, device=self.device).triu_(1)
        positions = torch.arange(width, device=self.device).expand(len(prompts), -1)
        hidden = self._forward(ids, later.expand(len(prompts), 1, -1, -1), positions)
        last = torch.tensor(lengths).to(self.device) - 1
        return self._head(hidden[torch.arange(len(prompts), device=self.device), last])

    @torch.inference_mode()
    def step(self, tokens: list[int]) -> torch.Tensor:
        """Give each request its newest token; the logits of the next ones, [requests, vocabulary]."""
        at = self.slots.begin_tokens()
        ids = torch.tensor(tokens).to(self.device, non_blocking=True)[:, None]
        return self._head(self._forward(ids, self.slots.mask(self._dtype), at[:, None])[:, 0])

    @torch.inference_mode()
    def drop(self, rows: list[int]) -> None:
        """These requests leave; each time the last row takes the freed one's place."""
        for row in rows:
            self.slots.drop(row)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The decoder's last hidden states: the head is asked only for the tokens that are wanted."""
        return self._decoder(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.slots,
            use_cache=True,
            return_dict=True,
        ).last_hidden_state
