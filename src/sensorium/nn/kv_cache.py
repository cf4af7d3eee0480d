"""The key-value cache of a transformer that generates token by token.

B batch   T new tokens   S cached tokens   H heads   K head width   C selected rows
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.tokens import CAUSAL, Tokens, attention_mask, order_tensor, take_rows, valid_mask


@dataclass(frozen=True)
class CacheMask:
    """Which cached tokens the new tokens attend to.

    Attributes:
        causal: Whether the mask is lower triangular, so that no tensor is needed.
        mask: True where a new token may attend to a cached one; None if nothing is masked.
    """

    causal: bool
    mask: Bool[Tensor, "#B 1 #T S"] | None


class KVCache:
    """Keys and values of every attention layer for the tokens read so far.

    `prefill` reads the prompt, `append` each continuation of it. Later tokens attend to the cached
    ones. Where their order is CAUSAL, it continues from the number of cached tokens.

    Args:
        max_new_tokens: Number of tokens that can be appended after the prompt.

    Attributes:
        length: Number of cached tokens.
        context: Tokens for cross-attention that every decoding step attends to.
    """

    def __init__(self, max_new_tokens: int):
        self.max_new_tokens = max_new_tokens
        self.length = 0
        self.context: Tokens | None = None
        self._capacity = 0
        self._layers: dict[nn.Module, Tensor] = {}
        self._order: Int[Tensor, "B S"] | None = None  # None: 1, 2, 3, ...
        self._valid: Bool[Tensor, "B S"] | None = None  # None: all cached tokens are real

    def prefill(self, t: Tokens) -> CacheMask:
        """Register the prompt, which fixes the capacity, and return its mask."""
        self._capacity = t.x.shape[1] + self.max_new_tokens
        self._register(t)
        if t.order is CAUSAL:
            return CacheMask(causal=True, mask=None)
        return CacheMask(causal=False, mask=self._full_mask(t))

    def append(self, t: Tokens) -> CacheMask:
        """Register the tokens that follow and return their mask over all cached tokens.

        Raises:
            ValueError: The cache is full.
        """
        if self.length + t.x.shape[1] > self._capacity:
            raise ValueError(
                f"The cache has room for {self._capacity} tokens and holds {self.length}: "
                f"it cannot take {t.x.shape[1]} more."
            )
        self._register(t)
        if t.order is CAUSAL and t.x.shape[1] == 1:  # the last token attends to every real one
            mask = None if self._valid is None else self._valid[:, None, None]
            return CacheMask(causal=False, mask=mask)
        return CacheMask(causal=False, mask=self._full_mask(t))

    def update(self, layer: nn.Module, kv: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H S K"]:
        """Store the keys and values of the new tokens and return all of the layer.

        Args:
            layer: The attention layer.
            kv: Heads of the keys, then heads of the values.
        """
        if layer not in self._layers:
            storage = kv.new_empty(kv.shape[0], self._capacity, kv.shape[1], kv.shape[3])
            self._layers[layer] = storage.transpose(1, 2)
        buffer = self._layers[layer]
        buffer.narrow(2, self.length - kv.shape[2], kv.shape[2]).copy_(kv)
        return buffer.narrow(2, 0, self.length)

    def context_kv(
        self, layer: nn.Module, compute: Callable[[], Tensor]
    ) -> Float[Tensor, "B H S K"]:
        """Return a layer's keys and values of the context, computed on first use."""
        if layer not in self._layers:
            self._layers[layer] = compute()
        return self._layers[layer]

    def with_cached_order(self, t: Tokens) -> Tokens:
        """Return the most recent tokens with the order they have among all cached tokens."""
        return replace(t, order=self._full_order(t)[:, -t.x.shape[1] :])

    def reorder(self, rows: Int[Tensor, "C"]) -> None:
        """Select rows of the batch, some perhaps repeated (beam search)."""
        self._layers = {layer: kv[rows] for layer, kv in self._layers.items()}
        self._order = None if self._order is None else self._order[rows]
        self._valid = None if self._valid is None else self._valid[rows]
        self.context = None if self.context is None else take_rows(self.context, rows)

    def _register(self, t: Tokens) -> None:
        """Record order, validity and number of the new tokens."""
        start = self.length
        if self._order is not None or t.order is not CAUSAL:
            offset = start if t.order is CAUSAL else 0
            self._order = torch.cat([self._full_order(t), order_tensor(t) + offset], 1)
        if self._valid is not None or not (t.valid is None or t.valid.all()):
            cached_valid = self._valid
            if cached_valid is None:
                cached_valid = t.x.new_ones(t.x.shape[0], start, dtype=torch.bool)
            self._valid = torch.cat([cached_valid, valid_mask(t)], 1)
        self.length = start + t.x.shape[1]

    def _full_mask(self, t: Tokens) -> Bool[Tensor, "B 1 T S"]:
        """Return the mask of the most recent tokens over all cached tokens."""
        order = order_tensor(self.with_cached_order(t))
        return attention_mask(order, self._full_order(t), self._valid)

    def _full_order(self, t: Tokens) -> Int[Tensor, "B S"]:
        """Return the order of all cached tokens."""
        if self._order is not None:
            return self._order
        return torch.arange(1, self.length + 1, device=t.x.device).expand(t.x.shape[0], -1)
