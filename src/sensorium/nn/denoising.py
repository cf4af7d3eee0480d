"""What denoisers share: their contract, the condition they are given, and attention over it.

B batch   T image tokens   S context tokens   D width   C width of the context   V width of a vector
H heads   K head width   h, w image size   c image channels
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.nn.linear import Linear
from sensorium.nn.sdpa import attend
from sensorium.nn.tokens import Tokens, valid_or_none


@dataclass(frozen=True)
class Channels:
    """What goes into a denoiser and comes out of it.

    Attributes:
        image: Input channels.
        output: Output channels.
        context: Width C of the context tokens; 0 for no context.
        vector: Width V of the vector; 0 for no vector.
    """

    image: int = 3
    output: int = 3
    context: int = 0
    vector: int = 0


@dataclass(frozen=True)
class Conditioning:
    """The condition of a denoiser, computed once for all steps of a sample.

    Attributes:
        keys_values: Keys, then values, of the context for each attention layer, "B 2H S K".
        mask: True for a real context token; None if all are real.
        vector: Embedding that is added to that of the time; None for none.
    """

    keys_values: tuple[Tensor, ...] = ()
    mask: Bool[Tensor, "B S"] | None = None
    vector: Float[Tensor, "B D"] | None = None

    def concat(self, other: Conditioning) -> Conditioning:
        """Return the rows of both, for one batch; both must come from the same denoiser.

        Raises:
            ValueError: Only one of them has a context or a vector.
        """
        if len(self.keys_values) != len(other.keys_values) or (self.vector is None) != (
            other.vector is None
        ):
            raise ValueError("Both conditions of one batch need the same parts.")
        length = max(_context_length(self), _context_length(other))
        a, b = _pad_context(self, length), _pad_context(other, length)
        keys_values = tuple(
            torch.cat(pair) for pair in zip(a.keys_values, b.keys_values, strict=True)
        )
        mask = None
        if a.mask is not None and b.mask is not None:
            mask = torch.cat([a.mask, b.mask])
        vector = None
        if self.vector is not None and other.vector is not None:
            vector = torch.cat([self.vector, other.vector])
        return Conditioning(keys_values, mask, vector)


def _context_length(condition: Conditioning) -> int:
    return condition.keys_values[0].shape[2] if condition.keys_values else 0


def _pad_context(condition: Conditioning, length: int) -> Conditioning:
    """Return the condition with an explicit mask and `length` context tokens."""
    if not condition.keys_values:
        return condition
    first = condition.keys_values[0]
    missing = length - first.shape[2]
    mask = condition.mask
    if mask is None:
        mask = torch.ones(first.shape[0], first.shape[2], dtype=torch.bool, device=first.device)
    padded = tuple(nn.functional.pad(kv, (0, 0, 0, missing)) for kv in condition.keys_values)
    return Conditioning(padded, nn.functional.pad(mask, (0, missing)), condition.vector)


@runtime_checkable
class Denoiser(Protocol):
    """A network that predicts noise, data or velocity from a noisy image, such as UNet and DiT."""

    def prepare(
        self,
        context: Tokens | None = None,
        vector: Float[Tensor, "B V"] | None = None,
    ) -> Conditioning:
        """Compute all that depends on the condition alone."""
        ...

    def __call__(
        self,
        x: Float[Tensor, "B c h w"],
        time: Float[Tensor, "B"],
        condition: Conditioning,
    ) -> Float[Tensor, "B c h w"]:
        """Return the prediction for noisy images at times from 0 to 1000."""
        ...


class ContextAttention(nn.Module):
    """Self-attention over the tokens of an image, whose keys include those of a context.

    The output layer starts at zero, unless `zero_init` is off.

    Args:
        dim: Width D of the image tokens.
        heads: Number of heads.
        context_dim: Width C of the context tokens; 0 for no context.
        zero_init: Whether the output starts at zero.
    """

    def __init__(self, dim: int, heads: int, context_dim: int = 0, *, zero_init: bool = True):
        super().__init__()
        self.heads = heads
        self.qkv = Linear(dim, 3 * dim)
        self.out = Linear(dim, dim)
        self.context_kv = Linear(context_dim, 2 * dim) if context_dim else None
        if zero_init:
            nn.init.zeros_(self.out.weight)
            nn.init.zeros_(self.out.bias)

    def project_context(self, context: Float[Tensor, "B S C"]) -> Float[Tensor, "B H2 S K"]:
        """Return the keys, then the values, of context tokens by head.

        Raises:
            ValueError: The layer was built without a context.
        """
        if self.context_kv is None:
            raise ValueError("This attention layer was built without a context.")
        return rearrange(self.context_kv(context), "b s (h k) -> b h s k", h=2 * self.heads)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        keys_values: Float[Tensor, "B H2 S K"] | None = None,
        mask: Bool[Tensor, "B S"] | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend over the image tokens and the context.

        Args:
            x: Image tokens.
            keys_values: Keys and values of the context, as `project_context` returns them.
            mask: True for a real context token.
        """
        q, k, v = rearrange(self.qkv(x), "b t (n h k) -> n b h t k", n=3, h=self.heads)
        full_mask = None
        if keys_values is not None:
            context_k, context_v = keys_values.to(k.dtype).chunk(2, 1)
            k = torch.cat([k, context_k], 2)
            v = torch.cat([v, context_v], 2)
            if mask is not None:
                full_mask = nn.functional.pad(mask, (x.shape[1], 0), value=True)[:, None, None]
        return self.out(rearrange(attend(q, k, v, mask=full_mask), "b h t k -> b t (h k)"))


def build_conditioning(
    layers: Iterable[ContextAttention],
    context: Tokens | None,
    vector: Float[Tensor, "B V"] | None,
    projection: Linear | None,
) -> Conditioning:
    """Compute all that a denoiser's output depends on through the condition alone.

    Args:
        layers: Attention layers of the denoiser, in the order in which it applies them.
        context: Context tokens; None for none.
        vector: Vector that is added to the embedding of the time; None for none.
        projection: Projection of the vector.
    """
    keys_values: tuple[Tensor, ...] = ()
    mask = None
    if context is not None:
        keys_values = tuple(layer.project_context(context.x) for layer in layers)
        mask = None if context.valid is None else valid_or_none(context.valid)
    projected = None if vector is None or projection is None else projection(vector)
    return Conditioning(keys_values, mask, projected)
