"""The one transformer: Tokens in, Tokens out. Norm, activation and position are objects, so published layouts fit in.

B batch   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.attention import (
    Attention,
    AttentionContext,
    CrossAttention,
    KVCache,
    attention_context,
    plan_packing,
)
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, context_mask, join, take_token, valid_mask


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

    def forward(
        self, x: Float[Tensor, "B T D"], attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        assert attn_context.context is not None
        x = x + self.gate.tanh() * self.attention(
            self.norm(x), attn_context.context.x, attn_context.context_mask, attn_context.cache
        )
        return x + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))


class Block(nn.Module):
    """Look around, then think: x + attention(norm(x)), x + mlp(norm(x)) (pre-norm)."""

    def __init__(
        self,
        attention: Attention,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module],
        *,
        gated_cross_attention: GatedCrossAttention | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.norm, self.mlp_norm = norms
        self.attention, self.mlp, self.gated_cross_attention = attention, mlp, gated_cross_attention
        self.dropout, self.drop_path = (
            nn.Dropout(dropout) if dropout else nn.Identity(),
            StochasticDepth(),
        )

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        x = x + self._residual_branch(self.attention(self.norm(x), attn_context), attn_context)
        return x + self._residual_branch(self.mlp(self.mlp_norm(x)), attn_context)

    def _residual_branch(
        self, branch: Float[Tensor, "*rows D"], attn_context: AttentionContext | None = None
    ) -> Float[Tensor, "*rows D"]:
        if not self.training:
            return branch
        packed = (
            None if attn_context is None or not self.drop_path.drop_prob else attn_context.packing
        )
        return (
            self.drop_path(self.dropout(branch))
            if packed is None
            else self.drop_path(
                self.dropout(branch), packed.index // packed.shape[1], packed.shape[0]
            )
        )

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        """forward, at place `at` of each sequence alone."""
        picked = x[torch.arange(x.shape[0], device=x.device), query_positions]
        picked = picked + self._residual_branch(
            self.attention.forward_single_query(self.norm(x), query_positions, attn_context)
        )
        return picked + self._residual_branch(self.mlp(self.mlp_norm(picked)))


class PostNormBlock(Block):
    """norm(x + attention(x)), norm(x + mlp(x)): the first transformers and BERT."""

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        x = self.norm(x + self._residual_branch(self.attention(x, attn_context), attn_context))
        return self.mlp_norm(x + self._residual_branch(self.mlp(x), attn_context))

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        picked = x[torch.arange(x.shape[0], device=x.device), query_positions]
        picked = self.norm(
            picked
            + self._residual_branch(
                self.attention.forward_single_query(x, query_positions, attn_context)
            )
        )
        return self.mlp_norm(picked + self._residual_branch(self.mlp(picked)))


class DecoderBlock(Block):
    """A block that looks at a context between looking around and thinking (the decoder of Vaswani et al. 2017)."""

    def __init__(
        self,
        attention: Attention,
        cross_attention: CrossAttention,
        mlp: nn.Module,
        norms: tuple[nn.Module, nn.Module, nn.Module],
        *,
        dropout: float = 0.0,
    ):
        super().__init__(attention, mlp, (norms[0], norms[2]), dropout=dropout)
        self.cross_attention, self.cross_norm = cross_attention, norms[1]

    def forward(
        self, x: Float[Tensor, "B T D"], attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        if attn_context.context is None:
            raise ValueError("a block that looks at a context was given none")
        x = x + self._residual_branch(self.attention(self.norm(x), attn_context), attn_context)
        x = x + self._residual_branch(
            self.cross_attention(
                self.cross_norm(x),
                attn_context.context.x,
                attn_context.context_mask,
                attn_context.cache,
            ),
            attn_context,
        )
        return x + self._residual_branch(self.mlp(self.mlp_norm(x)), attn_context)


class Transformer(nn.Module):
    """Blocks in a row, with a norm before the first and after the last where the layout has one."""

    def __init__(
        self,
        blocks: Iterable[Block],
        *,
        input_norm: nn.Module | None = None,
        final_norm: nn.Module | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.input_norm, self.final_norm = input_norm or nn.Identity(), final_norm or nn.Identity()

    def forward(
        self,
        t: Tokens,
        context: Tokens | None = None,
        *,
        query_positions: Int[Tensor, "B"] | None = None,
        cache: KVCache | None = None,
    ) -> Tokens:
        """All tokens; with `only`, one a sequence: the last block then leaves the others out (same numbers).

        With a `cache` these tokens go on from those it has read, and are kept in it; so is the context.
        """
        blocks, seen = self._blocks(), attention_context(t) if cache is None else cache.append(t)
        if cache is not None:
            cache.context = context = context or cache.context
        if context is not None:
            looks = context_mask(t if cache is None else cache.positions(t), context)
            said = self._forward_with_context(t, replace(seen, context=context, context_mask=looks))
            return said if query_positions is None else take_token(said, query_positions)
        last = blocks.pop() if query_positions is not None and blocks else None
        packed = plan_packing(t) if blocks else None
        x = self.input_norm(t.x if packed is None else packed.gather(t.x))
        inner = replace(seen, packing=packed)
        for block in blocks:
            x = block(x, inner)
        if query_positions is None:
            x = self.final_norm(x)
            return replace(t, x=x if packed is None else packed.scatter(x))
        x = x if packed is None else packed.scatter(x)
        rows = torch.arange(x.shape[0], device=x.device)
        x = (
            x[rows, query_positions]
            if last is None
            else last.forward_single_query(x, query_positions, seen)
        )
        return Tokens(self.final_norm(x)[:, None], t.pos[rows, query_positions][:, None])

    def _blocks(self) -> list[Block]:
        return [block for block in self.blocks if isinstance(block, Block)]

    def _forward_with_context(self, t: Tokens, attn_context: AttentionContext) -> Tokens:
        """All tokens, looking at a context too."""
        x = self.input_norm(t.x)
        for block in self._blocks():
            x = block(
                x
                if block.gated_cross_attention is None
                else block.gated_cross_attention(x, attn_context),
                attn_context,
            )
        return replace(t, x=self.final_norm(x))


def build_transformer(
    dim: int,
    depth: int,
    heads: int,
    *,
    dropout: float = 0.0,
    input_norm: bool = False,
    build_cross_attention: Callable[[int], GatedCrossAttention | None] = lambda i: None,
) -> Transformer:
    """A pre-norm GELU transformer with a final norm; `first` adds one before (CLIP's picture tower).

    `cross(i)` gives block i its way to look at a context, or None.
    """
    blocks = [
        Block(
            Attention(dim, heads),
            FeedForward(dim, 4 * dim),
            (nn.LayerNorm(dim), nn.LayerNorm(dim)),
            gated_cross_attention=build_cross_attention(i),
            dropout=dropout,
        )
        for i in range(depth)
    ]
    for block in blocks:
        _init_weights(block.attention, block.mlp, dim, depth)
    return Transformer(
        blocks, input_norm=nn.LayerNorm(dim) if input_norm else None, final_norm=nn.LayerNorm(dim)
    )


def _init_weights(attention: Attention, mlp: nn.Module, dim: int, depth: int) -> None:
    """CLIP's initial weights: what enters the residual stream is smaller the more blocks there are."""
    assert isinstance(mlp, FeedForward)
    into = dim**-0.5 * (2 * depth) ** -0.5
    stds = {
        attention.qkv: dim**-0.5,
        attention.out: into,
        mlp.up: (2 * dim) ** -0.5,
        mlp.down: into,
    }
    for layer, std in stds.items():
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


class Resampler(nn.Module):
    """Learned queries read a sequence: n=1 pools it, n=4 is a fusion bottleneck, n=64 Flamingo's resampler.

    Queries attend to the sequence and to themselves, so an empty sequence still gives a finite answer.
    """

    def __init__(self, dim: int, num_queries: int = 1, *, heads: int = 1, depth: int = 1):
        super().__init__()
        self.queries = normal_parameter(num_queries, dim, std=0.02)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.LayerNorm(dim),
                    nn.LayerNorm(dim),
                    CrossAttention(dim, heads),
                    nn.LayerNorm(dim),
                    FeedForward(dim, 4 * dim),
                ]
            )
            for _ in range(depth)
        )
        self.final_norm = nn.LayerNorm(dim)

    def forward(self, t: Tokens) -> Tokens:
        asked = Tokens(
            self.queries.expand(t.x.shape[0], -1, -1),
            t.pos.new_zeros(t.x.shape[0], len(self.queries), 3),
        )
        for norm, own_norm, attention, mlp_norm, mlp in self.layers:  # pyright: ignore[reportGeneralTypeIssues]
            own = own_norm(asked.x)
            read = join(replace(t, x=norm(t.x), order=None), replace(asked, x=own))
            x = asked.x + attention(
                own, read.x, None if t.valid is None else valid_mask(read)[:, None, None, :]
            )
            asked = replace(asked, x=x + mlp(mlp_norm(x)))
        return replace(asked, x=self.final_norm(asked.x))
