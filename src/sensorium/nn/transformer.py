"""The transformer: Tokens in, Tokens out. Norm, activation and position encoding are modules.

Pretrained architectures (CLIP, BERT, T5, Llama, ...) are assembled from these parts.

B batch   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.nn.attention import (
    Attention,
    AttentionContext,
    CrossAttention,
    Packing,
    attention_context,
    plan_packing,
)
from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, context_mask, take_token


class FeedForward(nn.Module):
    """Two linear layers with an activation between them.

    Args:
        dim: Width of the tokens.
        hidden: Width between the layers.
        act: Activation; GELU by default.
        bias: Whether the linear layers have a bias.
    """

    def __init__(self, dim: int, hidden: int, act: nn.Module | None = None, *, bias: bool = True):
        super().__init__()
        self.up = Linear(dim, hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)
        self.act = act or nn.GELU()

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Transform each token on its own."""
        return self.down(self.act(self.up(x)))


class GatedFeedForward(nn.Module):
    """Feed-forward layers with a gated hidden layer (GLU, Shazeer 2020); SwiGLU with SiLU.

    Args:
        dim: Width of the tokens.
        hidden: Width between the layers.
        act: Activation of the gate; SiLU by default.
        bias: Whether the linear layers have a bias.
    """

    def __init__(self, dim: int, hidden: int, act: nn.Module | None = None, *, bias: bool = False):
        super().__init__()
        self.up = Linear(dim, 2 * hidden, bias=bias)
        self.down = Linear(hidden, dim, bias=bias)
        self.act = act or nn.SiLU()

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Transform each token on its own."""
        gate, value = self.up(x).chunk(2, -1)
        return self.down(self.act(gate) * value)


class GatedCrossAttention(nn.Module):
    """Cross-attention that is added to a trained block (Flamingo, Alayrac et al. 2022).

    Both gates start at 0, so that a new layer changes nothing.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
        context_dim: Width of the context; `dim` by default.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None):
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = CrossAttention(dim, heads, context_dim)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = FeedForward(dim, 4 * dim, bias=False)
        self.gate = nn.Parameter(torch.zeros(()))
        self.mlp_gate = nn.Parameter(torch.zeros(()))

    def forward(
        self, x: Float[Tensor, "B T D"], attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        """Add gated cross-attention over the context and a gated feed-forward branch."""
        context = attn_context.require_context()
        attended = self.attention(
            self.norm(x), context.x, attn_context.context_mask, attn_context.cache
        )
        x = x + self.gate.tanh() * attended
        return x + self.mlp_gate.tanh() * self.mlp(self.mlp_norm(x))


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        attention: Self-attention.
        mlp: Feed-forward layers.
        norms: Norms before attention and before the feed-forward layers.
        gated_cross_attention: Cross-attention applied before the block.
        dropout: Dropout on both residual branches.
    """

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
        self.attention = attention
        self.mlp = mlp
        self.gated_cross_attention = gated_cross_attention
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.drop_path = StochasticDepth()

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        """Apply both residual branches."""
        x = x + self._residual_branch(self.attention(self.norm(x), attn_context), attn_context)
        return x + self._residual_branch(self.mlp(self.mlp_norm(x)), attn_context)

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        """Compute `forward` for the token at `query_positions` of each sequence only."""
        query = _take_queries(x, query_positions)
        attended = self.attention.forward_single_query(self.norm(x), query_positions, attn_context)
        query = query + self._residual_branch(attended)
        return query + self._residual_branch(self.mlp(self.mlp_norm(query)))

    def _residual_branch(
        self, branch: Float[Tensor, "*rows D"], attn_context: AttentionContext | None = None
    ) -> Float[Tensor, "*rows D"]:
        """Apply dropout and stochastic depth to what a branch adds."""
        if not self.training:
            return branch
        packing = None
        if attn_context is not None and self.drop_path.drop_prob:
            packing = attn_context.packing
        if packing is None:
            return self.drop_path(self.dropout(branch))
        sample_index = packing.index // packing.shape[1]
        return self.drop_path(self.dropout(branch), sample_index, packing.shape[0])


class PostNormBlock(Block):
    """A post-norm block: norm(x + attention(x)), norm(x + mlp(x)) (Vaswani et al. 2017; BERT)."""

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        """Apply both residual branches, each followed by its norm."""
        x = self.norm(x + self._residual_branch(self.attention(x, attn_context), attn_context))
        return self.mlp_norm(x + self._residual_branch(self.mlp(x), attn_context))

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        """Compute `forward` for the token at `query_positions` of each sequence only."""
        query = _take_queries(x, query_positions)
        attended = self.attention.forward_single_query(x, query_positions, attn_context)
        query = self.norm(query + self._residual_branch(attended))
        return self.mlp_norm(query + self._residual_branch(self.mlp(query)))


class Transformer(nn.Module):
    """A stack of blocks.

    Args:
        blocks: The blocks, first to last.
        input_norm: Norm before the first block.
        final_norm: Norm after the last block.
    """

    def __init__(
        self,
        blocks: Iterable[Block],
        *,
        input_norm: nn.Module | None = None,
        final_norm: nn.Module | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.input_norm = input_norm or nn.Identity()
        self.final_norm = final_norm or nn.Identity()

    def forward(
        self,
        t: Tokens,
        context: Tokens | None = None,
        *,
        query_positions: Int[Tensor, "B"] | None = None,
        cache: KVCache | None = None,
    ) -> Tokens:
        """Transform all tokens, or one of each sequence.

        Args:
            t: The tokens; with a cache, those that follow the cached ones.
            context: Tokens for cross-attention. A cache stores the context of earlier calls.
            query_positions: Index of the only token of each sequence to return. The last block
                then leaves out the others; the result is the same.
            cache: Key-value cache, which is extended by `t`.
        """
        attn_context = attention_context(t, cache)
        if cache is not None:
            if context is not None:
                cache.context = context
            context = cache.context
        if context is not None:
            output = self._forward_with_context(t, context, attn_context)
            return output if query_positions is None else take_token(output, query_positions)
        if query_positions is not None:
            return self._forward_queries(t, query_positions, attn_context)
        return self._forward_full(t, attn_context)

    def block_list(self) -> list[Block]:
        """Return the blocks as a typed list."""
        return [block for block in self.blocks if isinstance(block, Block)]

    def _forward_full(self, t: Tokens, attn_context: AttentionContext) -> Tokens:
        """Transform all tokens."""
        x, packing = self._apply_blocks(t, self.block_list(), attn_context)
        x = self.final_norm(x)
        return replace(t, x=x if packing is None else packing.scatter(x))

    def _forward_queries(
        self, t: Tokens, query_positions: Int[Tensor, "B"], attn_context: AttentionContext
    ) -> Tokens:
        """Transform one token of each sequence; only the last block can leave out the others."""
        blocks = self.block_list()
        x, packing = self._apply_blocks(t, blocks[:-1], attn_context)
        if packing is not None:
            x = packing.scatter(x)
        if blocks:
            query = blocks[-1].forward_single_query(x, query_positions, attn_context)
        else:
            query = _take_queries(x, query_positions)
        return Tokens(
            self.final_norm(query)[:, None], _take_queries(t.pos, query_positions)[:, None]
        )

    def _forward_with_context(
        self, t: Tokens, context: Tokens, attn_context: AttentionContext
    ) -> Tokens:
        """Transform all tokens with cross-attention over a context."""
        cache = attn_context.cache
        ordered = t if cache is None else cache.with_cached_order(t)
        attn_context = replace(
            attn_context, context=context, context_mask=context_mask(ordered, context)
        )
        x = self.input_norm(t.x)
        for block in self.block_list():
            if block.gated_cross_attention is not None:
                x = block.gated_cross_attention(x, attn_context)
            x = block(x, attn_context)
        return replace(t, x=self.final_norm(x))

    def _apply_blocks(
        self, t: Tokens, blocks: Sequence[Block], attn_context: AttentionContext
    ) -> tuple[Tensor, Packing | None]:
        """Apply the input norm and blocks, without padding where that pays.

        Returns:
            The features, as packed rows where there is a packing, and the packing.
        """
        packing = plan_packing(t) if blocks else None
        x = self.input_norm(t.x if packing is None else packing.gather(t.x))
        packed_context = replace(attn_context, packing=packing)
        for block in blocks:
            x = block(x, packed_context)
        return x, packing


def num_heads(dim: int, head_dim: int = 64) -> int:
    """Return the largest number of attention heads, of at least `head_dim`, that divides a width.

    Args:
        dim: Width of the transformer.
        head_dim: Smallest width of a head; a narrower transformer has one head.
    """
    return next(n for n in range(max(1, dim // head_dim), 0, -1) if dim % n == 0)


def build_transformer(
    dim: int,
    depth: int,
    heads: int,
    *,
    dropout: float = 0.0,
    input_norm: bool = False,
    build_cross_attention: Callable[[int], GatedCrossAttention | None] | None = None,
) -> Transformer:
    """Build a pre-norm GELU transformer with a final norm and CLIP's initial weights.

    Args:
        dim: Width of the tokens.
        depth: Number of blocks.
        heads: Number of heads.
        dropout: Dropout on the residual branches.
        input_norm: Whether a norm precedes the first block (CLIP's vision transformer).
        build_cross_attention: Returns the gated cross-attention of block i, or None.
    """
    blocks: list[Block] = []
    layers: list[tuple[Attention, FeedForward]] = []
    for i in range(depth):
        attention = Attention(dim, heads)
        mlp = FeedForward(dim, 4 * dim)
        norms = (nn.LayerNorm(dim), nn.LayerNorm(dim))
        gated = None if build_cross_attention is None else build_cross_attention(i)
        blocks.append(Block(attention, mlp, norms, gated_cross_attention=gated, dropout=dropout))
        layers.append((attention, mlp))
    for attention, mlp in layers:
        _init_weights(attention, mlp, dim, depth)
    return Transformer(
        blocks, input_norm=nn.LayerNorm(dim) if input_norm else None, final_norm=nn.LayerNorm(dim)
    )


def _take_queries(x: Float[Tensor, "B T D"], index: Int[Tensor, "B"]) -> Float[Tensor, "B D"]:
    """Return the features of one token of each sequence."""
    return x[torch.arange(x.shape[0], device=x.device), index]


def _init_weights(attention: Attention, mlp: FeedForward, dim: int, depth: int) -> None:
    """Initialize as CLIP does: the output layers of residual branches shrink with the depth."""
    residual_std = dim**-0.5 * (2 * depth) ** -0.5
    stds = {
        attention.qkv: dim**-0.5,
        attention.out: residual_std,
        mlp.up: (2 * dim) ** -0.5,
        mlp.down: residual_std,
    }
    for layer, std in stds.items():
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)
