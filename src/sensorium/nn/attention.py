"""Who looks at whom, and what they hear: attention over a sequence, over another one, and over what was read before.

B batch   T tokens   S keys   D width   H heads   K head width   N real tokens of a batch   C width of a context
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from sensorium.nn.linear import Linear
from sensorium.nn.sdpa import attend, self_attend
from sensorium.nn.tokens import CAUSAL, Tokens, attention_mask, order_tensor, take_rows, valid_mask


@runtime_checkable
class PositionEncoding(Protocol):
    """How attention learns where tokens are: turn queries and keys (Rotary), add a bias (RelativeBias), or both."""

    def __call__(
        self, q: Tensor, k: Tensor, q_pos: Tensor, k_pos: Tensor
    ) -> tuple[Tensor, Tensor, Tensor | None]: ...


@dataclass(frozen=True)
class Packing:
    """Real tokens only, as rows; padding exists just where attention needs the grid."""

    index: Int[Tensor, "N"]  # where each row stands in the flattened grid
    shape: tuple[int, int]  # B, T

    def scatter(self, rows: Float[Tensor, "N D"]) -> Float[Tensor, "B T D"]:
        flat = rows.new_zeros(self.shape[0] * self.shape[1], rows.shape[-1]).index_copy(
            0, self.index, rows
        )
        return flat.view(*self.shape, -1)

    def gather(self, x: Float[Tensor, "B T D"]) -> Float[Tensor, "N D"]:
        return x.flatten(0, 1).index_select(0, self.index)


@dataclass(frozen=True)
class AttentionContext:
    """Who may see whom and where they are: worked out once a pass, shared by all blocks."""

    pos: Float[Tensor, "B T 3"]
    causal: bool = False
    mask: Bool[Tensor, "#B 1 #T S"] | None = None
    packing: Packing | None = None
    cache: KVCache | None = None
    context: Tokens | None = None  # what is looked at beside the line itself
    context_mask: Bool[Tensor, "B 1 #T S"] | None = (
        None  # who may see what of it; None: all sees all
    )


def attention_context(t: Tokens) -> AttentionContext:
    """No mask where none is needed: a causal order promises that padding comes last, so no real token can see it."""
    if t.order is CAUSAL:
        return AttentionContext(t.pos, causal=True)
    if t.order is None:
        return AttentionContext(t.pos, mask=None if t.valid is None else t.valid[:, None, None, :])
    order = order_tensor(t)
    if t.valid is None and order.stride(0) == 0:  # one order for all: one mask for all
        order = order[:1]
    return AttentionContext(t.pos, mask=attention_mask(order, order, t.valid))


class KVCache:
    """What a transformer has read already: keys and values of every attention layer, with room for `more` tokens after
    the first reading.

    Tokens that are read later may look back at these; what they could see had all been read at once, they see. Where
    the order of later tokens is CAUSAL, their turns go on from the number of tokens read.
    """

    def __init__(self, max_new_tokens: int):
        self.capacity, self.length = max_new_tokens, 0
        self.context: Tokens | None = None  # what every token read may look at beside them
        self._layers: dict[nn.Module, Tensor] = {}
        self._order: Int[Tensor, "B S"] | None = None  # None: 1, 2, 3, ...
        self._valid: Bool[Tensor, "B S"] | None = None  # None: all that was read is real

    def append(self, t: Tokens) -> AttentionContext:
        """Take up tokens about to be read, and say whom they may see. Raises ValueError where there is no room left."""
        start, end = self.length, self.length + t.x.shape[1]
        self.capacity += 0 if start else end
        if end > self.capacity:
            raise ValueError(
                f"a cache of {self.capacity} tokens holds {start}, and cannot take {t.x.shape[1]} more"
            )
        if self._order is not None or t.order is not CAUSAL:
            self._order = torch.cat(
                [self._full_order(t), order_tensor(t) + (start if t.order is CAUSAL else 0)], 1
            )
        if self._valid is not None or not (t.valid is None or t.valid.all()):
            before = (
                t.x.new_ones(t.x.shape[0], start, dtype=torch.bool)
                if self._valid is None
                else self._valid
            )
            self._valid = torch.cat([before, valid_mask(t)], 1)
        self.length = end
        if t.order is CAUSAL and start == 0:
            return AttentionContext(t.pos, causal=True, cache=self)
        if t.order is CAUSAL and end == start + 1:  # the latest of all sees everything that is real
            return AttentionContext(
                t.pos, mask=None if self._valid is None else self._valid[:, None, None], cache=self
            )
        return AttentionContext(
            t.pos,
            mask=attention_mask(order_tensor(self.positions(t)), self._full_order(t), self._valid),
            cache=self,
        )

    def update(self, layer: nn.Module, kv: Float[Tensor, "B H T K"]) -> Float[Tensor, "B H S K"]:
        """Keep the tokens being read: the heads of their keys, then of their values. All of the layer so far."""
        if layer not in self._layers:
            self._layers[layer] = kv.new_empty(
                kv.shape[0], self.capacity, kv.shape[1], kv.shape[3]
            ).transpose(1, 2)
        room = self._layers[layer]
        room.narrow(2, self.length - kv.shape[2], kv.shape[2]).copy_(kv)
        return room.narrow(2, 0, self.length)

    def positions(self, t: Tokens) -> Tokens:
        """The tokens read last, with the turns they have among all."""
        return replace(t, order=self._full_order(t)[:, -t.x.shape[1] :])

    def context_kv(
        self, layer: nn.Module, compute: Callable[[], Tensor]
    ) -> Float[Tensor, "B H S K"]:
        """The keys and values that a layer has of the context, worked out when it first looks."""
        if layer not in self._layers:
            self._layers[layer] = compute()
        return self._layers[layer]

    def reorder(self, rows: Int[Tensor, "C"]) -> None:
        """Go on with these rows of the batch, some perhaps twice (beam search)."""
        self._layers = {layer: kv[rows] for layer, kv in self._layers.items()}
        self._order = None if self._order is None else self._order[rows]
        self._valid = None if self._valid is None else self._valid[rows]
        self.context = None if self.context is None else take_rows(self.context, rows)

    def _full_order(self, t: Tokens) -> Int[Tensor, "B S"]:
        """The turns of all that was read."""
        plain = torch.arange(1, self.length + 1, device=t.x.device).expand(t.x.shape[0], -1)
        return plain if self._order is None else self._order


def plan_packing(t: Tokens) -> Packing | None:
    """Leave padding out of every linear layer, where it is more than a tenth of the batch (on a CPU; exact)."""
    if t.valid is None or t.x.device.type != "cpu" or torch.compiler.is_compiling():
        return None
    index = t.valid.flatten().nonzero().squeeze(1)
    return (
        Packing(index, (t.x.shape[0], t.x.shape[1])) if len(index) < 0.9 * t.valid.numel() else None
    )


class Attention(nn.Module):
    """softmax(q kᵀ / √K) v over the sequence itself, `heads` at a time (Vaswani et al. 2017).

    `width` is what all heads have together (default `dim`). Fewer `kv_heads` than heads share keys and values (GQA).
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
        self.heads, self.kv_heads = heads, kv_heads or heads
        self.width = width or dim
        if self.width % heads or heads % self.kv_heads:
            raise ValueError(
                f"a width of {self.width} with {kv_heads} key heads does not split into {heads} heads"
            )
        shared = self.width // heads * self.kv_heads
        self.qkv, self.out = (
            Linear(dim, self.width + 2 * shared, bias=bias),
            Linear(self.width, dim, bias=bias),
        )
        self.position, self.scale = position, scale

    def forward(
        self, x: Float[Tensor, "*rows D"], attn_context: AttentionContext
    ) -> Float[Tensor, "*rows D"]:
        qkv = self.qkv(x)
        qkv = qkv if attn_context.packing is None else attn_context.packing.scatter(qkv)
        if self.position is None and attn_context.cache is None and self.kv_heads == self.heads:
            said = self_attend(
                qkv,
                self.heads,
                causal=attn_context.causal,
                mask=attn_context.mask,
                scale=self.scale,
            )
        else:
            q, kv = _split_heads(qkv, self.heads + 2 * self.kv_heads).split_with_sizes(
                [self.heads, 2 * self.kv_heads], 1
            )
            said = self._attend(q, kv, attn_context.pos, attn_context)
        return self.out(said if attn_context.packing is None else attn_context.packing.gather(said))

    def forward_single_query(
        self,
        x: Float[Tensor, "B T D"],
        query_positions: Int[Tensor, "B"],
        attn_context: AttentionContext,
    ) -> Float[Tensor, "B D"]:
        """What forward would say at place `at` of each sequence, without the rest."""
        rows = torch.arange(x.shape[0], device=x.device)
        q = _split_heads(
            self.qkv.forward_slice(x[rows, query_positions][:, None], 0, self.width), self.heads
        )
        kv = _split_heads(self.qkv.forward_slice(x, self.width, None), 2 * self.kv_heads)
        mask = attn_context.mask
        if mask is not None and mask.shape[2] > 1:
            mask = mask.expand(x.shape[0], -1, -1, -1)[rows, :, query_positions][:, None]
        if attn_context.causal:
            mask = (torch.arange(x.shape[1], device=x.device) <= query_positions[:, None])[
                :, None, None
            ]
        pos = attn_context.pos[rows, query_positions][:, None]
        return self.out(
            self._attend(q, kv, pos, replace(attn_context, causal=False, mask=mask))[:, 0]
        )

    def _attend(
        self, q: Tensor, kv: Tensor, q_pos: Tensor, attn_context: AttentionContext
    ) -> Float[Tensor, "B T D"]:
        mask: Tensor | None = attn_context.mask
        causal = attn_context.causal
        k, v = kv.chunk(2, 1)
        if self.position is not None:
            q, k, bias = self.position(q, k, q_pos, attn_context.pos)
            if bias is not None:
                if attn_context.cache is not None:
                    raise ValueError(
                        f"{type(self.position).__name__} adds a bias, and what was read before has none"
                    )
                mask, causal = _merge_bias_and_mask(bias, mask, causal), False
        if attn_context.cache is not None:
            k, v = attn_context.cache.update(
                self, kv if self.position is None else torch.cat([k, v], 1)
            ).chunk(2, 1)
        if self.kv_heads != self.heads:
            k, v = (
                repeat(x, "b g s k -> b (g n) s k", n=self.heads // self.kv_heads) for x in (k, v)
            )
        said = attend(q, k, v, causal=causal, mask=mask, scale=self.scale)
        return said.transpose(1, 2).flatten(2)


def _split_heads(x: Float[Tensor, "B T D"], heads: int) -> Float[Tensor, "B H T K"]:
    """Heads apart. An einops pattern takes several times as long, which token by token is felt."""
    return x.view(*x.shape[:2], heads, -1).transpose(1, 2)


def _merge_bias_and_mask(
    bias: Float[Tensor, "B H T S"], mask: Tensor | None, causal: bool
) -> Float[Tensor, "B H T S"]:
    if causal:
        mask = torch.ones(bias.shape[-2:], dtype=torch.bool, device=bias.device).tril()
    return bias if mask is None else bias.masked_fill(~mask, float("-inf"))


class CrossAttention(nn.Module):
    """Attention of one sequence over another. Without a `bias` on the way out, who may see nothing hears nothing."""

    def __init__(self, dim: int, heads: int, context_dim: int | None = None, *, bias: bool = False):
        super().__init__()
        self.heads = heads
        self.q, self.kv = (
            Linear(dim, dim, bias=bias),
            Linear(context_dim or dim, 2 * dim, bias=bias),
        )
        self.out = Linear(dim, dim, bias=bias)

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        context: Float[Tensor, "B S C"],
        mask: Bool[Tensor, "B 1 #T S"] | None = None,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B T D"]:
        q = rearrange(self.q(x), "b t (h k) -> b h t k", h=self.heads)
        kv = (
            self._project_context(context)
            if cache is None
            else cache.context_kv(self, lambda: self._project_context(context))
        )
        k, v = kv.chunk(2, 1)
        return self.out(rearrange(attend(q, k, v, mask=mask), "b h t k -> b t (h k)"))

    def _project_context(self, context: Float[Tensor, "B S C"]) -> Float[Tensor, "B H2 S K"]:
        return _split_heads(self.kv(context), 2 * self.heads)
