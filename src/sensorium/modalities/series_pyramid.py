"""Multiscale convolutions over time series.

B batch   T steps   R values of a step, then their presence mask   D width
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.modalities.series import Series, standardize, valid_steps
from sensorium.nn.conv1d import TARGET_TOKENS, ConvNeXtBlock, max_pool_pairs
from sensorium.nn.linear import Linear
from sensorium.nn.tokens import Tokens, sequence_positions, valid_or_none


class MultiscaleConv(nn.Module):
    """Series → Tokens: ConvNeXt blocks at several levels, each followed by max pooling of pairs.

    Each channel is standardized within its series; its mean and standard deviation are added to
    every token. Steps without any value are zero at every level, as beyond the ends.

    Args:
        dim: Width of the tokens.
        series: Settings of the column; `typical_length` determines stride and number of levels.
        blocks_per_level: Blocks before each pooling.
        dropout: Dropout probability.
    """

    def __init__(self, dim: int, series: Series, blocks_per_level: int = 1, dropout: float = 0.0):
        super().__init__()
        channels = max(1, len(series.channels))
        steps = max(1, series.typical_length)
        self.stride = 4 if series.typical_length >= 4 * TARGET_TOKENS else 1
        self.num_levels = max(1, (steps // (self.stride * TARGET_TOKENS)).bit_length() - 1)
        self.stem = nn.Conv1d(2 * channels, dim, 2 * self.stride + 3, self.stride, self.stride + 1)
        self.scale_embedding = nn.Sequential(Linear(2 * channels, dim), nn.GELU(), Linear(dim, dim))
        self.blocks_per_level = blocks_per_level
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, 1, dropout) for _ in range(self.num_levels * blocks_per_level)
        )
        self.final_norm = nn.LayerNorm(dim)

    def pool_index(self, series: Float[Tensor, "B T R"]) -> None:
        """Return None: the mean of all tokens represents the series."""

    def forward(self, series: Float[Tensor, "B T R"]) -> Tokens:
        """Return the tokens of the last level; those without any value are not valid."""
        padding = -series.shape[1] % (self.stride << self.num_levels)
        series, mean, std = standardize(F.pad(series, (0, 0, 0, padding)))
        valid = rearrange(valid_steps(series), "b (t s) -> b t s", s=self.stride).any(-1)
        x = self.stem(series.transpose(1, 2)).transpose(1, 2)
        x = x + self.scale_embedding(torch.cat([mean.asinh(), std.log()], -1))[:, None]
        for i, block in enumerate(self.blocks, 1):
            x = block(x * valid[..., None])
            if i % self.blocks_per_level == 0:
                x, valid = max_pool_pairs(x, valid)
        return Tokens(self.final_norm(x), sequence_positions(x), valid=valid_or_none(valid))
