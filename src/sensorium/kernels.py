"""The two products that take nearly all the time, each by the fastest way that gives the same numbers.

    B batch   H heads   T queries   S keys   K head width   D width in   E width out   P part of it

Which way is fastest depends on the processor, and is read from its make, not from a stopwatch: a way chosen by timing
could differ from one run to the next, and with it the last bit of every weight. SENSORIUM_KERNELS=torch, onednn or
widen decides it by hand; `benchmarks/clip_train.py --ways` measures a machine that is not in the table of `way`.
"""
import ctypes
import os
import platform
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sensorium.errors import SensoriumError

LINEAR_BACKENDS = ("torch", "onednn", "widen")
MAX_EXPLICIT_ATTENTION_TOKENS = {torch.float32: 256, torch.bfloat16: 512}       # up to here attention is faster as two products and a softmax
MAX_TORCH_LINEAR_ROWS = 8                            # rows up to which a product without a gradient is left to torch (CPU)
MAX_TORCH_LINEAR_ROWS_AMD = 2                        # the same for float32 on AMD, where MKL is at its worst with 3 to 16 rows


@cache
def linear_backend(dtype: torch.dtype) -> str:
    """How the products of a linear layer are done in `dtype` on this machine; the same on every run.

    torch: as torch chooses. onednn: by oneDNN directly, which adds the bias while it writes the result. widen: bf16
    products in float32.
    """
    forced = os.environ.get("SENSORIUM_KERNELS")
    if forced and forced not in LINEAR_BACKENDS:
        raise SensoriumError(f"SENSORIUM_KERNELS={forced!r}: choose one of {', '.join(LINEAR_BACKENDS)}, or leave it unset.")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.cpu, "get_capabilities"):
        return "torch"
    if forced:
        return forced
    direct = is_amd_cpu() or has_bf16_matmul()
    if dtype == torch.float32 and direct:                        # Zen 4: oneDNN 83-104, MKL 46-75 GFLOP/s a core
        return "onednn"                                          # AMX: 170 both, but the bias costs nothing
    if dtype == torch.bfloat16 and torch.cpu.get_capabilities().get("avx512_bf16"):
        return "onednn" if direct else "widen"                   # bf16 on AMX 1,600, on an older Xeon 80
    return "torch"         # Xeon without AMX, float32: a step by oneDNN takes 1.19 times as long


@cache
def is_amd_cpu() -> bool:
    """Whether AMD made this processor."""
    about = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (about.read_text() if about.exists() else platform.processor())


@cache
def has_bf16_matmul() -> bool:
    """Whether this processor has a unit for bf16 products (AMX), which are then several times as fast as float32."""
    return hasattr(torch.cpu, "get_capabilities") and bool(torch.cpu.get_capabilities().get("amx_bf16"))


@cache
def has_int8_dot_product() -> bool:
    """Whether this processor adds up products of unsigned and signed bytes without a loss (VNNI, AMX)."""
    can = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(can.get(name) for name in ("avx512_vnni", "avx_vnni", "amx_int8"))


def configure_allocator() -> bool:
    """Keep freed memory for the next step instead of handing it back to the system; call it once, when a run starts.

    True where it took effect (glibc). The process then stays at its peak memory.
    """
    libc = ctypes.CDLL(None) if os.name == "posix" else None
    if libc is None or not hasattr(libc, "gnu_get_libc_version"):
        return False
    asked = {-1: (1 << 31) - 1, -2: 64 << 20, -3: 1 << 30}     # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    return all([libc.mallopt(what, value) for what, value in asked.items()])


def normal_parameter(*shape: int, std: float = 1.0) -> nn.Parameter:
    """First weights by a normal distribution. A random tensor times a number is the same, but loads torch's compiler, a
    second of CPU, on the meta device, where runs are planned."""
    weights = nn.Parameter(torch.empty(shape))
    nn.init.normal_(weights, std=std)
    return weights


class Linear(nn.Linear):
    """nn.Linear, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        return linear(input, self.weight, self.bias)

    def forward_slice(self, x: Float[Tensor, "*rows D"], start: int, stop: int | None) -> Float[Tensor, "*rows P"]:
        """Outputs `start` to `stop` of forward, without the others."""
        return linear(x, self.weight[start:stop], None if self.bias is None else self.bias[start:stop])


def linear(x: Float[Tensor, "*rows D"], weight: Float[Tensor, "E D"],
           bias: Float[Tensor, "E"] | None = None) -> Float[Tensor, "*rows E"]:
    """x weightᵀ + bias, by this machine's way; under autocast in autocast's type."""
    if not _is_eager(x, weight):
        return F.linear(x, weight, bias)
    few = MAX_TORCH_LINEAR_ROWS_AMD if is_amd_cpu() and weight.dtype == torch.float32 else MAX_TORCH_LINEAR_ROWS
    if x.shape[:-1].numel() <= few and not torch.is_grad_enabled():        # oneDNN takes longer to set up than to run
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    how = linear_backend(x.dtype)
    if how == "torch" or x.dtype != weight.dtype or not x.numel() or not _is_dense(weight):
        return F.linear(x, weight, bias)
    return _LinearFunction.apply(x, weight, bias, how)


def transpose_weights(module: nn.Module) -> None:
    """Turn over, in memory alone, the weights of linear layers that are read a row or two at a time: for a model that
    only answers, token by token.

    On AMD, float32 products of one row with a matrix whose columns lie together take a half to two thirds of the time,
    where the matrix is at least as high as wide; elsewhere nothing is done. Values, shapes and names stay.
    """
    for layer in module.modules() if is_amd_cpu() else ():
        if isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32 and layer.weight.is_contiguous():
            high, wide = layer.weight.shape
            if high >= wide:
                layer.weight.data = layer.weight.data.t().contiguous().t()


def _is_eager(*tensors: Tensor) -> bool:
    """Whether these are plain CPU tensors and nobody traces, counts or transforms what is done to them."""
    return (all(type(t) in (Tensor, nn.Parameter) and t.device.type == "cpu" for t in tensors)
            and not torch.compiler.is_compiling() and not torch._C._get_tracing_state()
            and not torch._C._are_functorch_transforms_active() and not torch._C._len_torch_dispatch_stack())


def _is_dense(weight: Tensor) -> bool:
    """Whether a matrix lies in memory without gaps, one way or the other: with gaps oneDNN takes 300 times as long."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """x weightᵀ + bias for rows x."""
    if backend == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if backend == "widen":
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)
    return F.linear(x, weight, bias)


class _LinearFunction(torch.autograd.Function):
    """F.linear by a chosen way. A second derivative is taken through torch's own products."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.how = backend
        with torch.autocast("cpu", enabled=False):
            return _matmul(x, weight, bias, backend)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        how = "torch" if torch.is_grad_enabled() else ctx.how
        rows, seen = grads[0].reshape(-1, grads[0].shape[-1]), x.reshape(-1, x.shape[-1])
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (_matmul(rows, weight.t(), None, how).view(x.shape) if needs_x else None,
                _weight_gradient(rows, seen, how) if needs_weight else None,
                rows.sum(0) if needs_bias else None, None)


def _weight_gradient(grad_output: Tensor, inputs: Tensor, backend: str) -> Tensor:
    """rowsᵀ seen. oneDNN's operator would first copy what is transposed; torch's product need not.

    Which side comes first matters: the wide one on AMD, the narrow one on Intel (a tenth to a quarter less time).
    """
    if backend == "widen":
        return _matmul(grad_output.t(), inputs.t(), None, backend)
    wide = grad_output.shape[1] >= inputs.shape[1]
    return grad_output.t() @ inputs if wide == is_amd_cpu() else (inputs.t() @ grad_output).t()


def attend(q: Float[Tensor, "B H T K"], k: Float[Tensor, "B H S K"], v: Float[Tensor, "B H S K"], *,
           causal: bool = False, mask: Tensor | None = None, scale: float | None = None,
           dropout: float = 0.0) -> Float[Tensor, "B H T K"]:
    """softmax(q kᵀ · scale + mask) v. A boolean mask is True where a query may see a key, a float one is added.

    A query that may see nothing comes out as exactly zero (boolean masks).
    """
    if causal and mask is not None and mask.dtype == torch.bool:
        causal, mask = False, mask & _causal_mask(q, k)
    if dropout == 0 and _use_explicit_attention(q, k, v, mask):
        seen = _causal_mask(q, k) if causal else mask
        return _AttentionFunction.apply(q, k, v, seen, q.shape[-1] ** -0.5 if scale is None else scale)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale, dropout_p=dropout)


def self_attend(qkv: Float[Tensor, "B T D"], heads: int, *, causal: bool = False, mask: Tensor | None = None,
                scale: float | None = None) -> Float[Tensor, "B T E"]:
    """attend of a sequence over itself; `qkv` holds queries, keys and values side by side, D = 3 E."""
    q, k, v = rearrange(qkv, "b t (n h k) -> n b h t k", n=3, h=heads)
    if not _use_explicit_attention(q, k, v, mask) or (causal and mask is not None):
        return rearrange(attend(q, k, v, causal=causal, mask=mask, scale=scale), "b h t k -> b t (h k)")
    seen = _causal_mask(q, k) if causal else mask
    return _SelfAttentionFunction.apply(qkv, heads, seen, q.shape[-1] ** -0.5 if scale is None else scale)


def _use_explicit_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> bool:
    """Whether two products and a softmax are quicker than torch's operator: its backward pass is slow, most in bf16."""
    if q.dtype != torch.bfloat16 and not (q.dtype == torch.float32 and q.requires_grad and torch.is_grad_enabled()):
        return False
    few = max(q.shape[2], k.shape[2]) <= MAX_EXPLICIT_ATTENTION_TOKENS.get(q.dtype, 0)
    few = few and q.shape[:2] == v.shape[:2] and q.shape[3] == v.shape[3]
    return (few and (mask is None or mask.dtype == torch.bool) and _is_eager(q, k, v)
            and linear_backend(torch.bfloat16) != "torch")


def _causal_mask(q: Tensor, k: Tensor) -> Tensor:
    """Query i may see keys 0 to i."""
    return torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()


class _AttentionFunction(torch.autograd.Function):
    """Attention with its probabilities kept: torch's own backward pass in bf16 takes 9 times as long at 65 tokens.

    Differentiable once, as torch's is.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float) -> Tensor:
        ctx.shape, ctx.scale = q.shape, scale
        q, k, v = (x.reshape(-1, *x.shape[2:]) for x in (q, k, v))                 # (B H) T K, one copy each
        p = _attention_probabilities(q, k, mask, ctx.shape[0], scale)
        ctx.save_for_backward(q, k, v, p)
        return _weighted_values(p, v).view(ctx.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:   # pyright: ignore[reportIncompatibleMethodOverride]
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
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:   # pyright: ignore[reportIncompatibleMethodOverride]
        parts, p = ctx.saved_tensors
        into = torch.empty_like(parts)
        said = rearrange(grads[0], "b t (h k) -> (b h) t k", k=parts.shape[-1])
        _write_attention_gradients(parts, p, said, ctx.scale, into)
        return rearrange(into, "n (b h) t k -> b t (n h k)", b=ctx.batch), None, None, None


def _attention_probabilities(q: Float[Tensor, "N T K"], k: Float[Tensor, "N S K"], mask: Bool[Tensor, "*b #T #S"] | None,
                   batch: int, scale: float) -> Float[Tensor, "N T S"]:
    """softmax(q kᵀ · scale) over what is seen; a query that sees nothing has a row of zeros."""
    with torch.autocast("cpu", enabled=False):
        p = torch.baddbmm(q.new_empty(1, 1, 1), q, k.transpose(1, 2), beta=0, alpha=scale)
        if mask is not None:
            p.view(batch, -1, *p.shape[1:]).masked_fill_(~mask, float("-inf"))
        p = p.softmax(-1)
        if mask is not None and not mask.any(-1).all():                            # a row of -inf became nan
            p.view(batch, -1, *p.shape[1:]).masked_fill_(~mask, 0)
        return p


def _write_attention_gradients(qkv: Sequence[Tensor] | Tensor, p: Float[Tensor, "N T S"], grad_output: Float[Tensor, "N T K"], scale: float,
               grad_inputs: Sequence[Tensor] | Tensor) -> None:
    """The gradients of q, k and v from that of what attention said."""
    q, k, v = qkv
    none = p.new_empty(1, 1, 1)
    torch.bmm(p.transpose(1, 2), grad_output, out=grad_inputs[2])
    scores = torch.ops.aten._softmax_backward_data(grad_output @ v.transpose(1, 2), p, -1, p.dtype)
    torch.baddbmm(none, scores, k, beta=0, alpha=scale, out=grad_inputs[0])
    torch.baddbmm(none, scores.transpose(1, 2), q, beta=0, alpha=scale, out=grad_inputs[1])


def _weighted_values(p: Float[Tensor, "N T S"], v: Float[Tensor, "N S K"]) -> Float[Tensor, "N T K"]:
    """Values, each as much as it is attended to."""
    with torch.autocast("cpu", enabled=False):
        return p @ v
