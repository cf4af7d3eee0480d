"""Position encodings that are passed to Attention.

B batch   H heads   T queries   S keys   K head width   D width
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotary position embedding (RoPE, Su et al. 2021), in Llama's layout.

    Each pair (i, i + K/2) of a head is rotated by an angle proportional to time, so that attention
    logits depend on the distance between query and key only.

    Args:
        head_dim: Width K of a head.
        base: Base of the geometric series of frequencies.
    """

    inv_freq: Tensor

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        exponent = torch.arange(0, head_dim, 2).float() / head_dim
        self.register_buffer("inv_freq", base**-exponent, persistent=False)

    def rotate(
        self, x: Float[Tensor, "B H T K"], pos: Float[Tensor, "B T 3"]
    ) -> Float[Tensor, "B H T K"]:
        """Rotate the pairs of each head by the angles of these positions."""
        angle = (pos[:, :, :1] * self.inv_freq)[:, None]
        cos = angle.cos().to(x.dtype)
        sin = angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        """Return rotated queries and keys, and no bias."""
        return self.rotate(q, q_pos), self.rotate(k, k_pos), None


class RelativeBias(nn.Module):
    """Learned attention bias for each head and distance (T5, Raffel et al. 2020).

    Distances are grouped into buckets that widen logarithmically. T5 shares one object among all
    layers.

    Args:
        heads: Number of heads.
        num_buckets: Number of buckets, half of them for keys after the query.
        max_distance: Distance from which on all fall into the last bucket.
    """

    def __init__(self, heads: int, num_buckets: int = 32, max_distance: int = 128):
        super().__init__()
        self.bias = nn.Embedding(num_buckets, heads)
        self.max_distance = max_distance

    def bucket(self, distance: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Return the bucket of each signed distance.

        Half of the buckets are for keys after the query, half for keys before it; in each half,
        half are for exact distances.
        """
        half = self.bias.num_embeddings // 2
        num_exact = half // 2
        length = distance.abs()
        log_ratio = torch.log(length.float().clamp(min=1) / num_exact)
        fraction = log_ratio / math.log(self.max_distance / num_exact)
        wide = num_exact + (fraction * (half - num_exact)).long()
        bucket = torch.where(length < num_exact, length, wide.clamp(max=half - 1))
        return bucket + half * (distance > 0)

    def forward(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, Float[Tensor, "B H T S"]]:
        """Return queries and keys unchanged, and the bias of each pair."""
        distance = (k_pos[:, None, :, 0] - q_pos[:, :, None, 0]).long()
        return q, k, self.bias(self.bucket(distance)).permute(0, 3, 1, 2)


def sinusoidal_positions(length: int, dim: int) -> Float[Tensor, "T D"]:
    """Return sines, then cosines, of time at rates from 1 to 1/10,000 (Vaswani et al. 2017)."""
    rates = np.exp(-math.log(10_000) / (dim // 2 - 1) * np.arange(dim // 2))
    angles = np.arange(length)[:, None] * rates
    return torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)], 1), dtype=torch.float32)
