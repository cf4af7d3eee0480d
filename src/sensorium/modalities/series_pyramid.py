"""Multi-scale convolutions over a time series."""

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
    """Series → Tokens. At each level `blocks` look at neighbours, then of each pair the larger number stays.

    Each channel is brought to its own mean and spread, and both are said to every token (see `Windows`). Steps at which
    nothing is there are 0 throughout, as beyond the ends.
    """

    def __init__(self, dim: int, series: Series, blocks_per_level: int = 1, dropout: float = 0.0):
        super().__init__()
        channels = max(1, len(series.channels))
        self.stride = 4 if series.typical_length >= 4 * TARGET_TOKENS else 1
        levels = max(
            1, (max(1, series.typical_length) // (self.stride * TARGET_TOKENS)).bit_length() - 1
        )
        self.stem = nn.Conv1d(2 * channels, dim, 2 * self.stride + 3, self.stride, self.stride + 1)
        self.scale_embedding = nn.Sequential(Linear(2 * channels, dim), nn.GELU(), Linear(dim, dim))
        self.num_levels = levels
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(dim, 1, dropout) for _ in range(levels * blocks_per_level)
        )
        self.final_norm = nn.LayerNorm(dim)

    def pool_index(self, series: Float[Tensor, "B T R"]) -> None:
        return None

    def forward(self, series: Float[Tensor, "B T R"]) -> Tokens:
        series, mean, spread = standardize(
            F.pad(series, (0, 0, 0, -series.shape[1] % (self.stride << self.num_levels)))
        )
        there = rearrange(valid_steps(series), "b (t s) -> b t s", s=self.stride).any(-1)
        x = self.stem(series.transpose(1, 2)).transpose(1, 2)
        x = x + self.scale_embedding(torch.cat([mean.asinh(), spread.log()], -1))[:, None]
        for i, block in enumerate(self.blocks, 1):
            x = block(x * there[..., None])
            if i % (len(self.blocks) // self.num_levels) == 0:
                x, there = max_pool_pairs(x, there)
        return Tokens(self.final_norm(x), sequence_positions(x), valid=valid_or_none(there))
