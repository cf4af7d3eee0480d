"""Scaled dot-product attention by the fastest way that gives the same numbers.

B batch   H heads   T queries   S keys   K head width   D width in   E width out
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sensorium.nn.cpu_dispatch import _is_eager, linear_backend

MAX_EXPLICIT_ATTENTION_TOKENS = {
    torch.float32: 256,
    torch.bfloat16: 512,
}  # up to here attention is faster as two products and a softmax


def attend(
    q: Float[Tensor, "B H T K"],
    k: Float[Tensor, "B H S K"],
    v: Float[Tensor, "B H S K"],
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    dropout: float = 0.0,
) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ · scale + mask) v. A boolean mask is True where a query may see a key, a float one is added.

    A query that may see nothing comes out as exactly zero (boolean masks).
    """
    if causal and mask is not None and mask.dtype == torch.bool:
        causal, mask = False, mask & _causal_mask(q, k)
    if dropout == 0 and _use_explicit_attention(q, k, v, mask):
        seen = _causal_mask(q, k) if causal else mask
        return _AttentionFunction.apply(
            q, k, v, seen, q.shape[-1] ** -0.5 if scale is None else scale
        )
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout
    )


def self_attend(
    qkv: Float[Tensor, "B T D"],
    heads: int,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
) -> Float[Tensor, "B T E"]:
    """attend of a sequence over itself; `qkv` holds queries, keys and values side by side, D = 3 E."""
    q, k, v = rearrange(qkv, "b t (n h k) -> n b h t k", n=3, h=heads)
    if not _use_explicit_attention(q, k, v, mask) or (causal and mask is not None):
        return rearrange(
            attend(q, k, v, causal=causal, mask=mask, scale=scale), "b h t k -> b t (h k)"
        )
    seen = _causal_mask(q, k) if causal else mask
    return _SelfAttentionFunction.apply(
        qkv, heads, seen, q.shape[-1] ** -0.5 if scale is None else scale
    )


def _use_explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether two products and a softmax are quicker than torch's operator: its backward pass is slow, most in bf16."""
    if q.dtype != torch.bfloat16 and not (
        q.dtype == torch.float32 and q.requires_grad and torch.is_grad_enabled()
    ):
        return False
    few = max(q.shape[2], k.shape[2]) <= MAX_EXPLICIT_ATTENTION_TOKENS.get(q.dtype, 0)
    few = few and q.shape[:2] == v.shape[:2] and q.shape[3] == v.shape[3]
    return (
        few
        and (mask is None or mask.dtype == torch.bool)
        and _is_eager(q, k, v)
        and linear_backend(torch.bfloat16) != "torch"
    )


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """Query i may see keys 0 to i."""
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()


class _AttentionFunction(torch.autograd.Function):
    """Attention with its probabilities kept: torch's own backward pass in bf16 takes 9 times as long at 65 tokens.

    Differentiable once, as torch's is.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        ctx.shape, ctx.scale = q.shape, scale
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))  # (B H) T K, one copy each
        p = _attention_probabilities(q, k, mask, ctx.shape[0], scale)
        ctx.save_for_backward(q, k, v, p)
        return _weighted_values(p, v).view(ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        q, k, v, p = ctx.saved_tensors
        into = [torch.empty_like(x) for x in (q, k, v)]
        _write_attention_gradients((q, k, v), p, grads[0].reshape(q.shape), ctx.scale, into)
        return *(g.view(*ctx.shape[:2], *g.shape[1:]) for g in into), None, None


class _SelfAttentionFunction(torch.autograd.Function):
    """_Attend for queries, keys and values that lie side by side, and so can their gradients: one copy of each."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int, mask: Tensor | None, scale: float) -> Tensor:
        ctx.batch, ctx.scale = len(qkv), scale
        parts = rearrange(qkv, "b t (n h k) -> n (b h) t k", n=3, h=heads).contiguous()
        p = _attention_probabilities(parts[0], parts[1], mask, ctx.batch, scale)
        ctx.save_for_backward(parts, p)
        return rearrange(_weighted_values(p, parts[2]), "(b h) t k -> b t (h k)", b=ctx.batch)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        parts, p = ctx.saved_tensors
        into = torch.empty_like(parts)
        said = rearrange(grads[0], "b t (h k) -> (b h) t k", k=parts.shape[-1])
        _write_attention_gradients(parts, p, said, ctx.scale, into)
        return rearrange(into, "n (b h) t k -> b t (n h k)", b=ctx.batch), None, None, None


def _attention_probabilities(
    q: Float[Tensor, "N T K"],
    k: Float[Tensor, "N S K"],
    mask: Bool[Tensor, "*b #T #S"] | None,
    batch: int,
    scale: float,
) -> Float[Tensor, "N T S"]:
    """softmax(q kᵀ · scale) over what is seen; a query that sees nothing has a row of zeros."""
    with torch.autocast("cpu", enabled=False):
        p = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
        if mask is not None:
            p.view(batch, -1, *p.shape[1:]).masked_fill_(~mask, float("-inf"))
        p = p.softmax(-1)
        if mask is not None and not mask.any(-1).all():  # a row of -inf became nan
            p.view(batch, -1, *p.shape[1:]).masked_fill_(~mask, 0)
        return p


def _write_attention_gradients(
    qkv: Sequence[Tensor] | Tensor,
    p: Float[Tensor, "N T S"],
    grad_output: Float[Tensor, "N T K"],
    scale: float,
    grad_inputs: Sequence[Tensor] | Tensor,
) -> None:
    """The gradients of q, k and v from that of what attention said."""
    q, k, v = qkv
    none = p.new_empty(1, 1, 1)
    torch.bmm(p.transpose(1, 2), grad_output, out=grad_inputs[2])
    scores = torch.ops.aten._softmax_backward_data(grad_output @ v.transpose(1, 2), p, -1, p.dtype)
    torch.baddbmm(none, scores, k, beta=0, alpha=scale, out=grad_inputs[0])
    torch.baddbmm(none, scores.transpose(1, 2), q, beta=0, alpha=scale, out=grad_inputs[1])


def _weighted_values(
    p: Float[Tensor, "N T S"], v: Float[Tensor, "N S K"]
) -> Float[Tensor, "N T K"]:
    """Values, each as much as it is attended to."""
    with torch.autocast("cpu", enabled=False):
        return p @ v
