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

from sensorium.attention import CrossAttention
from sensorium.kernels import drawn
from sensorium.models import mean
from sensorium.tokens import ColumnKey, Tokens, join, line, present
from sensorium.transformer import FeedForward, transformer

HEAD = 32                                   # width of one attention head
NECK = 4                                    # tokens of a bottleneck
RANK = 4                                    # of a product


class Apart(nn.Module):
    """What ways that take one vector a part have in common: a matrix of its own for each part."""

    tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int, std: float = 1.0):
        super().__init__()
        self.names = list(names)
        self.weight = drawn(len(names), dim, dim, std=std * dim ** -0.5)

    def stacked(self, parts: Mapping[ColumnKey, Tokens]) -> tuple[Float[Tensor, "B P D"], Bool[Tensor, "B P"]]:
        """(vectors, which of them are there)."""
        some = next(iter(parts.values()))
        nothing = Tokens(torch.zeros_like(some.x[:, :1]), some.pos[:, :1], None, torch.zeros_like(present(some)[:, :1]))
        each = [parts.get(name, nothing) for name in self.names]
        return torch.cat([t.x for t in each], 1), torch.cat([present(t) for t in each], 1)

    def turned(self, x: Float[Tensor, "B P D"]) -> Float[Tensor, "B P D"]:
        """Each part by its own matrix."""
        return torch.einsum("bpd,pde->bpe", x, self.weight.to(x.dtype))


class Concat(Apart):
    """One matrix on all vectors side by side; in the place of an absent one stands what was learned for its absence."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim, len(names) ** -0.5)
        self.absent = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stacked(parts)
        return torch.where(there[..., None], self.turned(x), self.absent.to(x.dtype)).sum(1)


class Sum(Apart):
    """The mean of the parts that are there, each by its own matrix."""

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stacked(parts)
        return _weighed(self.turned(x), there.to(x.dtype)[..., None])


class Gated(Apart):
    """A sum in which every number of every part has a weight that depends on the part (after Arevalo et al. 2017)."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.gate = nn.Parameter(torch.zeros(len(names), dim, dim))
        self.lean = nn.Parameter(torch.zeros(len(names), dim))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stacked(parts)
        gates = torch.sigmoid(torch.einsum("bpd,pde->bpe", x, self.gate.to(x.dtype)) + self.lean.to(x.dtype))
        return _weighed(self.turned(x), gates * there[..., None])


class Parallel(nn.Module):
    """Each part goes its own way to the end; the mean of what they come to, as far as each is trusted (late fusion)."""

    tokens = False

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.stack = Apart(names, dim)
        self.ways = nn.ModuleList(FeedForward(dim, 2 * dim) for _ in names)
        self.trust = nn.Parameter(torch.zeros(len(names)))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stack.stacked(parts)
        x = self.stack.turned(x)
        ends = torch.stack([x[:, i] + way(x[:, i]) for i, way in enumerate(self.ways)], 1)
        return _weighed(ends, (self.trust.exp() * there)[..., None])


class Product(Apart):
    """Parts multiplied with each other, at a low rank (Liu et al. 2018); an absent one is a factor of 1."""

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__(names, dim)
        self.factor = drawn(len(names), RANK, dim, dim, std=0.5 * dim ** -0.5)
        self.rank = nn.Parameter(torch.full((RANK,), 1 / RANK))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        x, there = self.stacked(parts)
        factors = 1 + torch.einsum("bpd,prde->bpre", x, self.factor.to(x.dtype))
        whole = factors.masked_fill(~there[..., None, None], 1).prod(1)
        return torch.einsum("bre,r->be", whole, self.rank.to(x.dtype)) + _weighed(self.turned(x), there[..., None])


class Crossed(nn.Module):
    """The whole of each part looks at the tokens of all others; the mean of the parts that are there."""

    tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int):
        super().__init__()
        self.names = list(names)
        self.kinds = drawn(len(names), dim, std=0.02)
        self.norm, self.look = nn.LayerNorm(dim), CrossAttention(dim, _heads(dim))
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, 2 * dim)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        numbers = [self.names.index(name) for name in parts]
        marked = [replace(t, x=t.x + self.kinds[i].to(t.x.dtype), order=None)
                  for i, t in zip(numbers, parts.values(), strict=True)]
        every, whole = join(*marked), torch.stack([mean(t) for t in marked], 1)
        there = torch.stack([present(t).any(1) for t in marked], 1)
        of = torch.cat([torch.full((t.x.shape[1],), i) for i, t in enumerate(marked)]).to(whole.device)
        others = (of != torch.arange(len(marked), device=of.device)[:, None]) & present(every)[:, None]
        x = whole + self.look(self.norm(whole), self.norm(every.x), others[:, None])
        return _weighed(x + self.mlp(self.mlp_norm(x)), there.to(x.dtype)[..., None])


class Early(nn.Module):
    """All tokens of all parts in one transformer, read off at a token of its own (early fusion)."""

    tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.kinds, self.whole = drawn(len(names), dim, std=0.02), nn.Parameter(torch.zeros(dim))
        self.trunk = transformer(dim, depth, _heads(dim), dropout=dropout)

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        marked = [replace(t, x=t.x + self.kinds[self.names.index(name)].to(t.x.dtype), order=None)
                  for name, t in parts.items()]
        some = marked[0]
        first = self.whole.to(some.x.dtype).expand(some.x.shape[0], 1, -1)
        at = torch.zeros(some.x.shape[0], dtype=torch.long, device=some.x.device)
        return self.trunk(join(Tokens(first, line(first)), *marked), only=at).x[:, 0]


class Bottleneck(nn.Module):
    """Parts meet only in a few shared tokens, block after block (Nagrani et al. 2021)."""

    tokens = True

    def __init__(self, names: Sequence[ColumnKey], dim: int, depth: int, dropout: float):
        super().__init__()
        self.names = list(names)
        self.neck = drawn(NECK, dim, std=0.02)
        self.layers = nn.ModuleList(nn.ModuleList(transformer(dim, 1, _heads(dim), dropout=dropout) for _ in names)
                                    for _ in range(depth))

    def forward(self, parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, "B D"]:
        parts = {name: replace(t, order=None) for name, t in parts.items()}
        some = next(iter(parts.values()))
        neck = self.neck.to(some.x.dtype).expand(some.x.shape[0], -1, -1)
        there = torch.stack([present(t).any(1) for t in parts.values()], 1).to(neck.dtype)
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleList)
            necks = []
            for name, t in parts.items():
                said = layer[self.names.index(name)](join(Tokens(neck, line(neck)), t))
                necks.append(said.x[:, :NECK])
                parts[name] = replace(t, x=said.x[:, NECK:])
            neck = _weighed(torch.stack(necks, 1).flatten(2), there[..., None]).view_as(neck)
        return neck.mean(1)


def _weighed(x: Float[Tensor, "B P D"], weight: Tensor) -> Float[Tensor, "B D"]:
    """The mean of the parts by weight; zero where none has any."""
    weight = weight.to(x.dtype)
    return (x * weight).sum(1) / weight.sum(1).clamp(min=1e-6)


def _heads(dim: int) -> int:
    return max(1, dim // HEAD)


FUSIONS: dict[str, Callable[[Sequence[ColumnKey], int, int, float], nn.Module]] = {
    "concat": lambda names, dim, depth, dropout: Concat(names, dim),
    "sum": lambda names, dim, depth, dropout: Sum(names, dim),
    "gated": lambda names, dim, depth, dropout: Gated(names, dim),
    "attention": lambda names, dim, depth, dropout: Crossed(names, dim),
    "sequence": Early,
    "parallel": lambda names, dim, depth, dropout: Parallel(names, dim),
    "bottleneck": Bottleneck,
    "product": lambda names, dim, depth, dropout: Product(names, dim)}
