"""Eight ways to fuse the embeddings of several modalities into one; missing ones do not count.

B batch   P modalities   T tokens of a modality   S tokens of all modalities   D width   R rank

`uses_tokens` is True for a fusion of all tokens of a modality, False for one of pooled embeddings.
Modalities are passed by name; one that no row of a batch has may be left out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.nn.attention import CrossAttention
from sensorium.nn.linear import normal_parameter
from sensorium.nn.tokens import ColumnKey, Tokens, join, mean_pool, sequence_positions, valid_mask
from sensorium.nn.transformer import FeedForward, build_transformer, num_heads

HEAD_DIM = 32
"""Width of an attention head."""

BOTTLENECK_TOKENS = 4
"""Tokens through which bottleneck fusion exchanges information."""

FUSION_RANK = 4
"""Rank of low-rank fusion."""

MIN_TOTAL_WEIGHT = 1e-6
"""Smallest divisor of a weighted mean."""


class PerModalityLinear(nn.Module):
    """A linear layer without bias for each modality.

    Args:
        names: Names of the modalities.
        dim: Width of the embeddings.
        std: Factor on the standard deviation of the initial weights.
    """

    uses_tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int, std: float = 1.0):
        super().__init__()
        self.names = list(names)
        self.weight = normal_parameter(len(names), dim, dim, std=std * dim**-0.5)

    def stack(
        self, parts: Mapping[ColumnKey, Tokens]
    ) -> tuple[Float[Tensor, "B P D"], Bool[Tensor, "B P"]]:
        """Return the embeddings of all modalities and their presence mask."""
        example = next(iter(parts.values()))
        missing = Tokens(
            torch.zeros_like(example.x[:, :1]),
            example.pos[:, :1],
            None,
            torch.zeros_like(valid_mask(example)[:, :1]),
        )
        tokens = [parts.get(name, missing) for name in self.names]
        return torch.cat([t.x for t in tokens], 1), torch.cat([valid_mask(t) for t in tokens], 1)

    def project(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """Apply the linear layer of each modality."""
        return torch.einsum("bpd,pde->bpe", x, self.weight.to(x.dtype))


class ConcatFusion(PerModalityLinear):
    """A linear layer on the concatenated embeddings; a learned vector replaces a missing one.

    Args:
        names: Names of the modalities.
        dim: Width of the embeddings.
    """

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim, len(names) ** -0.5)
        self.missing_embedding = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse pooled embeddings."""
        x, present = self.stack(parts)
        missing = self.missing_embedding.to(x.dtype)
        return torch.where(present[..., None], self.project(x), missing).sum(1)


class SumFusion(PerModalityLinear):
    """The mean of the present modalities' projected embeddings."""

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse pooled embeddings."""
        x, present = self.stack(parts)
        return _weighted_mean(self.project(x), present.to(x.dtype)[..., None])


class GatedFusion(PerModalityLinear):
    """A mean with a learned gate for each feature of each modality (after Arevalo et al. 2017).

    Args:
        names: Names of the modalities.
        dim: Width of the embeddings.
    """

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.gate = nn.Parameter(torch.zeros(len(names), dim, dim))
        self.gate_bias = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse pooled embeddings."""
        x, present = self.stack(parts)
        gate_logits = torch.einsum("bpd,pde->bpe", x, self.gate.to(x.dtype))
        gates = torch.sigmoid(gate_logits + self.gate_bias.to(x.dtype))
        return _weighted_mean(self.project(x), gates * present[..., None])


class LateFusion(nn.Module):
    """A separate branch for each modality, averaged with learned weights (late fusion).

    Args:
        names: Names of the modalities.
        dim: Width of the embeddings.
    """

    uses_tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.input_projection = PerModalityLinear(names, dim)
        self.branches = nn.ModuleList(FeedForward(dim, 2 * dim) for _ in names)
        self.weights = nn.Parameter(torch.zeros(len(names)))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse pooled embeddings."""
        x, present = self.input_projection.stack(parts)
        x = self.input_projection.project(x)
        outputs = [x[:, i] + branch(x[:, i]) for i, branch in enumerate(self.branches)]
        weights = (self.weights.exp() * present)[..., None]
        return _weighted_mean(torch.stack(outputs, 1), weights)


class LowRankFusion(PerModalityLinear):
    """The low-rank outer product of the embeddings (Liu et al. 2018); a missing factor is 1.

    Args:
        names: Names of the modalities.
        dim: Width of the embeddings.
    """

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.factors = normal_parameter(len(names), FUSION_RANK, dim, dim, std=0.5 * dim**-0.5)
        self.rank_weights = nn.Parameter(torch.full((FUSION_RANK,), 1 / FUSION_RANK))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse pooled embeddings."""
        x, present = self.stack(parts)
        factors = 1 + torch.einsum("bpd,prde->bpre", x, self.factors.to(x.dtype))
        product = factors.masked_fill(~present[..., None, None], 1).prod(1)
        interaction = torch.einsum("bre,r->be", product, self.rank_weights.to(x.dtype))
        return interaction + _weighted_mean(self.project(x), present[..., None])


class CrossAttentionFusion(nn.Module):
    """The pooled embedding of each modality attends to the tokens of all others.

    Args:
        names: Names of the modalities.
        dim: Width of the tokens.
    """

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.names = list(names)
        self.modality_embedding = normal_parameter(len(names), dim, std=0.02)
        self.norm = nn.LayerNorm(dim)
        self.cross_attention = CrossAttention(dim, num_heads(dim, HEAD_DIM))
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 2 * dim)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse tokens."""
        marked = _add_modality_embedding(parts, self.names, self.modality_embedding)
        keys = join(*marked)
        pooled = torch.stack([mean_pool(t) for t in marked], 1)
        present = torch.stack([valid_mask(t).any(1) for t in marked], 1)
        attended = self.cross_attention(
            self.norm(pooled), self.norm(keys.x), _mask_of_other_modalities(marked)[:, None]
        )
        x = pooled + attended
        return _weighted_mean(x + self.mlp(self.mlp_norm(x)), present.to(x.dtype)[..., None])


class EarlyFusion(nn.Module):
    """One transformer over the tokens of all modalities, pooled by a class token (early fusion).

    Args:
        names: Names of the modalities.
        dim: Width of the tokens.
        depth: Number of blocks.
        dropout: Dropout on the residual branches.
    """

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.modality_embedding = normal_parameter(len(names), dim, std=0.02)
        self.cls_token = nn.Parameter(torch.zeros(dim))
        self.trunk = build_transformer(dim, depth, num_heads(dim, HEAD_DIM), dropout=dropout)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse tokens."""
        marked = _add_modality_embedding(parts, self.names, self.modality_embedding)
        example = marked[0].x
        cls_x = self.cls_token.to(example.dtype).expand(example.shape[0], 1, -1)
        cls_token = Tokens(cls_x, sequence_positions(cls_x))
        first = torch.zeros(example.shape[0], dtype=torch.long, device=example.device)
        return self.trunk(join(cls_token, *marked), query_positions=first).x[:, 0]


class BottleneckLayer(nn.Module):
    """One transformer block for each modality, over its tokens and the bottleneck tokens.

    Args:
        names: Names of the modalities.
        dim: Width of the tokens.
        dropout: Dropout on the residual branches.
    """

    def __init__(self, names: Sequence[ColumnKey], dim: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.branches = nn.ModuleList(
            build_transformer(dim, 1, num_heads(dim, HEAD_DIM), dropout=dropout) for _ in names
        )

    def forward(
        self,
        bottleneck: Float[Tensor, "B N D"],
        parts: Mapping[ColumnKey, Tokens],
        weights: Float[Tensor, "B P 1"],
    ) -> tuple[Float[Tensor, "B N D"], dict[ColumnKey, Tokens]]:
        """Return the bottleneck tokens, averaged over modalities, and each modality's tokens."""
        updates: list[Tensor] = []
        outputs: dict[ColumnKey, Tokens] = {}
        for name, t in parts.items():
            shared = Tokens(bottleneck, sequence_positions(bottleneck))
            x = self.branches[self.names.index(name)](join(shared, t)).x
            updates.append(x[:, : bottleneck.shape[1]])
            outputs[name] = replace(t, x=x[:, bottleneck.shape[1] :])
        mean = _weighted_mean(torch.stack(updates, 1).flatten(2), weights)
        return mean.view_as(bottleneck), outputs


class BottleneckFusion(nn.Module):
    """Modalities exchange information only through a few shared tokens (Nagrani et al. 2021).

    Args:
        names: Names of the modalities.
        dim: Width of the tokens.
        depth: Number of blocks of each modality.
        dropout: Dropout on the residual branches.
    """

    uses_tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.bottleneck_tokens = normal_parameter(BOTTLENECK_TOKENS, dim, std=0.02)
        self.layers = nn.ModuleList(BottleneckLayer(names, dim, dropout) for _ in range(depth))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        """Fuse tokens."""
        parts = {name: replace(t, order=None) for name, t in parts.items()}
        example = next(iter(parts.values())).x
        bottleneck = self.bottleneck_tokens.to(example.dtype).expand(example.shape[0], -1, -1)
        present = torch.stack([valid_mask(t).any(1) for t in parts.values()], 1)
        weights = present.to(bottleneck.dtype)[..., None]
        for layer in self.layers:
            bottleneck, parts = layer(bottleneck, parts, weights)
        return bottleneck.mean(1)


def _add_modality_embedding(
    parts: Mapping[ColumnKey, Tokens], names: list[ColumnKey], embedding: Tensor
) -> list[Tokens]:
    """Return each modality's tokens without an order and with its embedding added."""
    return [
        replace(t, x=t.x + embedding[names.index(name)].to(t.x.dtype), order=None)
        for name, t in parts.items()
    ]


def _mask_of_other_modalities(tokens: Sequence[Tokens]) -> Bool[Tensor, "B P S"]:
    """Return, for each modality, True for the real tokens of all others."""
    valid = torch.cat([valid_mask(t) for t in tokens], 1)
    index = [torch.full((t.x.shape[1],), i) for i, t in enumerate(tokens)]
    modality_of_token = torch.cat(index).to(valid.device)
    modality = torch.arange(len(tokens), device=valid.device)[:, None]
    return (modality_of_token != modality) & valid[:, None]


def _weighted_mean(x: Float[Tensor, "B P D"], weight: Tensor) -> Float[Tensor, "B D"]:
    """Return the weighted mean over modalities; zero where all weights are."""
    weight = weight.to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=MIN_TOTAL_WEIGHT)


FusionBuilder = Callable[[Sequence[ColumnKey], int, int, float], nn.Module]


def _without_depth(fusion: Callable[[Sequence[ColumnKey], int], nn.Module]) -> FusionBuilder:
    """Return a builder of a fusion that has neither depth nor dropout."""

    def build(names: Sequence[ColumnKey], dim: int, *_: float) -> nn.Module:
        return fusion(names, dim)

    return build


FUSIONS: dict[str, FusionBuilder] = {
    "concat": _without_depth(ConcatFusion),
    "sum": _without_depth(SumFusion),
    "gated": _without_depth(GatedFusion),
    "attention": _without_depth(CrossAttentionFusion),
    "sequence": EarlyFusion,
    "parallel": _without_depth(LateFusion),
    "bottleneck": BottleneckFusion,
    "low_rank": _without_depth(LowRankFusion),
}
"""Fusions by name: (names, dim, depth, dropout) → module."""
