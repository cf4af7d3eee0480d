"""1-D convolutions over token sequences and time series.

B batch   T tokens or time steps   S half of the time steps   D width
"""

from dataclasses import replace

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, take_token
from sensorium.nn.transformer import FeedForward

KERNEL_RADIUS = 3
"""Neighbours on each side of a convolution."""

TARGET_TOKENS = 16
"""Approximate number of tokens of a typical series after the last pyramid level."""


class ConvNeXtBlock(nn.Module):
    """A ConvNeXt block along time: x + mlp(norm(depthwise convolution(x))) (Liu et al. 2022).

    Args:
        dim: Width of the tokens.
        dilation: Dilation of the depthwise convolution.
        dropout: Dropout on the residual branch.
    """

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
        self.norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 4 * dim)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Add the residual branch."""
        neighbours = self.dwconv(x.transpose(1, 2)).transpose(1, 2)
        return x + self.drop_path(self.dropout(self.mlp(self.norm(neighbours))))


class Convolutions(nn.Module):
    """A stack of ConvNeXt blocks in place of a transformer; each doubles the dilation.

    Padding tokens are set to 0, as positions beyond the ends are.

    Args:
        dim: Width of the tokens.
        depth: Number of blocks.
        dropout: Dropout on the residual branches.
    """

    def __init__(self, dim: int, depth: int, *, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(ConvNeXtBlock(dim, 2**i, dropout) for i in range(depth))
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, t: Tokens, *, query_positions: Int[Tensor, "B"] | None = None) -> Tokens:
        """Transform all tokens, or return one of each sequence at `query_positions`."""
        x = t.x
        for block in self.blocks:
            x = block(x if t.valid is None else x * t.valid[..., None])
        output = replace(t, x=self.final_norm(x))
        return output if query_positions is None else take_token(output, query_positions)


def max_pool_pairs(
    x: Float[Tensor, "B T D"], present: Bool[Tensor, "B T"]
) -> tuple[Float[Tensor, "B S D"], Bool[Tensor, "B S"]]:
    """Return the maximum over each pair of time steps, ignoring missing ones.

    Args:
        x: Features of an even number of steps.
        present: Presence mask of the steps.

    Returns:
        Pooled features, 0 where both steps are missing, and their presence mask.
    """
    masked = x.masked_fill(~present[..., None], -torch.inf)
    pairs = rearrange(masked, "b (s two) d -> b s two d", two=2)
    pair_present = rearrange(present, "b (s two) -> b s two", two=2).any(-1)
    return pairs.amax(2).masked_fill(~pair_present[..., None], 0), pair_present
