"""Encoders of single columns, and the dual-encoder model that aligns them in one space.

B batch   T tokens   D width of a tower   E width of the shared space
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.projection import TokenAndGlobalProjection
from sensorium.nn.tokens import (
    ColumnKey,
    Tokens,
    column_names,
    l2_normalize,
    mean_pool,
    take_token,
)


@runtime_checkable
class InputEmbedding(Protocol):
    """A module that maps a batch of values to Tokens."""

    def __call__(self, raw: Tensor, /) -> Tokens:
        """Embed a batch of values."""
        ...

    def pool_index(self, raw: Tensor, /) -> Int[Tensor, "B"] | None:
        """Return the index of each sequence's summary token, or None if tokens are averaged."""
        ...


class Encoder(nn.Module):
    """A column encoder: input embedding, trunk and pooling.

    Args:
        embed: Maps raw values to Tokens.
        trunk: A Transformer, or another module that maps Tokens to Tokens and takes
            `query_positions`; None for no trunk.
        pool: Reduces all tokens to one; by default their mean. Unused if the embedding has a
            summary token.
    """

    def __init__(
        self, embed: InputEmbedding, trunk: nn.Module | None = None, pool: nn.Module | None = None
    ):
        super().__init__()
        self.embed = embed
        self.trunk = trunk
        self.pool = pool

    def forward(self, raw: Tensor) -> Tokens:
        """Return all tokens after the trunk."""
        t = self.embed(raw)
        return t if self.trunk is None else self.trunk(t)

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """Return one vector per value; the last block computes only the summary token, if any."""
        index = self.embed.pool_index(raw)
        if index is None:
            return self._pool_tokens(self(raw))
        t = self.embed(raw)
        summary = (
            take_token(t, index) if self.trunk is None else self.trunk(t, query_positions=index)
        )
        return summary.x[:, 0]

    def pooled_and_tokens(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """Return the pooled embedding of each value and all of its tokens."""
        index = self.embed.pool_index(raw)
        t = self(raw)
        if index is None:
            return self._pool_tokens(t), t
        return take_token(t, index).x[:, 0], t

    def _pool_tokens(self, t: Tokens) -> Float[Tensor, "B D"]:
        """Reduce all tokens to one vector."""
        return mean_pool(t) if self.pool is None else self.pool(t).x[:, 0]


@dataclass(frozen=True)
class TowerOutput:
    """Unit vectors of a tower in the shared space.

    Attributes:
        vector: Pooled embedding of each value.
        tokens: Projected tokens; None unless the projection is multi-scale.
    """

    vector: Float[Tensor, "B E"]
    tokens: Tokens | None = None


class Tower(nn.Module):
    """An encoder followed by a projection into the shared space.

    Args:
        encoder: The column's encoder, of width D.
        projection: Maps D to E.
        embed_dim: E.
    """

    def __init__(self, encoder: Encoder, projection: nn.Module, embed_dim: int):
        super().__init__()
        self.encoder = encoder
        self.projection = projection
        self.embed_dim = embed_dim

    def forward(self, raw: Tensor) -> Float[Tensor, "B E"]:
        """Return the unit embedding of each value."""
        return l2_normalize(self.projection(self.encoder.pooled(raw)))

    def encode(self, raw: Tensor) -> TowerOutput:
        """Return the unit embeddings, with projected tokens if the projection is multi-scale."""
        if not isinstance(self.projection, TokenAndGlobalProjection):
            return TowerOutput(self(raw))
        pooled, tokens = self.encoder.pooled_and_tokens(raw)
        vector = l2_normalize(self.projection(pooled))
        projected = l2_normalize(self.projection.token_projection(tokens.x))
        return TowerOutput(vector, replace(tokens, x=projected))


RESERVED_NAMES = frozenset([*dir(nn.ModuleDict()), "logit_scale", "logit_bias"])


def module_name(key: ColumnKey) -> str:
    """Return a unique submodule name for a column key.

    Dots, commas and "%" are percent-encoded. "%" is prefixed to names that modules already use.
    """
    name = ",".join(
        part.replace("%", "%25").replace(".", "%2E").replace(",", "%2C")
        for part in column_names(key)
    )
    return f"%{name}" if not name or name in RESERVED_NAMES else name


class Towers(nn.ModuleDict):
    """Towers that share one embedding space, by column, with a learned temperature (CLIP).

    Args:
        towers: The tower of each column.
        temperature: Initial softmax temperature; its inverse is learned in log space.
        use_logit_bias: Also learn an offset of the logits, as the sigmoid loss needs (SigLIP).
            It is added to an initial offset that depends on the batch size.
    """

    def __init__(
        self,
        towers: Mapping[ColumnKey, Tower],
        *,
        temperature: float = 0.07,
        use_logit_bias: bool = False,
    ):
        super().__init__({module_name(key): tower for key, tower in towers.items()})
        self.columns: list[ColumnKey] = list(towers)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.logit_bias = nn.Parameter(torch.zeros(())) if use_logit_bias else None

    def __getitem__(self, key: ColumnKey) -> Tower:
        return cast("Tower", super().__getitem__(module_name(key)))

    def by_column(self) -> dict[ColumnKey, Tower]:
        """Return all towers by column."""
        return {key: self[key] for key in self.columns}

    def renamed(self, names: Mapping[ColumnKey, ColumnKey]) -> "Towers":
        """Return Towers with the towers in `names` under their new keys, sharing all weights."""
        result = Towers(
            {new: self[old] for old, new in names.items()},
            use_logit_bias=self.logit_bias is not None,
        )
        result.logit_scale = self.logit_scale
        result.logit_bias = self.logit_bias
        return result

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Clamp the logit scale to [1, 100]; called after each optimizer step (CLIP)."""
        self.logit_scale.clamp_(0, math.log(100))


def freeze(module: nn.Module, except_types: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """Freeze all parameters in place, except in submodules of the given types."""
    module.requires_grad_(False)
    for submodule in module.modules():
        if isinstance(submodule, except_types):
            submodule.requires_grad_(True)
    return module
