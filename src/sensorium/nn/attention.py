"""Multi-head self-, cross- and cached attention.

B batch   T tokens   S keys   D width   H heads   K head width   N real tokens of a batch
C width of a context
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.kv_cache import KVCache
from sensorium.nn.linear import Linear
from sensorium.nn.sdpa import attend, self_attend
from sensorium.nn.tokens import CAUSAL, Tokens, attention_mask, order_tensor

MIN_PADDING_SHARE = 0.1
"""Share of padding in a batch above which linear layers skip it (CPU)."""


@runtime_checkable
class PositionEncoding(Protocol):
    """A position encoding: rotates queries and keys (Rotary) or adds a bias (RelativeBias)."""

    def __call__(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return queries, keys and an additive bias on the attention logits."""
        ...


@dataclass(frozen=True)
class Packing:
    """The real tokens of a batch as rows; padding exists only where attention needs the grid.

    Attributes:
        index: Index of each row in the flattened grid.
        shape: Batch size B and sequence length T of the grid.
    """

    index: Int[Tensor, "N"]
    shape: tuple[int, int]

    def scatter(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        """Put rows back into the grid, zeros for padding."""
        flat = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[-1])
        return flat.index_copy(0, self.index, rows).view(*self.shape, -1)

    def gather(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "N D"]:
        """Take the real tokens out of the grid."""
        return x.flatten(0, 1).index_select(0, self.index)


@dataclass(frozen=True)
class AttentionContext:
    """Masks, positions and cache of one forward pass, shared by all blocks.

    Attributes:
        pos: Positions of the tokens.
        causal: Whether self-attention is causal.
        mask: Self-attention mask, True where a query may attend to a key.
        packing: Packing of the real tokens, if padding is left out.
        cache: Key-value cache, if tokens are generated.
        context: Tokens for cross-attention.
        context_mask: Cross-attention mask; None if nothing is masked.
    """

    pos: Float[Tensor, "B T 3"]
    causal: bool = False
    mask: Bool[Tensor, "#B 1 #T S"] | None = None
    packing: Packing | None = None
    cache: KVCache | None = None
    context: Tokens | None = None
    context_mask: Bool[Tensor, "B 1 #T S"] | None = None

    def require_context(self) -> Tokens:
        """Return the tokens for cross-attention.

        Raises:
            ValueError: There are none.
        """
        if self.context is None:
            raise ValueError("A block with cross-attention needs a context. Pass `context=`.")
        return self.context


def attention_context(t: Tokens, cache: KVCache | None = None) -> AttentionContext:
    """Return the context of a forward pass over `t`, with a mask only where one is needed.

    A causal order promises that padding comes last, so that no real token can attend to it.

    Args:
        t: Input tokens of the forward pass.
        cache: Key-value cache, to which they are added.
    """
    if cache is not None:
        visible = cache.append(t) if cache.length else cache.prefill(t)
        return AttentionContext(t.pos, causal=visible.causal, mask=visible.mask, cache=cache)
    if t.order is CAUSAL:
        return AttentionContext(t.pos, causal=True)
    if t.order is None:
        return AttentionContext(t.pos, mask=None if t.valid is None else t.valid[:, None, None, :])
    order = order_tensor(t)
    if t.valid is None and order.stride(0) == 0:  # all rows have the same order: one mask
        order = order[:1]
    return AttentionContext(t.pos, mask=attention_mask(order, order, t.valid))


def plan_packing(t: Tokens) -> Packing | None:
    """Return a packing that leaves padding out of every linear layer, or None if it does not pay.

    Packing is exact. It is used on a CPU where padding exceeds a tenth of the batch.
    """
    if t.valid is None or t.x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    index = t.valid.flatten().nonzero().squeeze(1)
    if len(index) >= (1 - MIN_PADDING_SHARE) * t.valid.numel():
        return None
    return Packing(index, (t.x.shape[0], t.x.shape[1]))


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √K) v (Vaswani et al. 2017).

    Args:
        dim: Width of the tokens.
        heads: Number of query heads.
        width: Width of all query heads together; `dim` by default.
        kv_heads: Number of key and value heads; fewer than `heads` are shared (GQA).
        bias: Whether the linear layers have a bias.
        position: Position encoding.
        scale: Factor on the attention logits; 1 / √K by default.

    Raises:
        ValueError: The width does not divide into the heads.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        *,
        width: int | None = None,
        kv_heads: int | None = None,
        bias: bool = True,
        position: PositionEncoding | None = None,
        scale: float | None = None,
    ):
        super().__init__()
        self.heads = heads
        self.kv_heads = kv_heads or heads
        self.width = width or dim
        if self.width % heads or heads % self.kv_heads:
            raise ValueError(
                f"A width of {self.width} does not split into {heads} heads with "
                f"{self.kv_heads} key and value heads."
            )
        kv_width = self.width // heads * self.kv_heads
        self.qkv = Linear(dim, self.width + 2 * kv_width, bias=bias)
        self.out = Linear(self.width, dim, bias=bias)
        self.position = position
        self.scale = scale

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        """Attend over the sequence; `x` holds packed rows where the context has a packing."""
        packing = attn_context.packing
        qkv = self.qkv(x)
        if packing is not None:
            qkv = packing.scatter(qkv)
        if self.position is None and attn_context.cache is None and self.kv_heads == self.heads:
            output = self_attend(
                qkv,
                self.heads,
                causal=attn_context.causal,
                mask=attn_context.mask,
                scale=self.scale,
            )
        else:
            heads = _split_heads(qkv, self.heads + 2 * self.kv_heads)
            q, kv = heads.split_with_sizes([self.heads, 2 * self.kv_heads], 1)
            output = self._attend(q, kv, attn_context.pos, attn_context)
        return self.out(output if packing is None else packing.gather(output))

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        """Compute `forward` for one query of each sequence only.

        Args:
            x: All tokens, not packed.
            query_positions: Index of the query in each sequence.
            attn_context: Context of the forward pass.
        """
        rows = torch.arange(x.shape[0], device=x.device)
        query = self.qkv.forward_slice(x[rows, query_positions][:, None], 0, self.width)
        q = _split_heads(query, self.heads)
        kv = _split_heads(self.qkv.forward_slice(x, self.width, None), 2 * self.kv_heads)
        mask = attn_context.mask
        if mask is not None and mask.shape[2] > 1:
            mask = mask.expand(x.shape[0], -1, -1, -1)[rows, :, query_positions][:, None]
        if attn_context.causal:
            past = torch.arange(x.shape[1], device=x.device) <= query_positions[:, None]
            mask = past[:, None, None]
        pos = attn_context.pos[rows, query_positions][:, None]
        output = self._attend(q, kv, pos, replace(attn_context, causal=False, mask=mask))
        return self.out(output[:, 0])

    def _attend(
        self, q: Tensor, kv: Tensor, q_pos: Tensor, attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        """Apply the position encoding and the cache, then attend."""
        mask: Tensor | None = attn_context.mask
        causal = attn_context.causal
        cache = attn_context.cache
        k, v = kv.chunk(2, 1)
        if self.position is not None:
            q, k, bias = self.position(q, k, q_pos, attn_context.pos)
            kv = torch.cat([k, v], 1) if cache is not None else kv
            if bias is not None:
                if cache is not None:
                    raise ValueError(
                        f"{type(self.position).__name__} adds a bias, which a cache does not "
                        "support. Read the whole sequence instead."
                    )
                mask = _merge_bias_and_mask(bias, mask, causal)
                causal = False
        if cache is not None:
            k, v = cache.update(self, kv).chunk(2, 1)
        if self.kv_heads != self.heads:
            queries_per_kv_head = self.heads // self.kv_heads
            k = repeat(k, "b g s k -> b (g n) s k", n=queries_per_kv_head)
            v = repeat(v, "b g s k -> b (g n) s k", n=queries_per_kv_head)
        output = attend(q, k, v, causal=causal, mask=mask, scale=self.scale)
        return output.transpose(1, 2).flatten(2)


class CrossAttention(nn.Module):
    """Multi-head attention of one sequence over another.

    Args:
        dim: Width of the tokens.
        heads: Number of heads.
        context_dim: Width of the context; `dim` by default.
        bias: Whether the linear layers have a bias. Without one, the output of a query whose keys
            are all masked is zero.
    """

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, *, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.q = Linear(dim, dim, bias=bias)
        self.kv = Linear(context_dim or dim, 2 * dim, bias=bias)
        self.out = Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S C"],
        mask: Bool[Tensor, "B 1 #T S"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        """Attend over the context.

        Args:
            x: Queries.
            context: Tokens attended to.
            mask: True where a query may attend to a context token.
            cache: Cache that stores the keys and values of the context.
        """
        q = rearrange(self.q(x), "b t (h k) -> b h t k", h=self.heads)
        if cache is None:
            kv = self._project_context(context)
        else:
            kv = cache.context_kv(self, lambda: self._project_context(context))
        k, v = kv.chunk(2, 1)
        return self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))

    def _project_context(self, context: Float[Tensor, "B S C"]) -> Float[Tensor, "B H2 S K"]:
        """Return the heads of the keys, then those of the values."""
        return _split_heads(self.kv(context), 2 * self.heads)


def _split_heads(x: Float[Tensor, "B T D"], heads: int) -> Float[Tensor, "B H T K"]:
    """Split the width into heads. An einops pattern is several times slower on single tokens."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _merge_bias_and_mask(
    bias: Float[Tensor, "B H T S"], mask: Tensor | None, causal: bool
) -> Float[Tensor, "B H T S"]:
    """Return the bias with -inf where a query may not attend."""
    if causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return bias if mask is None else bias.masked_fill(~mask, float("-inf"))
