"""Embedding of the time of a diffusion process.

B batch   E width of the embedding
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.linear import Linear

MAX_PERIOD = 10_000


def sinusoidal_embedding(time: Float[Tensor, "B"], dim: int) -> Float[Tensor, "B E"]:
    """Return cosines, then sines, of time at rates from 1 to 1/10,000 (Ho et al. 2020).

    Args:
        time: Times, usually 0 to 1000.
        dim: Width E of the embedding, even.
    """
    half = dim // 2
    rates = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=time.device).float())
    angles = time.float()[:, None] * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


class TimeEmbedding(nn.Module):
    """Sinusoids of the time, followed by two linear layers.

    Args:
        dim: Width of the output.
        num_frequencies: Width of the sinusoidal embedding.
    """

    def __init__(self, dim: int, num_frequencies: int = 256):
        super().__init__()
        self.num_frequencies = num_frequencies
        self.up = Linear(num_frequencies, dim)
        self.down = Linear(dim, dim)

    def forward(self, time: Float[Tensor, "B"]) -> Float[Tensor, "B E"]:
        """Embed times of 0 to 1000."""
        x = sinusoidal_embedding(time, self.num_frequencies)
        return self.down(nn.functional.silu(self.up(x)))
