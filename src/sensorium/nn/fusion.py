"""Many parts to one vector: eight ways to fuse, none of which counts a part that is not there.

    B batch   P parts   T tokens of a part   D width   R rank

`tokens` says what a way wants of each part: all of its tokens, or one for the whole. Parts come by name; one that no
row of a batch has may be left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.nn.attention import CrossAttention
from sensorium.nn.linear import normal_parameter
from sensorium.nn.tokens import ColumnKey, Tokens, join, mean_pool, sequence_positions, valid_mask
from sensorium.nn.transformer import FeedForward, build_transformer

HEAD_DIM = 32  # width of one attention head
BOTTLENECK_TOKENS = 4  # tokens of a bottleneck
FUSION_RANK = 4  # of a product


class PerModalityLinear(nn.Module):
    """What ways that take one vector a part have in common: a matrix of its own for each part."""

    uses_tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int, std: float = 1.0):
        super().__init__()
        self.names = list(names)
        self.weight = normal_parameter(len(names), dim, dim, std=std * dim**-0.5)

    def stack(
        self, parts: Mapping[ColumnKey, Tokens]
    ) -> tuple[Float[Tensor, "B P D"], Bool[Tensor, "B P"]]:
        """(vectors, which of them are there)."""
        some = next(iter(parts.values()))
        nothing = Tokens(
            torch.zeros_like(some.x[:, :1]),
            some.pos[:, :1],
            None,
            torch.zeros_like(valid_mask(some)[:, :1]),
        )
        each = [parts.get(name, nothing) for name in self.names]
        return torch.cat([t.x for t in each], 1), torch.cat([valid_mask(t) for t in each], 1)

    def project(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """Each part by its own matrix."""
        return torch.einsum("bpd,pde->bpe", x, self.weight.to(x.dtype))


class ConcatFusion(PerModalityLinear):
    """One matrix on all vectors side by side; in the place of an absent one stands what was learned for its absence."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim, len(names) ** -0.5)
        self.missing_embedding = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stack(parts)
        return torch.where(
            there[..., None], self.project(x), self.missing_embedding.to(x.dtype)
        ).sum(1)


class SumFusion(PerModalityLinear):
    """The mean of the parts that are there, each by its own matrix."""

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stack(parts)
        return _weighted_mean(self.project(x), there.to(x.dtype)[..., None])


class GatedFusion(PerModalityLinear):
    """A sum in which every number of every part has a weight that depends on the part (after Arevalo et al. 2017)."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.gate = nn.Parameter(torch.zeros(len(names), dim, dim))
        self.gate_bias = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stack(parts)
        gates = torch.sigmoid(
            torch.einsum("bpd,pde->bpe", x, self.gate.to(x.dtype)) + self.gate_bias.to(x.dtype)
        )
        return _weighted_mean(self.project(x), gates * there[..., None])


class LateFusion(nn.Module):
    """Each part goes its own way to the end; the mean of what they come to, as far as each is trusted (late fusion)."""

    uses_tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.input_projection = PerModalityLinear(names, dim)
        self.branches = nn.ModuleList(FeedForward(dim, 2 * dim) for _ in names)
        self.weights = nn.Parameter(torch.zeros(len(names)))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.input_projection.stack(parts)
        x = self.input_projection.project(x)
        ends = torch.stack([x[:, i] + way(x[:, i]) for i, way in enumerate(self.branches)], 1)
        return _weighted_mean(ends, (self.weights.exp() * there)[..., None])


class LowRankFusion(PerModalityLinear):
    """Parts multiplied with each other, at a low rank (Liu et al. 2018); an absent one is a factor of 1."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.factors = normal_parameter(len(names), FUSION_RANK, dim, dim, std=0.5 * dim**-0.5)
        self.rank_weights = nn.Parameter(torch.full((FUSION_RANK,), 1 / FUSION_RANK))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stack(parts)
        factors = 1 + torch.einsum("bpd,prde->bpre", x, self.factors.to(x.dtype))
        whole = factors.masked_fill(~there[..., None, None], 1).prod(1)
        return torch.einsum("bre,r->be", whole, self.rank_weights.to(x.dtype)) + _weighted_mean(
            self.project(x), there[..., None]
        )


class CrossAttentionFusion(nn.Module):
    """The whole of each part looks at the tokens of all others; the mean of the parts that are there."""

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.names = list(names)
        self.modality_embedding = normal_parameter(len(names), dim, std=0.02)
        self.norm, self.cross_attention = nn.LayerNorm(dim), CrossAttention(dim, _num_heads(dim))
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, 2 * dim)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        numbers = [self.names.index(name) for name in parts]
        marked = [
            replace(t, x=t.x + self.modality_embedding[i].to(t.x.dtype), order=None)
            for i, t in zip(numbers, parts.values(), strict=True)
        ]
        every, whole = join(*marked), torch.stack([mean_pool(t) for t in marked], 1)
        there = torch.stack([valid_mask(t).any(1) for t in marked], 1)
        of = torch.cat([torch.full((t.x.shape[1],), i) for i, t in enumerate(marked)]).to(
            whole.device
        )
        others = (of != torch.arange(len(marked), device=of.device)[:, None]) & valid_mask(every)[
            :, None
        ]
        x = whole + self.cross_attention(self.norm(whole), self.norm(every.x), others[:, None])
        return _weighted_mean(x + self.mlp(self.mlp_norm(x)), there.to(x.dtype)[..., None])


class EarlyFusion(nn.Module):
    """All tokens of all parts in one transformer, read off at a token of its own (early fusion)."""

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.modality_embedding, self.cls_token = (
            normal_parameter(len(names), dim, std=0.02),
            nn.Parameter(torch.zeros(dim)),
        )
        self.trunk = build_transformer(dim, depth, _num_heads(dim), dropout=dropout)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        marked = [
            replace(
                t, x=t.x + self.modality_embedding[self.names.index(name)].to(t.x.dtype), order=None
            )
            for name, t in parts.items()
        ]
        some = marked[0]
        first = self.cls_token.to(some.x.dtype).expand(some.x.shape[0], 1, -1)
        at = torch.zeros(some.x.shape[0], dtype=torch.long, device=some.x.device)
        return self.trunk(
            join(Tokens(first, sequence_positions(first)), *marked), query_positions=at
        ).x[:, 0]


class BottleneckFusion(nn.Module):
    """Parts meet only in a few shared tokens, block after block (Nagrani et al. 2021)."""

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.bottleneck_tokens = normal_parameter(BOTTLENECK_TOKENS, dim, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                build_transformer(dim, 1, _num_heads(dim), dropout=dropout) for _ in names
            )
            for _ in range(depth)
        )

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        parts = {name: replace(t, order=None) for name, t in parts.items()}
        some = next(iter(parts.values()))
        neck = self.bottleneck_tokens.to(some.x.dtype).expand(some.x.shape[0], -1, -1)
        there = torch.stack([valid_mask(t).any(1) for t in parts.values()], 1).to(neck.dtype)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            necks = []
            for name, t in parts.items():
                said = layer[self.names.index(name)](
                    join(Tokens(neck, sequence_positions(neck)), t)
                )
                necks.append(said.x[:, :BOTTLENECK_TOKENS])
                parts[name] = replace(t, x=said.x[:, BOTTLENECK_TOKENS:])
            neck = _weighted_mean(torch.stack(necks, 1).flatten(2), there[..., None]).view_as(neck)
        return neck.mean(1)


def _weighted_mean(x: Float[Tensor, "B P D"], weight: Tensor) -> Float[Tensor, "B D"]:
    """The mean of the parts by weight; zero where none has any."""
    weight = weight.to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


def _num_heads(dim: int) -> int:
    return max(1, dim // HEAD_DIM)


FUSIONS: dict[str, Callable[[Sequence[ColumnKey], int, int, float], nn.Module]] = {
    "concat": lambda names, dim, depth, dropout: ConcatFusion(names, dim),
    "sum": lambda names, dim, depth, dropout: SumFusion(names, dim),
    "gated": lambda names, dim, depth, dropout: GatedFusion(names, dim),
    "attention": lambda names, dim, depth, dropout: CrossAttentionFusion(names, dim),
    "sequence": EarlyFusion,
    "parallel": lambda names, dim, depth, dropout: LateFusion(names, dim),
    "bottleneck": BottleneckFusion,
    "low_rank": lambda names, dim, depth, dropout: LowRankFusion(names, dim),
}
