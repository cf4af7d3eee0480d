"""The one transformer: Tokens in, Tokens out. Norm, activation and position are objects, so published layouts fit in.

    B batch   T tokens   D width
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.attention import Attention, Cache, CrossAttention, View, packing, view
from sensorium.depth import StochasticDepth
from sensorium.kernels import Linear, drawn
from sensorium.tokens import Tokens, at_place, glance, join, present


class FeedForward(nn.Module):
    """Each token for itself: wider, through `act`, and back."""

    def __init__(self, dim: int, hidden: int, act: nn.Module | None = None, *, bias: bool = True):
        super().__init__()
        self.up, self.down = Linear(dim, hidden, bias=bias), Linear(hidden, dim, bias=bias)
        self.act = act or nn.GELU()

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        return self.down(self.act(self.up(x)))


class GatedFeedForward(nn.Module):
    """One half decides how much of the other passes (Shazeer 2020); SwiGLU with `act=nn.SiLU()`."""

    def __init__(self, dim: int, hidden: int, act: nn.Module | None = None, *, bias: bool = False):
        super().__init__()
        self.up, self.down = Linear(dim, 2 * hidden, bias=bias), Linear(hidden, dim, bias=bias)
        self.act = act or nn.SiLU()

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        gate, value = self.up(x).chunk(2, -1)
        return self.down(self.act(gate) * value)


class GatedCrossAttention(nn.Module):
    """A way into a trained model that is shut at first: both gates start at 0 (Flamingo, Alayrac et al. 2022)."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(dim), CrossAttention(dim, heads, context_dim)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), FeedForward(dim, 4 * dim, bias=False)
        self.gate, self.mlp_gate = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Float[Tensor, "B T D"], seen: View) -> Float[Tensor, "B T D"]:
        assert seen.context is not None
        x = x + self.gate.tanh() * self.attention(self.norm(x), seen.context.x, seen.glance, seen.cache)
        return x + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))


class Block(nn.Module):
    """Look around, then think: x + attention(norm(x)), x + mlp(norm(x)) (pre-norm)."""

    def __init__(self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], *,
                 cross: GatedCrossAttention | None = None, dropout: float = 0.0):
        super().__init__()
        self.norm, self.mlp_norm = norms
        self.attention, self.mlp, self.cross = attention, mlp, cross
        self.drop, self.deep = nn.Dropout(dropout) if dropout else nn.Identity(), StochasticDepth()

    def forward(self, x: Float[Tensor, "*rows D"], seen: View) -> Float[Tensor, "*rows D"]:
        x = x + self._kept(self.attention(self.norm(x), seen), seen)
        return x + self._kept(self.mlp(self.mlp_norm(x)), seen)

    def _kept(self, branch: Float[Tensor, "*rows D"], seen: View | None = None) -> Float[Tensor, "*rows D"]:
        if not self.training:
            return branch
        packed = None if seen is None or not self.deep.chance else seen.packing
        return (self.deep(self.drop(branch)) if packed is None else
                self.deep(self.drop(branch), packed.index // packed.shape[1], packed.shape[0]))

    def only(self, x: Float[Tensor, "B T D"], at: Int[Tensor, "B"], seen: View) -> Float[Tensor, "B D"]:
        """forward, at place `at` of each sequence alone."""
        picked = x[torch.arange(x.shape[0], device=x.device), at]
        picked = picked + self._kept(self.attention.only(self.norm(x), at, seen))
        return picked + self._kept(self.mlp(self.mlp_norm(picked)))


class PostNormBlock(Block):
    """norm(x + attention(x)), norm(x + mlp(x)): the first transformers and BERT."""

    def forward(self, x: Float[Tensor, "*rows D"], seen: View) -> Float[Tensor, "*rows D"]:
        x = self.norm(x + self._kept(self.attention(x, seen), seen))
        return self.mlp_norm(x + self._kept(self.mlp(x), seen))

    def only(self, x: Float[Tensor, "B T D"], at: Int[Tensor, "B"], seen: View) -> Float[Tensor, "B D"]:
        picked = x[torch.arange(x.shape[0], device=x.device), at]
        picked = self.norm(picked + self._kept(self.attention.only(x, at, seen)))
        return self.mlp_norm(picked + self._kept(self.mlp(picked)))


class LookingBlock(Block):
    """A block that looks at a context between looking around and thinking (the decoder of Vaswani et al. 2017)."""

    def __init__(self, attention: Attention, look: CrossAttention, mlp: nn.Module,
                 norms: tuple[nn.Module, nn.Module, nn.Module], *, dropout: float = 0.0):
        super().__init__(attention, mlp, (norms[0], norms[2]), dropout=dropout)
        self.look, self.look_norm = look, norms[1]

    def forward(self, x: Float[Tensor, "B T D"], seen: View) -> Float[Tensor, "B T D"]:
        if seen.context is None:
            raise ValueError("a block that looks at a context was given none")
        x = x + self._kept(self.attention(self.norm(x), seen), seen)
        x = x + self._kept(self.look(self.look_norm(x), seen.context.x, seen.glance, seen.cache), seen)
        return x + self._kept(self.mlp(self.mlp_norm(x)), seen)


class Transformer(nn.Module):
    """Blocks in a row, with a norm before the first and after the last where the layout has one."""

    def __init__(self, blocks: Iterable[Block], *, first: nn.Module | None = None, last: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.first, self.last = first or nn.Identity(), last or nn.Identity()

    def forward(self, t: Tokens, context: Tokens | None = None, *, only: Int[Tensor, "B"] | None = None,
                cache: Cache | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence: the last block then leaves the others out (same numbers).

        With a `cache` these tokens go on from those it has read, and are kept in it; so is the context.
        """
        blocks, seen = self._blocks(), view(t) if cache is None else cache.extend(t)
        if cache is not None:
            cache.context = context = context or cache.context
        if context is not None:
            looks = glance(t if cache is None else cache.turns(t), context)
            said = self._beside(t, replace(seen, context=context, glance=looks))
            return said if only is None else at_place(said, only)
        last = blocks.pop() if only is not None and blocks else None
        packed = packing(t) if blocks else None
        x = self.first(t.x if packed is None else packed.gather(t.x))
        inner = replace(seen, packing=packed)
        for block in blocks:
            x = block(x, inner)
        if only is None:
            x = self.last(x)
            return replace(t, x=x if packed is None else packed.spread(x))
        x = x if packed is None else packed.spread(x)
        rows = torch.arange(x.shape[0], device=x.device)
        x = x[rows, only] if last is None else last.only(x, only, seen)
        return Tokens(self.last(x)[:, None], t.pos[rows, only][:, None])

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _beside(self, t: Tokens, seen: View) -> Tokens:
        """All tokens, looking at a context too."""
        x = self.first(t.x)
        for block in self._blocks():
            x = block(x if block.cross is None else block.cross(x, seen), seen)
        return replace(t, x=self.last(x))


def transformer(dim: int, depth: int, heads: int, *, dropout: float = 0.0, first: bool = False,
                cross: Callable[[int], GatedCrossAttention | None] = lambda i: None) -> Transformer:
    """A pre-norm GELU transformer with a final norm; `first` adds one before (CLIP's picture tower).

    `cross(i)` gives block i its way to look at a context, or None.
    """
    blocks = [Block(Attention(dim, heads), FeedForward(dim, 4 * dim), (nn.LayerNorm(dim), nn.LayerNorm(dim)),
                    cross=cross(i), dropout=dropout) for i in range(depth)]
    for block in blocks:
        _start(block.attention, block.mlp, dim, depth)
    return Transformer(blocks, first=nn.LayerNorm(dim) if first else None, last=nn.LayerNorm(dim))


def _start(attention: Attention, mlp: nn.Module, dim: int, depth: int) -> None:
    """CLIP's initial weights: what enters the residual stream is smaller the more blocks there are."""
    assert isinstance(mlp, FeedForward)
    into = dim ** -0.5 * (2 * depth) ** -0.5
    stds = {attention.qkv: dim ** -0.5, attention.out: into, mlp.up: (2 * dim) ** -0.5, mlp.down: into}
    for layer, std in stds.items():
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


class Resampler(nn.Module):
    """Learned queries read a sequence: n=1 pools it, n=4 is a fusion bottleneck, n=64 Flamingo's resampler.

    Queries attend to the sequence and to themselves, so an empty sequence still gives a finite answer.
    """

    def __init__(self, dim: int, n: int = 1, *, heads: int = 1, depth: int = 1):
        super().__init__()
        self.queries = drawn(n, dim, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim), CrossAttention(dim, heads), nn.LayerNorm(dim),
                           FeedForward(dim, 4 * dim)]) for _ in range(depth))
        self.last = nn.LayerNorm(dim)

    def forward(self, t: Tokens) -> Tokens:
        asked = Tokens(self.queries.expand(t.x.shape[0], -1, -1), t.pos.new_zeros(t.x.shape[0], len(self.queries), 3))
        for norm, own_norm, attention, mlp_norm, mlp in self.layers:       # pyright: ignore[reportGeneralTypeIssues]
            own = own_norm(asked.x)
            read = join(replace(t, x=norm(t.x), order=None), replace(asked, x=own))
            x = asked.x + attention(own, read.x, None if t.valid is None else present(read)[:, None, None, :])
            asked = replace(asked, x=x + mlp(mlp_norm(x)))
        return replace(asked, x=self.last(asked.x))
