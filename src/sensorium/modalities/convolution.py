"""Convolutions along a line of tokens, in place of a transformer; and over every step of a series.

    B batch   T tokens or steps   R readings of a step, then which of them are there   D width
"""
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.depth import StochasticDepth
from sensorium.kernels import Linear
from sensorium.modalities.series import Series, standardize, valid_steps
from sensorium.tokens import Tokens, take_token, sequence_positions, valid_or_none
from sensorium.transformer import FeedForward

KERNEL_RADIUS = 3                                   # neighbours on each side that a convolution looks at
TARGET_TOKENS = 16                                   # tokens of a usual series after the last level, about


class ConvNeXtBlock(nn.Module):
    """x + mlp(norm(convolution(x))), each channel with its own weights along time (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, dim: int, dilation: int, dropout: float):
        super().__init__()
        self.dwconv = nn.Conv1d(dim, dim, 2 * KERNEL_RADIUS + 1, padding=KERNEL_RADIUS * dilation, dilation=dilation, groups=dim)
        self.norm, self.mlp, self.dropout = nn.LayerNorm(dim), FeedForward(dim, 4 * dim), nn.Dropout(dropout)
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return x + self.drop_path(self.dropout(self.mlp(self.norm(self.dwconv(x.transpose(1, 2)).transpose(1, 2)))))


class Convolutions(nn.Module):
    """Tokens → Tokens. Each block looks twice as far as the one before; what is not valid is 0, as beyond the ends."""

    def __init__(self, dim: int, depth: int, *, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 2 ** i, dropout) for i in range(depth))
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, t: Tokens, *, query_positions: Int[Tensor, "B"] | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence."""
        x = t.x
        for block in self.blocks:
            x = block(x if t.valid is None else x * t.valid[..., None])
        said = replace(t, x=self.final_norm(x))
        return said if query_positions is None else take_token(said, query_positions)


class MultiscaleConv(nn.Module):
    """Series → Tokens. At each level `blocks` look at neighbours, then of each pair the larger number stays.

    Each channel is brought to its own mean and spread, and both are said to every token (see `Windows`). Steps at which
    nothing is there are 0 throughout, as beyond the ends.
    """

    def __init__(self, dim: int, series: Series, blocks_per_level: int = 1, dropout: float = 0.0):
        super().__init__()
        channels = max(1, len(series.channels))
        self.stride = 4 if series.typical_length >= 4 * TARGET_TOKENS else 1
        levels = max(1, (max(1, series.typical_length) // (self.stride * TARGET_TOKENS)).bit_length() - 1)
        self.stem = nn.Conv1d(2 * channels, dim, 2 * self.stride + 3, self.stride, self.stride + 1)
        self.scale_embedding = nn.Sequential(Linear(2 * channels, dim), nn.GELU(), Linear(dim, dim))
        self.num_levels = levels
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 1, dropout) for _ in range(levels * blocks_per_level))
        self.final_norm = nn.LayerNorm(dim)

    def pool_index(self, series: Float[Tensor, "B T R"]) -> None:
        return None

    def forward(self, series: Float[Tensor, "B T R"]) -> Tokens:
        series, mean, spread = standardize(F.pad(series, (0, 0, 0, -series.shape[1] % (self.stride << self.num_levels))))
        there = rearrange(valid_steps(series), "b (t s) -> b t s", s=self.stride).any(-1)
        x = self.stem(series.transpose(1, 2)).transpose(1, 2)
        x = x + self.scale_embedding(torch.cat([mean.asinh(), spread.log()], -1))[:, None]
        for i, block in enumerate(self.blocks, 1):
            x = block(x * there[..., None])
            if i % (len(self.blocks) // self.num_levels) == 0:
                x, there = max_pool_pairs(x, there)
        return Tokens(self.final_norm(x), sequence_positions(x), valid=valid_or_none(there))


def max_pool_pairs(x: Float[Tensor, "B T D"], present: Bool[Tensor, "B T"]) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
    """Of each pair of steps the larger numbers, of those that are there; 0 where neither is."""
    pairs = rearrange(x.masked_fill(~present[..., None], -torch.inf), "b (s two) d -> b s two d", two=2)
    left = rearrange(present, "b (s two) -> b s two", two=2).any(-1)
    return pairs.amax(2).masked_fill(~left[..., None], 0), left
