"""How attention learns where tokens are: objects handed to Attention.

B batch   H heads   T queries   S keys   K head width
"""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotary(nn.Module):
    """Turn each pair (i, i + K/2) of a head by an angle that grows with time (Su et al. 2021; Llama's layout).

    What a query and a key have to do with each other then depends on the distance between them alone.
    """

    def __init__(self, head_dim: int, base: float = 10_000.0):
        super().__init__()
        self.register_buffer(
            "inv_freq", base ** (-torch.arange(0, head_dim, 2).float() / head_dim), persistent=False
        )
        self.inv_freq: Tensor

    def rotate(
        self, x: Float[Tensor, "B H T K"], pos: Float[Tensor, "B T 3"]
    ) -> Float[Tensor, "B H T K"]:
        angle = (pos[:, :, :1] * self.inv_freq)[:, None]
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, None]:
        return self.rotate(q, q_pos), self.rotate(k, k_pos), None


class RelativeBias(nn.Module):
    """One learned number a head for each distance, far ones in ever wider buckets (T5, Raffel et al. 2020).

    Hand the same object to every layer: T5 shares it.
    """

    def __init__(self, heads: int, num_buckets: int = 32, max_distance: int = 128):
        super().__init__()
        self.bias, self.max_distance = nn.Embedding(num_buckets, heads), max_distance

    def bucket(self, distance: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        """Half of the buckets for keys ahead of the query, half for those behind; in each, half for exact distances."""
        half = self.bias.num_embeddings // 2
        exact, far = half // 2, distance.abs()
        reach = torch.log(far.float().clamp(min=1) / exact) / math.log(self.max_distance / exact)
        wide = exact + (reach * (half - exact)).long()
        return torch.where(far < exact, far, wide.clamp(max=half - 1)) + half * (distance > 0)

    def forward(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, Float[Tensor, "B H T S"]]:
        distance = (k_pos[:, None, :, 0] - q_pos[:, :, None, 0]).long()
        return q, k, self.bias(self.bucket(distance)).permute(0, 3, 1, 2)


def sinusoidal_positions(length: int, dim: int) -> Float[Tensor, "T D"]:
    """Sines, then cosines, of time at rates from 1 to 1/10,000 (Vaswani et al. 2017)."""
    angles = np.arange(length)[:, None] * np.exp(
        -math.log(10_000) / (dim // 2 - 1) * np.arange(dim // 2)
    )
    return torch.tensor(np.concatenate([np.sin(angles), np.cos(angles)], 1), dtype=torch.float32)
