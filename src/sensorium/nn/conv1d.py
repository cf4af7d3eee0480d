"""Convolutions along a line of tokens, in place of a transformer; and over every step of a series.

B batch   T tokens or steps   R readings of a step, then which of them are there   D width
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, take_token
from sensorium.nn.transformer import FeedForward

KERNEL_RADIUS = 3  # neighbours on each side that a convolution looks at


TARGET_TOKENS = 16  # tokens of a usual series after the last level, about


class ConvNeXtBlock(nn.Module):
    """x + mlp(norm(convolution(x))), each channel with its own weights along time (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, dim: int, dilation: int, dropout: float):
        super().__init__()
        self.dwconv = nn.Conv1d(
            dim,
            dim,
            2 * KERNEL_RADIUS + 1,
            padding=KERNEL_RADIUS * dilation,
            dilation=dilation,
            groups=dim,
        )
        self.norm, self.mlp, self.dropout = (
            nn.LayerNorm(dim),
            FeedForward(dim, 4 * dim),
            nn.Dropout(dropout),
        )
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return x + self.drop_path(
            self.dropout(self.mlp(self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2))))
        )


class Convolutions(nn.Module):
    """Tokens → Tokens. Each block looks twice as far as the one before; what is not valid is 0, as beyond the ends."""

    def __init__(self, dim: int, depth: int, *, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 2**i, dropout) for i in range(depth))
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, t: Tokens, *, query_positions: Int[Tensor, "B"] | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence."""
        x = t.x
        for block in self.blocks:
            x = block(x if t.valid is None else x * t.valid[..., None])
        said = replace(t, x=self.final_norm(x))
        return said if query_positions is None else take_token(said, query_positions)


def max_pool_pairs(
    x: Float[Tensor, "B T D"], present: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
    """Of each pair of steps the larger numbers, of those that are there; 0 where neither is."""
    pairs = rearrange(
        x.masked_fill(~present[..., None], -torch.inf), "b (s two) d -> b s two d", two=2
    )
    left = rearrange(present, "b (s two) -> b s two", two=2).any(-1)
    return pairs.amax(2).masked_fill(~left[..., None], 0), left
