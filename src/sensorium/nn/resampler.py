"""Learned queries that attend to a sequence: pooling, fusion bottleneck or Flamingo's resampler.

D width
"""

from dataclasses import replace

from torch import nn

from sensorium.nn.attention import CrossAttention
from sensorium.nn.linear import normal_parameter
from sensorium.nn.tokens import Tokens, join, valid_mask
from sensorium.nn.transformer import FeedForward


class ResamplerLayer(nn.Module):
    """Cross-attention of queries over a sequence and themselves, then feed-forward layers.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.query_norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, heads)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 4 * dim)

    def forward(self, queries: Tokens, t: Tokens) -> Tokens:
        """Return the queries after attending to `t`."""
        normed = self.query_norm(queries.x)
        keys = join(replace(t, x=self.norm(t.x), order=None), replace(queries, x=normed))
        mask = None if t.valid is None else valid_mask(keys)[:, None, None, :]
        x = queries.x + self.cross_attention(normed, keys.x, mask)
        return replace(queries, x=x + self.mlp(self.mlp_norm(x)))


class Resampler(nn.Module):
    """Learned queries that attend to a sequence and to themselves (perceiver resampler).

    One query pools the sequence, four are a fusion bottleneck, 64 are Flamingo's resampler
    (Alayrac et al. 2022). As queries attend to themselves, an empty sequence gives finite outputs.

    Args:
        dim: Width of the tokens.
        num_queries: Number of queries.
        heads: Number of heads.
        depth: Number of layers.
    """

    def __init__(self, dim: int, num_queries: int = 1, *, heads: int = 1, depth: int = 1):
        super().__init__()
        self.queries = normal_parameter(num_queries, dim, std=0.02)
        self.layers = nn.ModuleList(ResamplerLayer(dim, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, t: Tokens) -> Tokens:
        """Return the queries' features after attending to `t`."""
        batch_size = t.x.shape[0]
        queries = Tokens(
            self.queries.expand(batch_size, -1, -1),
            t.pos.new_zeros(batch_size, len(self.queries), 3),
        )
        for layer in self.layers:
            queries = layer(queries, t)
        return replace(queries, x=self.final_norm(queries.x))
