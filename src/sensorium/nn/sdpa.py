"""Scaled dot-product attention, computed by the fastest CPU kernel with the same result.

B batch   H heads   T queries   S keys   K head width   D width in   E width out   N = B H
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from sensorium.nn.cpu_dispatch import is_eager, linear_backend

MAX_EXPLICIT_ATTENTION_TOKENS = {torch.float32: 256, torch.bfloat16: 512}
"""Tokens up to which attention is faster as two products and a softmax."""


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
    """Return softmax(q kᵀ · scale + mask) v.

    With a boolean mask, the output of a query that attends to no key is exactly zero.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        causal: Whether query i attends to keys 0 to i only.
        mask: A boolean mask, True where a query may attend to a key, or a float one that is added.
        scale: Factor on the logits; 1 / √K by default.
        dropout: Dropout on the attention probabilities.
    """
    if causal and mask is not None and mask.dtype == torch.bool:
        mask = mask & _causal_mask(q, k)
        causal = False
    if dropout == 0 and _use_explicit_attention(q, k, v, mask):
        full_mask = _causal_mask(q, k) if causal else mask
        output = ExplicitAttention.apply(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            q, k, v, full_mask, q.shape[-1] ** -0.5 if scale is None else scale
        )
        return cast("Tensor", output)
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
    """Compute `attend` of a sequence over itself.

    Args:
        qkv: Queries, keys and values along the width, D = 3 E.
        heads: Number of heads.
        causal: Whether token i attends to tokens 0 to i only.
        mask: As for `attend`.
        scale: As for `attend`.
    """
    q, k, v = rearrange(qkv, "b t (n h k) -> n b h t k", n=3, h=heads)
    if not _use_explicit_attention(q, k, v, mask) or (causal and mask is not None):
        heads_output = attend(q, k, v, causal=causal, mask=mask, scale=scale)
        return rearrange(heads_output, "b h t k -> b t (h k)")
    full_mask = _causal_mask(q, k) if causal else mask
    output = ExplicitSelfAttention.apply(  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        qkv, heads, full_mask, q.shape[-1] ** -0.5 if scale is None else scale
    )
    return cast("Tensor", output)


def _use_explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Return whether two products and a softmax are faster than PyTorch's operator.

    The backward pass of the operator is slow, most of all in bf16.
    """
    trains_in_float32 = q.dtype == torch.float32 and q.requires_grad and torch.is_grad_enabled()
    if q.dtype != torch.bfloat16 and not trains_in_float32:
        return False
    max_tokens = MAX_EXPLICIT_ATTENTION_TOKENS.get(q.dtype, 0)
    is_short = max(q.shape[2], k.shape[2]) <= max_tokens
    same_heads = q.shape[:2] == v.shape[:2] and q.shape[3] == v.shape[3]
    return (
        is_short
        and same_heads
        and (mask is None or mask.dtype == torch.bool)
        and is_eager(q, k, v)
        and linear_backend(torch.bfloat16) != "torch"
    )


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """Return the mask by which query i attends to keys 0 to i."""
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()


class ExplicitAttention(torch.autograd.Function):
    """Attention that keeps its probabilities for the backward pass, differentiable once.

    PyTorch's own backward pass in bf16 takes 9 times as long at 65 tokens.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Return softmax(q kᵀ · scale) v over the keys that `mask` allows."""
        ctx.shape = q.shape
        ctx.scale = scale
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))  # (B H) T K, one copy each
        p = _attention_probabilities(q, k, mask, ctx.shape[0], scale)
        ctx.save_for_backward(q, k, v, p)
        return _weighted_values(p, v).view(ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradients of q, k and v."""
        q, k, v, p = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in (q, k, v)]
        grad_output = grad_outputs[0].reshape(q.shape)
        _write_attention_gradients((q, k, v), p, grad_output, ctx.scale, grads)
        return *(g.view(*ctx.shape[:2], *g.shape[1:]) for g in grads), None, None


class ExplicitSelfAttention(torch.autograd.Function):
    """`ExplicitAttention` of adjacent queries, keys and values.

    Their gradients are adjacent too, so that each needs one copy.
    """

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, qkv: Tensor, heads: int, mask: Tensor | None, scale: float
    ) -> Tensor:
        """Return the attention of a sequence over itself."""
        ctx.batch = len(qkv)
        ctx.scale = scale
        parts = rearrange(qkv, "b t (n h k) -> n (b h) t k", n=3, h=heads).contiguous()
        p = _attention_probabilities(parts[0], parts[1], mask, ctx.batch, scale)
        ctx.save_for_backward(parts, p)
        return rearrange(_weighted_values(p, parts[2]), "(b h) t k -> b t (h k)", b=ctx.batch)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        """Return the gradient of qkv."""
        parts, p = ctx.saved_tensors
        grads = torch.empty_like(parts)
        grad_output = rearrange(grad_outputs[0], "b t (h k) -> (b h) t k", k=parts.shape[-1])
        _write_attention_gradients(parts, p, grad_output, ctx.scale, grads)
        return rearrange(grads, "n (b h) t k -> b t (n h k)", b=ctx.batch), None, None, None


def _attention_probabilities(
    q: Float[Tensor, "N T K"],
    k: Float[Tensor, "N S K"],
    mask: Bool[Tensor, "*b #T #S"] | None,
    batch: int,
    scale: float,
) -> Float[Tensor, "N T S"]:
    """Return softmax(q kᵀ · scale) over the allowed keys, zeros for a fully masked query."""
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
    """Write the gradients of q, k and v into `grad_inputs`."""
    q, k, v = qkv
    unused = p.new_empty(1, 1, 1)
    torch.bmm(p.transpose(1, 2), grad_output, out=grad_inputs[2])
    grad_p = grad_output @ v.transpose(1, 2)
    grad_logits = torch.ops.aten._softmax_backward_data(grad_p, p, -1, p.dtype)
    torch.baddbmm(unused, grad_logits, k, beta=0, alpha=scale, out=grad_inputs[0])
    torch.baddbmm(unused, grad_logits.transpose(1, 2), q, beta=0, alpha=scale, out=grad_inputs[1])


def _weighted_values(
    p: Float[Tensor, "N T S"], v: Float[Tensor, "N S K"]
) -> Float[Tensor, "N T K"]:
    """Return the values weighted by the attention probabilities."""
    with torch.autocast("cpu", enabled=False):
        return p @ v
