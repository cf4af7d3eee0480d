"""The few shapes a multimodal model takes. No family has a name in here.

    B batch   T tokens   D width of a tower   E width of the shared space
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.align import MultiscaleAlign
from sensorium.tokens import Tokens, present
from sensorium.transformer import Transformer

Batch = Mapping[str, Tensor]


@runtime_checkable
class Embed(Protocol):
    """Raw values → Tokens."""

    def __call__(self, raw: Tensor, /) -> Tokens: ...

    def summary(self, raw: Tensor, /) -> Int[Tensor, "B"] | None:
        """The place of the token that speaks for the whole, for each sequence; None: the mean of all speaks."""
        ...


class Encoder(nn.Module):
    """embed → transformer: raw values in, tokens out."""

    def __init__(self, embed: Embed, trunk: Transformer | None = None):
        super().__init__()
        self.embed, self.trunk = embed, trunk

    def forward(self, raw: Tensor) -> Tokens:
        t = self.embed(raw)
        return t if self.trunk is None else self.trunk(t)

    def whole(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """One vector for each raw value; where a token speaks for the whole, only it passes the last block."""
        at = self.embed.summary(raw)
        if at is None:
            return mean(self(raw))
        t = self.embed(raw)
        return (at_place(t, at) if self.trunk is None else self.trunk(t, only=at)).x[:, 0]

    def parts(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """The vector of the whole, and all tokens."""
        at, t = self.embed.summary(raw), self(raw)
        return (mean(t) if at is None else at_place(t, at).x[:, 0]), t


def at_place(t: Tokens, at: Int[Tensor, "B"]) -> Tokens:
    """The token at place `at` of each sequence, alone."""
    rows = torch.arange(len(t.x), device=t.x.device)
    return Tokens(t.x[rows, at][:, None], t.pos[rows, at][:, None])


def mean(t: Tokens) -> Float[Tensor, "B D"]:
    """Mean over real tokens; zero where there are none."""
    real = present(t)[..., None].to(t.x.dtype)
    return (t.x * real).sum(1) / real.sum(1).clamp(min=1)


@dataclass(frozen=True)
class Aligned:
    """What a tower says in the shared space, in vectors of length one."""

    vector: Float[Tensor, "B E"]
    tokens: Tokens | None = None


class Tower(nn.Module):
    """An encoder that ends in the shared space."""

    def __init__(self, encode: Encoder, align: nn.Module, width: int):
        super().__init__()
        self.encode, self.align, self.width = encode, align, width

    def forward(self, raw: Tensor) -> Float[Tensor, "B E"]:
        return unit(self.align(self.encode.whole(raw)))

    def aligned(self, raw: Tensor) -> Aligned:
        """The vector, and the tokens too where the alignment is multi-scale."""
        if not isinstance(self.align, MultiscaleAlign):
            return Aligned(self(raw))
        whole, tokens = self.encode.parts(raw)
        return Aligned(unit(self.align(whole)), replace(tokens, x=unit(self.align.part(tokens.x))))


class Towers(nn.ModuleDict):
    """Several towers that meet in one space, with the temperature their similarities are read at.

    With `biased`, also an offset that a sigmoid loss needs; it is learned on top of the one that fits a batch's size.
    """

    def __init__(self, towers: dict[str, Tower], *, temperature: float = 0.07, biased: bool = False):
        super().__init__(towers)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.bias = nn.Parameter(torch.zeros(())) if biased else None

    def __getitem__(self, key: str) -> Tower:
        tower = super().__getitem__(key)
        assert isinstance(tower, Tower)
        return tower

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale within [1, 100], after each step (CLIP)."""
        self.log_scale.clamp_(0, math.log(100))


def unit(x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
    """Vectors brought to length one, in float32."""
    return nn.functional.normalize(x.float(), dim=-1)


def frozen(module: nn.Module, but: tuple[type[nn.Module], ...] = ()) -> nn.Module:
    """Stop learning everywhere, except in parts of the types named in `but`."""
    module.requires_grad_(False)
    for part in module.modules():
        if isinstance(part, but):
            part.requires_grad_(True)
    return module
