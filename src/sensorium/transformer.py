"""The one transformer: Tokens in, Tokens out. Norm, activation and position are objects, so published layouts fit in.

    B batch   T tokens   S context tokens   D width   H heads   K head width   N real tokens of a batch
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.kernels import Linear, attend, linear
from sensorium.tokens import CAUSAL, Tokens, join, may_see, present, turns


@runtime_checkable
class Position(Protocol):
    """How attention learns where tokens are: turn queries and keys (Rotary), add a bias (RelativeBias), or both."""

    def __call__(self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor) -> tuple[Tensor, Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Packing:
    """Real tokens only, as rows; padding exists just where attention needs the grid."""

    index: Int[Tensor, "N"]                 # where each row stands in the flattened grid
    shape: tuple[int, int]                  # B, T

    def spread(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        flat = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[-1]).index_copy(0, self.index, rows)
        return flat.view(*self.shape, -1)

    def gather(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "N D"]:
        return x.flatten(0, 1).index_select(0, self.index)


@dataclass(frozen=True)
class View:
    """Who may see whom and where they are: worked out once a pass, shared by all blocks."""

    pos: Float[Tensor, "B T 3"]
    causal: bool = False
    mask: Bool[Tensor, "B 1 #T T"] | None = None
    packing: Packing | None = None


def view(t: Tokens) -> View:
    """No mask where none is needed: a causal order promises that padding comes last, so no real token can see it."""
    if t.order is CAUSAL:
        return View(t.pos, causal=True)
    if t.order is None:
        return View(t.pos, mask=None if t.valid is None else t.valid[:, None, None, :])
    order = turns(t)
    return View(t.pos, mask=may_see(order, order, t.valid))


def packing(t: Tokens) -> Packing | None:
    """Leave padding out of every linear layer, where it is more than a tenth of the batch (on a CPU; exact)."""
    if t.valid is None or t.x.device.type != "cpu":
        return None
    index = t.valid.flatten().nonzero().squeeze(1)
    return Packing(index, (t.x.shape[0], t.x.shape[1])) if len(index) < 0.9 * t.valid.numel() else None


class Attention(nn.Module):
    """softmax(q kᵀ / √K) v over the sequence itself, `heads` at a time (Vaswani et al. 2017).

    `width` is what all heads have together (default `dim`). Fewer `kv_heads` than heads share keys and values (GQA).
    """

    def __init__(self, dim: int, heads: int, *, width: int | None = None, kv_heads: int | None = None,
                 bias: bool = True, position: Position | None = None, scale: float | None = None):
        super().__init__()
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.width = width or dim
        if self.width % heads or heads % self.kv_heads:
            raise ValueError(f"a width of {self.width} with {kv_heads} key heads does not split into {heads} heads")
        shared = self.width // heads * self.kv_heads
        self.qkv, self.out = Linear(dim, self.width + 2 * shared, bias=bias), Linear(self.width, dim, bias=bias)
        self.position, self.scale = position, scale

    def forward(self, x: Float[Tensor, "*rows D"], seen: View) -> Float[Tensor, "*rows D"]:
        qkv = self.qkv(x)
        qkv = qkv if seen.packing is None else seen.packing.spread(qkv)
        shared = (qkv.shape[-1] - self.width) // 2
        q, k, v = qkv.split([self.width, shared, shared], -1)
        said = self._attend(q, k, v, seen.pos, seen)
        return self.out(said if seen.packing is None else seen.packing.gather(said))

    def only(self, x: Float[Tensor, "B T D"], at: Int[Tensor, "B"], seen: View) -> Float[Tensor, "B D"]:
        """What forward would say at place `at` of each sequence, without the rest."""
        rows, weight, bias = torch.arange(len(x), device=x.device), self.qkv.weight, self.qkv.bias
        q = linear(x[rows, at][:, None], weight[:self.width], None if bias is None else bias[:self.width])
        k, v = linear(x, weight[self.width:], None if bias is None else bias[self.width:]).chunk(2, -1)
        mask = None if seen.mask is None else seen.mask if seen.mask.shape[2] == 1 else seen.mask[rows, :, at][:, None]
        if seen.causal:
            mask = (torch.arange(x.shape[1], device=x.device) <= at[:, None])[:, None, None]
        pos = seen.pos[rows, at][:, None]
        return self.out(self._attend(q, k, v, pos, replace(seen, causal=False, mask=mask))[:, 0])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, q_pos: Tensor, seen: View) -> Float[Tensor, "B T D"]:
        q = rearrange(q, "b t (h k) -> b h t k", h=self.heads)
        k, v = (rearrange(x, "b s (h k) -> b h s k", h=self.kv_heads) for x in (k, v))
        mask: Tensor | None = seen.mask
        causal = seen.causal
        if self.position is not None:
            q, k, bias = self.position(q, k, q_pos, seen.pos)
            if bias is not None:
                mask, causal = _with_bias(bias, mask, causal), False
        if self.kv_heads != self.heads:
            k, v = (repeat(x, "b g s k -> b (g n) s k", n=self.heads // self.kv_heads) for x in (k, v))
        said = attend(q, k, v, causal=causal, mask=mask, scale=self.scale)
        return rearrange(said, "b h t k -> b t (h k)")


def _with_bias(bias: Float[Tensor, "B H T S"], mask: Tensor | None, causal: bool) -> Float[Tensor, "B H T S"]:
    if causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


class CrossAttention(nn.Module):
    """Attention of one sequence over another. No bias on the way out: who may see nothing hears exactly nothing."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.heads = heads
        self.q, self.kv = Linear(dim, dim, bias=False), Linear(context_dim or dim, 2 * dim, bias=False)
        self.out = Linear(dim, dim, bias=False)

    def forward(self, x: Float[Tensor, "B T D"], context: Float[Tensor, "B S C"],
                mask: Bool[Tensor, "B 1 #T S"] | None = None) -> Float[Tensor, "B T D"]:
        q = rearrange(self.q(x), "b t (h k) -> b h t k", h=self.heads)
        k, v = rearrange(self.kv(context), "b s (n h k) -> n b h s k", n=2, h=self.heads)
        return self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))


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

    def forward(self, t: Tokens, context: Tokens) -> Tokens:
        mask = may_see(turns(t), turns(context), context.valid)
        x = t.x + self.gate.tanh() * self.attention(self.norm(t.x), context.x, mask)
        return replace(t, x=x + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x)))


class Block(nn.Module):
    """Look around, then think: x + attention(norm(x)), x + mlp(norm(x)) (pre-norm)."""

    def __init__(self, attention: Attention, mlp: nn.Module, norms: tuple[nn.Module, nn.Module], *,
                 cross: GatedCrossAttention | None = None, dropout: float = 0.0):
        super().__init__()
        self.norm, self.mlp_norm = norms
        self.attention, self.mlp, self.cross = attention, mlp, cross
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()

    def forward(self, x: Float[Tensor, "*rows D"], seen: View) -> Float[Tensor, "*rows D"]:
        x = x + self.drop(self.attention(self.norm(x), seen))
        return x + self.drop(self.mlp(self.mlp_norm(x)))

    def only(self, x: Float[Tensor, "B T D"], at: Int[Tensor, "B"], seen: View) -> Float[Tensor, "B D"]:
        """forward, at place `at` of each sequence alone."""
        picked = x[torch.arange(len(x), device=x.device), at]
        picked = picked + self.drop(self.attention.only(self.norm(x), at, seen))
        return picked + self.drop(self.mlp(self.mlp_norm(picked)))


class PostNormBlock(Block):
    """norm(x + attention(x)), norm(x + mlp(x)): the first transformers and BERT."""

    def forward(self, x: Float[Tensor, "*rows D"], seen: View) -> Float[Tensor, "*rows D"]:
        x = self.norm(x + self.drop(self.attention(x, seen)))
        return self.mlp_norm(x + self.drop(self.mlp(x)))

    def only(self, x: Float[Tensor, "B T D"], at: Int[Tensor, "B"], seen: View) -> Float[Tensor, "B D"]:
        picked = x[torch.arange(len(x), device=x.device), at]
        picked = self.norm(picked + self.drop(self.attention.only(x, at, seen)))
        return self.mlp_norm(picked + self.drop(self.mlp(picked)))


class Transformer(nn.Module):
    """Blocks in a row, with a norm before the first and after the last where the layout has one."""

    def __init__(self, blocks: Iterable[Block], *, first: nn.Module | None = None, last: nn.Module | None = None):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.first, self.last = first or nn.Identity(), last or nn.Identity()

    def forward(self, t: Tokens, context: Tokens | None = None, *, only: Int[Tensor, "B"] | None = None) -> Tokens:
        """All tokens; with `only`, one a sequence: the last block then leaves the others out (same numbers)."""
        blocks = self._blocks()
        if context is not None:
            return self._with_context(t, context)
        last = blocks.pop() if only is not None and blocks else None
        seen, packed = view(t), packing(t) if blocks else None
        x = self.first(t.x if packed is None else packed.gather(t.x))
        inner = replace(seen, packing=packed)
        for block in blocks:
            x = block(x, inner)
        if only is None:
            x = self.last(x)
            return replace(t, x=x if packed is None else packed.spread(x))
        x = x if packed is None else packed.spread(x)
        rows = torch.arange(len(x), device=x.device)
        x = x[rows, only] if last is None else last.only(x, only, seen)
        return Tokens(self.last(x)[:, None], t.pos[rows, only][:, None])

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _with_context(self, t: Tokens, context: Tokens) -> Tokens:
        t, seen = replace(t, x=self.first(t.x)), view(t)
        for block in self._blocks():
            t = t if block.cross is None else block.cross(t, context)
            t = replace(t, x=block(t.x, seen))
        return replace(t, x=self.last(t.x))


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
        self.queries = nn.Parameter(torch.randn(n, dim) * 0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(dim), nn.LayerNorm(dim), CrossAttention(dim, heads), nn.LayerNorm(dim),
                           FeedForward(dim, 4 * dim)]) for _ in range(depth))
        self.last = nn.LayerNorm(dim)

    def forward(self, t: Tokens) -> Tokens:
        asked = Tokens(self.queries.expand(len(t.x), -1, -1), t.pos.new_zeros(len(t.x), len(self.queries), 3))
        for norm, own_norm, attention, mlp_norm, mlp in self.layers:       # pyright: ignore[reportGeneralTypeIssues]
            own = own_norm(asked.x)
            read = join(replace(t, x=norm(t.x), order=None), replace(asked, x=own))
            x = asked.x + attention(own, read.x, None if t.valid is None else present(read)[:, None, None, :])
            asked = replace(asked, x=x + mlp(mlp_norm(x)))
        return replace(asked, x=self.last(asked.x))
