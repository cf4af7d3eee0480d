"""Convolutions along a line of tokens, in place of a transformer.

    B batch   T tokens   D width
"""
from dataclasses import replace

from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.tokens import Tokens, at_place
from sensorium.transformer import FeedForward

REACH = 3                                   # neighbours on each side that a convolution looks at


class Mixing(nn.Module):
    """x + mlp(norm(convolution(x))), each channel with its own weights along time (ConvNeXt, Liu et al. 2022)."""

    def __init__(self, dim: int, step: int, dropout: float):
        super().__init__()
        self.along = nn.Conv1d(dim, dim, 2 * REACH + 1, padding=REACH * step, dilation=step, groups=dim)
        self.norm, self.mlp, self.drop = nn.LayerNorm(dim), FeedForward(dim, 4 * dim), nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        return x + self.drop(self.mlp(self.norm(self.along(x.transpose(1, 2)).transpose(1, 2))))


class Convolutions(nn.Module):
    """Tokens → Tokens. Each block looks twice as far as the one before; what is not valid is 0, as beyond the ends."""

    def __init__(self, dim: int, depth: int, *, dropout: float = 0.0):
        super().__init__()
        self.blocks = nn.ModuleList(Mixing(dim, 2 ** i, dropout) for i in range(depth))
        self.last = nn.LayerNorm(dim)

    def forward(self, t: Tokens, *, only: Int[Tensor, "B"] | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence."""
        x = t.x
        for block in self.blocks:
            x = block(x if t.valid is None else x * t.valid[..., None])
        said = replace(t, x=self.last(x))
        return said if only is None else at_place(said, only)
