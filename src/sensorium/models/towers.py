"""The few shapes a multimodal model takes. No family has a name in here.

B batch   T tokens   D width of a tower   E width of the shared space   V vocabulary
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

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
    """Raw values → Tokens."""

    def __call__(self, raw: Tensor, /) -> Tokens: ...

    def pool_index(self, raw: Tensor, /) -> Int[Tensor, "B"] | None:
        """The place of the token that speaks for the whole, for each sequence; None: the mean of all speaks."""
        ...


class Encoder(nn.Module):
    """embed → trunk: raw values in, tokens out. `pool` makes one token of all, if none speaks for the whole.

    The trunk is a Transformer, or whatever else takes Tokens (and `only`) as it does.
    """

    def __init__(
        self, embed: InputEmbedding, trunk: nn.Module | None = None, pool: nn.Module | None = None
    ):
        super().__init__()
        self.embed, self.trunk, self.pool = embed, trunk, pool

    def forward(self, raw: Tensor) -> Tokens:
        t = self.embed(raw)
        return t if self.trunk is None else self.trunk(t)

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """One vector for each raw value; where a token speaks for the whole, only it passes the last block."""
        at = self.embed.pool_index(raw)
        if at is None:
            return self._pool_tokens(self(raw))
        t = self.embed(raw)
        return (take_token(t, at) if self.trunk is None else self.trunk(t, query_positions=at)).x[
            :, 0
        ]

    def pooled_and_tokens(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """The vector of the whole, and all tokens."""
        at, t = self.embed.pool_index(raw), self(raw)
        return (self._pool_tokens(t) if at is None else take_token(t, at).x[:, 0]), t

    def _pool_tokens(self, t: Tokens) -> Float[Tensor, "B D"]:
        return mean_pool(t) if self.pool is None else self.pool(t).x[:, 0]


@dataclass(frozen=True)
class TowerOutput:
    """What a tower says in the shared space, in vectors of length one."""

    vector: Float[Tensor, "B E"]
    tokens: Tokens | None = None


class Tower(nn.Module):
    """An encoder that ends in the shared space."""

    def __init__(self, encoder: Encoder, projection: nn.Module, embed_dim: int):
        super().__init__()
        self.encoder, self.projection, self.embed_dim = encoder, projection, embed_dim

    def forward(self, raw: Tensor) -> Float[Tensor, "B E"]:
        return l2_normalize(self.projection(self.encoder.pooled(raw)))

    def encode(self, raw: Tensor) -> TowerOutput:
        """The vector, and the tokens too where the alignment is multi-scale."""
        if not isinstance(self.projection, TokenAndGlobalProjection):
            return TowerOutput(self(raw))
        whole, tokens = self.encoder.pooled_and_tokens(raw)
        return TowerOutput(
            l2_normalize(self.projection(whole)),
            replace(tokens, x=l2_normalize(self.projection.token_projection(tokens.x))),
        )


def module_name(key: ColumnKey) -> str:
    """A column's name as that of a module: the same, but for what torch or another key would take it for.

    Other keys have other names. A dot, a comma and "%" are written as in a URL; "%" comes before a name that modules
    have themselves.
    """
    name = ",".join(
        part.replace("%", "%25").replace(".", "%2E").replace(",", "%2C")
        for part in column_names(key)
    )
    return f"%{name}" if not name or name in TAKEN else name


TAKEN = frozenset([*dir(nn.ModuleDict()), "logit_scale", "logit_bias"])


class Towers(nn.ModuleDict):
    """Several towers that meet in one space, by the column that each reads, with the temperature their similarities are
    read at.

    With `biased`, also an offset that a sigmoid loss needs; it is learned on top of the one that fits a batch's size.
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
        tower = super().__getitem__(module_name(key))
        assert isinstance(tower, Tower)
        return tower

    def by_column(self) -> dict[ColumnKey, Tower]:
        """Every tower."""
        return {key: self[key] for key in self.columns}

    def renamed(self, names: Mapping[ColumnKey, ColumnKey]) -> "Towers":
        """The same towers, those named as keys, under other names."""
        others = Towers(
            {new: self[old] for old, new in names.items()},
            use_logit_bias=self.logit_bias is not None,
        )
        others.logit_scale, others.logit_bias = self.logit_scale, self.logit_bias
        return others

    @torch.no_grad()
    def clamp_logit_scale(self) -> None:
        """Keep the scale within [1, 100], after each step (CLIP)."""
        self.logit_scale.clamp_(0, math.log(100))


def freeze(module: nn.Module, except_types: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """Stop learning everywhere, except in parts of the types named in `but`."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, except_types):
            part.requires_grad_(True)
    return module
