"""Linear layers, computed by the fastest CPU kernel with the same result.

D width in   E width out   P part of it

The backend depends on the processor model and not on timing: a choice by timing could differ from
run to run, and with it the last bit of every weight. SENSORIUM_KERNELS=torch, onednn or widen
overrides it; `benchmarks/clip_train.py --ways` measures a machine that
`cpu_dispatch.linear_backend` does not know.
"""

from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.cpu_dispatch import is_amd_cpu, is_eager, linear_backend

MAX_TORCH_LINEAR_ROWS = 8
"""Rows up to which a product without a gradient is left to PyTorch: oneDNN's setup takes longer."""

MAX_TORCH_LINEAR_ROWS_AMD = 2
"""The same for float32 on AMD, where MKL is slowest at 3 to 16 rows."""


def normal_parameter(*shape: int, std: float = 1.0) -> nn.Parameter:
    """Return a parameter with normally distributed values.

    `std * torch.randn(shape)` has the same values but loads PyTorch's compiler, a second of CPU
    time, on the meta device, where runs are planned.
    """
    weights = nn.Parameter(torch.empty(shape))
    nn.init.normal_(weights, std=std)
    return weights


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`."""

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        """Return x weightᵀ + bias."""
        return linear(input, self.weight, self.bias)

    def forward_slice(
        self, x: Float[Tensor, "*rows D"], start: int, stop: int | None
    ) -> Float[Tensor, "*rows P"]:
        """Compute only the outputs `start` to `stop` of `forward`."""
        bias = None
        if self.bias is not None:  # pyright: ignore[reportUnnecessaryComparison]
            bias = self.bias[start:stop]
        return linear(x, self.weight[start:stop], bias)


def linear(
    x: Float[Tensor, "*rows D"],
    weight: Float[Tensor, "E D"],
    bias: Float[Tensor, "E"] | None = None,
) -> Float[Tensor, "*rows E"]:
    """Return x weightᵀ + bias by this machine's backend; under autocast in autocast's dtype."""
    if not is_eager(x, weight):
        return F.linear(x, weight, bias)
    if not torch.is_grad_enabled() and x.shape[:-1].numel() <= _max_torch_rows(weight):
        return F.linear(x, weight, bias)
    if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype("cpu")
        x = x.to(dtype)
        weight = weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    backend = linear_backend(x.dtype)
    if backend == "torch" or x.dtype != weight.dtype or not x.numel() or not _is_dense(weight):
        return F.linear(x, weight, bias)
    output = _LinearFunction.apply(x, weight, bias, backend)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return cast("Tensor", output)


def transpose_weights(module: nn.Module) -> None:
    """Store the weights of linear layers column by column, for token-by-token inference on AMD.

    On AMD, a float32 product of one row with such a matrix takes a half to two thirds of the time
    if the matrix is at least as high as wide. Values, shapes and names stay; elsewhere nothing
    happens.
    """
    if not is_amd_cpu():
        return
    for layer in module.modules():
        if not isinstance(layer, nn.Linear):
            continue
        if layer.weight.dtype != torch.float32 or not layer.weight.is_contiguous():
            continue
        height, width = layer.weight.shape
        if height >= width:
            layer.weight.data = layer.weight.data.t().contiguous().t()


def _max_torch_rows(weight: Tensor) -> int:
    if is_amd_cpu() and weight.dtype == torch.float32:
        return MAX_TORCH_LINEAR_ROWS_AMD
    return MAX_TORCH_LINEAR_ROWS


def _is_dense(weight: Tensor) -> bool:
    """Return whether a matrix is stored without gaps; with gaps oneDNN takes 300 times as long."""
    return weight.is_contiguous() or weight.t().is_contiguous()


def _matmul(x: Tensor, weight: Tensor, bias: Tensor | None, backend: str) -> Tensor:
    """Return x weightᵀ + bias for rows x."""
    if backend == "onednn":
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    if backend == "widen":
        float_bias = None if bias is None else bias.float()
        return F.linear(x.float(), weight.float(), float_bias).to(x.dtype)
    return F.linear(x, weight, bias)


class _LinearFunction(torch.autograd.Function):
    """`F.linear` by a given backend. Second derivatives use PyTorch's own products."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, backend: str
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.backend = backend
        with torch.autocast("cpu", enabled=False):
            return _matmul(x, weight, bias, backend)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        backend = "torch" if torch.is_grad_enabled() else ctx.backend
        grad_rows = grad_outputs[0].reshape(-1, grad_outputs[0].shape[-1])
        x_rows = x.reshape(-1, x.shape[-1])
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad
        return (
            _matmul(grad_rows, weight.t(), None, backend).view(x.shape) if needs_x else None,
            _weight_gradient(grad_rows, x_rows, backend) if needs_weight else None,
            grad_rows.sum(0) if needs_bias else None,
            None,
        )


def _weight_gradient(grad_output: Tensor, inputs: Tensor, backend: str) -> Tensor:
    """Return grad_outputᵀ inputs.

    oneDNN's operator would copy the transposed operand first, so PyTorch's product is used. The
    wide operand comes first on AMD, the narrow one on Intel (10 to 25 % less time).
    """
    if backend == "widen":
        return _matmul(grad_output.t(), inputs.t(), None, backend)
    output_is_wide = grad_output.shape[1] >= inputs.shape[1]
    if output_is_wide == is_amd_cpu():
        return grad_output.t() @ inputs
    return (inputs.t() @ grad_output).t()
