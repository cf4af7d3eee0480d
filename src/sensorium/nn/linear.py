"""The two products that take nearly all the time, each by the fastest way that gives the same numbers.

    B batch   H heads   T queries   S keys   K head width   D width in   E width out   P part of it

Which way is fastest depends on the processor, and is read from its make, not from a stopwatch: a way chosen by timing
could differ from one run to the next, and with it the last bit of every weight. SENSORIUM_KERNELS=torch, onednn or
widen decides it by hand; `benchmarks/clip_train.py --ways` measures a machine that is not in the table of `way`.
"""

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.cpu_dispatch import _is_eager, is_amd_cpu, linear_backend

MAX_TORCH_LINEAR_ROWS = 8  # rows up to which a product without a gradient is left to torch (CPU)


MAX_TORCH_LINEAR_ROWS_AMD = (
    2  # the same for float32 on AMD, where MKL is at its worst with 3 to 16 rows
)


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

    def forward_slice(
        self, x: Float[Tensor, "*rows D"], start: int, stop: int | None
    ) -> Float[Tensor, "*rows P"]:
        """Outputs `start` to `stop` of forward, without the others."""
        return linear(
            x, self.weight[start:stop], None if self.bias is None else self.bias[start:stop]
        )


def linear(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "E D"],
    bias: Float[Tensor, "E"] | None = None,
) -> Float[Tensor, "*rows E"]:
    """x weightᵀ + bias, by this machine's way; under autocast in autocast's type."""
    if not _is_eager(x, weight):
        return F.linear(x, weight, bias)
    few = (
        MAX_TORCH_LINEAR_ROWS_AMD
        if is_amd_cpu() and weight.dtype == torch.float32
        else MAX_TORCH_LINEAR_ROWS
    )
    if (
        x.shape[:-1].numel() <= few and not torch.is_grad_enabled()
    ):  # oneDNN takes longer to set up than to run
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
        if (
            isinstance(layer, nn.Linear)
            and layer.weight.dtype == torch.float32
            and layer.weight.is_contiguous()
        ):
            high, wide = layer.weight.shape
            if high >= wide:
                layer.weight.data = layer.weight.data.t().contiguous().t()


def _is_dense(weight: Tensor) -> bool:
    """Whether a matrix lies in memory without gaps, one way or the other: with gaps oneDNN takes 300 times as long."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """x weightᵀ + bias for rows x."""
    if backend == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if backend == "widen":
        return F.linear(x.float(), weight.float(), None if bias is None else bias.float()).to(
            x.dtype
        )
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
        return (
            _matmul(rows, weight.t(), None, how).view(x.shape) if needs_x else None,
            _weight_gradient(rows, seen, how) if needs_weight else None,
            rows.sum(0) if needs_bias else None,
            None,
        )


def _weight_gradient(grad_output: Tensor, inputs: Tensor, backend: str) -> Tensor:
    """rowsᵀ seen. oneDNN's operator would first copy what is transposed; torch's product need not.

    Which side comes first matters: the wide one on AMD, the narrow one on Intel (a tenth to a quarter less time).
    """
    if backend == "widen":
        return _matmul(grad_output.t(), inputs.t(), None, backend)
    wide = grad_output.shape[1] >= inputs.shape[1]
    return grad_output.t() @ inputs if wide == is_amd_cpu() else (inputs.t() @ grad_output).t()
