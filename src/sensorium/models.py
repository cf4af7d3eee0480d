"""The few shapes a multimodal model takes. No family has a name in here.

    B batch   T tokens   D width of a tower   E width of the shared space   V vocabulary
"""
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.align import MultiscaleAlign
from sensorium.attention import Cache
from sensorium.tokens import CAUSAL, Batch, ColumnKey, Tokens, at_place, column_names, join, present, turns
from sensorium.transformer import Transformer


@runtime_checkable
class Embed(Protocol):
    """Raw values → Tokens."""

    def __call__(self, raw: Tensor, /) -> Tokens: ...

    def summary(self, raw: Tensor, /) -> Int[Tensor, "B"] | None:
        """The place of the token that speaks for the whole, for each sequence; None: the mean of all speaks."""
        ...


class Encoder(nn.Module):
    """embed → trunk: raw values in, tokens out. `pool` makes one token of all, if none speaks for the whole.

    The trunk is a Transformer, or whatever else takes Tokens (and `only`) as it does.
    """

    def __init__(self, embed: Embed, trunk: nn.Module | None = None, pool: nn.Module | None = None):
        super().__init__()
        self.embed, self.trunk, self.pool = embed, trunk, pool

    def forward(self, raw: Tensor) -> Tokens:
        t = self.embed(raw)
        return t if self.trunk is None else self.trunk(t)

    def whole(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """One vector for each raw value; where a token speaks for the whole, only it passes the last block."""
        at = self.embed.summary(raw)
        if at is None:
            return self._pooled(self(raw))
        t = self.embed(raw)
        return (at_place(t, at) if self.trunk is None else self.trunk(t, only=at)).x[:, 0]

    def parts(self, raw: Tensor) -> tuple[Float[Tensor, "B D"], Tokens]:
        """The vector of the whole, and all tokens."""
        at, t = self.embed.summary(raw), self(raw)
        return (self._pooled(t) if at is None else at_place(t, at).x[:, 0]), t

    def _pooled(self, t: Tokens) -> Float[Tensor, "B D"]:
        return mean(t) if self.pool is None else self.pool(t).x[:, 0]


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


def module_name(key: ColumnKey) -> str:
    """A column's name as that of a module: the same, but for what torch or another key would take it for.

    Other keys have other names. A dot, a comma and "%" are written as in a URL; "%" comes before a name that modules
    have themselves.
    """
    name = ",".join(part.replace("%", "%25").replace(".", "%2E").replace(",", "%2C") for part in column_names(key))
    return f"%{name}" if not name or name in TAKEN else name


TAKEN = frozenset([*dir(nn.ModuleDict()), "log_scale", "bias"])


class Towers(nn.ModuleDict):
    """Several towers that meet in one space, by the column that each reads, with the temperature their similarities are
    read at.

    With `biased`, also an offset that a sigmoid loss needs; it is learned on top of the one that fits a batch's size.
    """

    def __init__(self, towers: Mapping[ColumnKey, Tower], *, temperature: float = 0.07, biased: bool = False):
        super().__init__({module_name(key): tower for key, tower in towers.items()})
        self.columns: list[ColumnKey] = list(towers)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / temperature)))
        self.bias = nn.Parameter(torch.zeros(())) if biased else None

    def __getitem__(self, key: ColumnKey) -> Tower:
        tower = super().__getitem__(module_name(key))
        assert isinstance(tower, Tower)
        return tower

    def by_column(self) -> dict[ColumnKey, Tower]:
        """Every tower."""
        return {key: self[key] for key in self.columns}

    def called(self, names: Mapping[ColumnKey, ColumnKey]) -> "Towers":
        """The same towers, those named as keys, under other names."""
        others = Towers({new: self[old] for old, new in names.items()}, biased=self.bias is not None)
        others.log_scale, others.bias = self.log_scale, self.bias
        return others

    @torch.no_grad()
    def clamp(self) -> None:
        """Keep the scale within [1, 100], after each step (CLIP)."""
        self.log_scale.clamp_(0, math.log(100))


@runtime_checkable
class Said(Protocol):
    """A part that can be generated: ids → Tokens, the first of which is a start token."""

    def spelt(self, raw: Tensor, /) -> Int[Tensor, "B T"]:
        """Raw values of a batch as ids, the start token first."""
        ...

    def __call__(self, ids: Int[Tensor, "B T"], /) -> Tokens: ...

    def at(self, ids: Int[Tensor, "B T"], places: Int[Tensor, "B T"], /) -> Tokens:
        """Ids that stand at these places of their part, each seeing what came before."""
        ...


class Decoder(nn.Module):
    """Parts read one after the other as one line; what comes next in a part is said by the part's head.

    A part with a head is read causally and begins with a start token, so its token i + 1 is said at its token i. Parts
    without one come first, a prefix that everything after sees; those of no order see each other. A part that a batch
    does not have, or that is not present in a row, is not there: nobody sees it. `beside`: encoders of parts that
    are not in line; blocks that look at a context look at what they make of them.
    """

    def __init__(self, parts: dict[str, nn.Module], heads: dict[str, nn.Module], trunk: Transformer,
                 beside: dict[str, nn.Module] | None = None):
        super().__init__()
        if list(parts)[len(parts) - len(heads):] != list(heads):
            raise ValueError(f"the parts with a head must stand last: parts {list(parts)}, heads {list(heads)}")
        self.parts, self.heads, self.trunk = nn.ModuleDict(parts), nn.ModuleDict(heads), trunk
        self.beside = nn.ModuleDict(beside or {})

    def forward(self, given: Batch) -> dict[str, Tokens]:
        """What the trunk makes of each part that has a head: `heads[part]` of it are logits for the token after."""
        read = self.read(given)
        said = self.trunk(in_line(read), self.context(given))
        starts = dict(zip(read, accumulate((t.x.shape[1] for t in read.values()), initial=0), strict=False))
        return {name: replace(t, x=said.x[:, starts[name]:starts[name] + t.x.shape[1]], order=None)
                for name, t in read.items() if name in self.heads}

    def begin(self, given: Batch, part: str, cache: Cache) -> Float[Tensor, "B V"]:
        """Read all that is given, up to and including what there is of `part`: logits for its next token."""
        read = self.read(given.only(self._until(part)))
        at = sum(t.x.shape[1] for t in read.values()) - read[part].x.shape[1] + present(read[part]).sum(1) - 1
        return self.heads[part](self.trunk(in_line(read), self.context(given), only=at, cache=cache).x[:, 0])

    def go_on(self, part: str, ids: Int[Tensor, "B"], places: Int[Tensor, "B"], cache: Cache) -> Float[Tensor, "B V"]:
        """Read one more token of `part`, which stands at these places of it: logits for the one after."""
        t = self.said(part).at(ids[:, None], places[:, None])
        return self.heads[part](self.trunk(t, cache=cache).x[:, 0])

    def context(self, given: Batch) -> Tokens | None:
        """What stands beside the line, end to end; None where nothing does."""
        there = [encode(given[name]) for name, encode in self.beside.items() if name in given]
        return join(*there) if there else None

    def said(self, part: str) -> Said:
        """A part that has a head."""
        said = self.parts[part]
        assert isinstance(said, Said)
        return said

    def _until(self, part: str) -> list[str]:
        names = list(self.parts)
        return names[:names.index(part) + 1]

    def read(self, given: Batch) -> dict[str, Tokens]:
        """Tokens of the parts that are there."""
        read = {name: embed(given[name]) for name, embed in self.parts.items() if name in given}
        for name, t in read.items():
            if name in given.present:
                t = replace(t, valid=present(t) & given.present[name][:, None])
            read[name] = t
        return read


def in_line(parts: Mapping[str, Tokens]) -> Tokens:
    """Parts end to end: those of no order first come first seen, the others each after all that stands before it."""
    several, start = [], 0
    for t in parts.values():
        several.append(t if t.order is None else replace(t, order=turns(t) + start))
        start += 0 if t.order is None else t.x.shape[1]
    padded = [t.valid is not None for t in parts.values()]
    joined = join(*several)
    plain = all(t.order is CAUSAL for t in parts.values()) and not any(padded[:-1])
    return replace(joined, order=CAUSAL) if plain else joined


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
