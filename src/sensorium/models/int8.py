"""Int8 weights for inference on the CPU: a quarter of the memory, and faster with VNNI or AMX.

D width in   E width out   P part of it   N rows   V vocabulary
M = 2 N: low bytes, then high bytes

Weights are quantized symmetrically to -127..127 with one scale per output row (per vector for
embeddings). Inputs are quantized dynamically, each row by itself, so that a row's result does not
depend on its batch. Decoders are more sensitive to rounding than encoders: each of their inputs
takes two bytes, a high and a low one, which are multiplied as separate rows.

oneDNN takes inputs as unsigned bytes with a zero point of 128: without AMX it multiplies signed
ones a thousand times more slowly. Without VNNI, sums of unsigned bytes may saturate, so signed
bytes are used there.
"""

from collections.abc import Callable, Iterable, Mapping
from functools import cache, partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.cpu_dispatch import has_int8_dot_product

QUANTIZED_DTYPES = ("int8",)
INT8_MAX = 127
BYTE_BASE = 256  # steps of the low byte in one of the high byte
ZERO_POINT = 128  # unsigned byte that stands for zero
ROUNDING_OFFSET = torch.tensor(ZERO_POINT + 0.5)  # truncation after adding a half rounds
FLOAT_TO_INT_OFFSET = torch.tensor(2.0**23 + ZERO_POINT * BYTE_BASE + ZERO_POINT)
"""Added to a small float32, it leaves the rounded integer in the low bits of the mantissa."""
BYTE_SHIFTS = torch.tensor([[0], [8], [16], [24]], dtype=torch.int32)  # in bits, of four bytes
MIN_ROW_ABS_MAX = 1e-30  # avoids a division by zero for a row of zeros


def quantize_int8(module: nn.Module, dtype: str = "int8") -> nn.Module:
    """Replace all linear layers and embeddings of a module by int8 ones, in place.

    Convolutions, norms, biases and learned positions stay as they are. The module can no longer be
    trained.

    Args:
        module: The model.
        dtype: One of QUANTIZED_DTYPES.

    Returns:
        The same module, in eval mode.

    Raises:
        SensoriumError: If the dtype is unknown or this PyTorch has no int8 matrix product.
    """
    if dtype not in QUANTIZED_DTYPES:
        raise SensoriumError(
            f"--quantize {dtype} is unknown. Choose {' or '.join(QUANTIZED_DTYPES)}, or leave it "
            "out."
        )
    if not torch.backends.mkldnn.is_available():
        raise SensoriumError(
            f"--quantize {dtype} needs a PyTorch with oneDNN. Install one, or leave it out."
        )
    decoder_layers = {
        layer
        for decoder in module.modules()
        if isinstance(decoder, Decoder)
        for layer in decoder.modules()
    }
    replacements: dict[nn.Module, nn.Module] = {}  # a shared layer stays shared
    named_modules = cast(
        "Iterable[tuple[str, nn.Module]]", module.named_modules(remove_duplicate=False)
    )
    for name, layer in list(named_modules):
        if name and isinstance(layer, nn.Linear | nn.Embedding):
            if layer not in replacements:
                replacements[layer] = _quantize_layer(layer, layer in decoder_layers)
            module.set_submodule(name, replacements[layer])
        elif type(layer) is nn.LayerNorm:
            _bypass_module_call(layer)
    return module.eval().requires_grad_(False)


def _quantize_layer(layer: nn.Linear | nn.Embedding, two_byte_activations: bool) -> nn.Module:
    """Return the int8 version of a layer."""
    if isinstance(layer, nn.Embedding):
        return Int8Embedding(layer)
    return Int8Linear(layer, two_byte_activations=two_byte_activations)


def _bypass_module_call(norm: nn.LayerNorm) -> None:
    """Bind `forward` to the operator: the attribute lookups of nn.LayerNorm cost as much as it."""
    norm.forward = partial(
        torch.layer_norm,
        normalized_shape=norm.normalized_shape,
        weight=norm.weight,
        bias=norm.bias,
        eps=norm.eps,
    )


class Int8Linear(nn.Module):
    """A linear layer with int8 weights, stored in oneDNN's packed layout; it has no `weight`.

    Args:
        layer: The layer to quantize.
        two_byte_activations: Quantize inputs to two bytes instead of one.
    """

    packed_weight: Tensor
    scale: Float[Tensor, "E"]
    zero_point: Int[Tensor, "E"]
    bias: Float[Tensor, "E"] | None

    def __init__(self, layer: nn.Linear, *, two_byte_activations: bool = False):
        super().__init__()
        self.two_byte_activations = two_byte_activations
        quantized, scale = quantize_rows(layer.weight.detach())
        self.register_buffer("packed_weight", torch.ops.onednn.qlinear_prepack(quantized, None))
        # Divided by 127, so that a quantized input times the row's maximum is the input.
        self.register_buffer("scale", scale[:, 0] / INT8_MAX)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int32))
        bias = cast("Tensor | None", layer.bias)  # torch's annotation leaves None out
        self.register_buffer("bias", None if bias is None else bias.detach().float())

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        """Return the product with the quantized weight, plus the bias, in the input's dtype.

        Raises:
            SensoriumError: If a gradient with respect to the input is required.
        """
        if input.requires_grad and torch.is_grad_enabled():
            raise SensoriumError(
                "A quantized model cannot be trained. Load it without --quantize to train it."
            )
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], len(self.scale))
        buffers = self._buffers  # nn.Module's attribute lookup costs as much as an operator
        is_one_row = input.dim() > 1 and input.numel() == input.shape[-1]
        if self.two_byte_activations and is_one_row and input.dtype is torch.float32:
            return _forward_one_row(input, buffers)
        x = input.reshape(-1, input.shape[-1])
        if x.dtype is not torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        row_abs_max = x.abs().amax(1, keepdim=True)  # 0 for a row of zeros: any scale will do
        num_rows = x.shape[0]
        bias = buffers["bias"]
        if self.two_byte_activations:
            products = _int8_matmul(split_bytes(x, row_abs_max), buffers)
            low = products[:num_rows]
            high = products[num_rows : 2 * num_rows]
            output = torch.add(high, low, alpha=1 / BYTE_BASE)
        else:
            quantized = torch.addcdiv(ROUNDING_OFFSET, x, row_abs_max, value=INT8_MAX)
            output = _int8_matmul(quantized.to(torch.uint8), buffers)
        if bias is None:
            output = output.mul_(row_abs_max)
        else:
            output = torch.addcmul(bias, output, row_abs_max)
        output = output.view(*input.shape[:-1], -1)
        return output if input.dtype is torch.float32 else output.to(input.dtype)

    def __getstate__(self) -> dict[str, Any]:
        """Return the state with plain int8 weights: oneDNN's layout neither pickles nor copies."""
        buffers = self._buffers | {"packed_weight": self.packed_weight.to_dense()}
        return {**vars(self), "_buffers": buffers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # pyright: ignore[reportUnknownMemberType]
        weight = self.packed_weight.t().contiguous()
        self._buffers["packed_weight"] = torch.ops.onednn.qlinear_prepack(weight, None)

    def forward_slice(
        self, x: Float[Tensor, "*rows D"], start: int, stop: int | None
    ) -> Float[Tensor, "*rows P"]:
        """Return outputs `start` to `stop` of forward."""
        return self(x)[..., start:stop]


class Int8Embedding(nn.Module):
    """An embedding table with int8 vectors.

    Args:
        embedding: The table to quantize.
    """

    int8_weight: Int8[Tensor, "V D"]
    scale: Float[Tensor, "V 1"]

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding_dim = embedding.embedding_dim
        self.num_embeddings = embedding.num_embeddings
        quantized, scale = quantize_rows(embedding.weight.detach())
        self.register_buffer("int8_weight", quantized)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """The dequantized table."""
        return self.int8_weight * self.scale

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Return the dequantized vectors of ids."""
        return self.int8_weight[ids] * self.scale[ids]


def _forward_one_row(
    x: Float[Tensor, "*one D"], buffers: Mapping[str, Tensor | None]
) -> Float[Tensor, "*one E"]:
    """Multiply a single row with as few operators as possible: each costs as much as the product.

    Four rows are multiplied, of which two are unused: oneDNN takes four faster than two.
    """
    minimum, maximum = x.aminmax()
    abs_max = max(-minimum.item(), maximum.item(), MIN_ROW_ABS_MAX)
    scaled = torch.add(FLOAT_TO_INT_OFFSET, x, alpha=INT8_MAX * BYTE_BASE / abs_max)
    byte_rows = scaled.view(torch.int32).bitwise_right_shift(BYTE_SHIFTS).byte()
    products = _int8_matmul(byte_rows, buffers, abs_max)
    low, high, _ = products.split_with_sizes([1, 1, 2], -2)
    output = high.add_(low, alpha=1 / BYTE_BASE)
    bias = buffers["bias"]
    return output if bias is None else output.add_(bias)


def _int8_matmul(
    quantized: UInt8[Tensor, "*rows D"], buffers: Mapping[str, Tensor | None], scale: float = 1.0
) -> Float[Tensor, "*rows E"]:
    """Multiply unsigned bytes around ZERO_POINT, each step `scale` wide, by packed weights."""
    zero_point = ZERO_POINT
    if not has_int8_dot_product():
        quantized = (quantized ^ ZERO_POINT).view(torch.int8)
        zero_point = 0
    return _qlinear_operator()(
        quantized,
        scale,
        zero_point,
        buffers["packed_weight"],
        buffers["scale"],
        buffers["zero_point"],
        None,
        1.0,
        0,
        torch.float32,
        "none",
        [],
        "",
    )


@cache
def _qlinear_operator() -> Callable[..., Tensor]:
    """Return oneDNN's quantized linear operator."""
    return torch.ops.onednn.qlinear_pointwise.default


def quantize_rows(x: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float[Tensor, "N 1"]]:
    """Quantize each row symmetrically to -127..127.

    Returns:
        The integers, and the width of a step in each row.
    """
    scale = x.float().abs().amax(1, keepdim=True).clamp_(min=MIN_ROW_ABS_MAX).div_(INT8_MAX)
    return (x / scale).round_().to(torch.int8), scale


def split_bytes(x: Float[Tensor, "N D"], row_abs_max: Float[Tensor, "N 1"]) -> UInt8[Tensor, "M D"]:
    """Quantize each row to two bytes, in steps of row_abs_max / (INT8_MAX * BYTE_BASE).

    Returns:
        The low bytes of all rows, then the high bytes, each around ZERO_POINT.
    """
    scaled = torch.addcdiv(FLOAT_TO_INT_OFFSET, x, row_abs_max, value=INT8_MAX * BYTE_BASE)
    integers = scaled.view(torch.int32)
    return integers.bitwise_right_shift(BYTE_SHIFTS[:2, None]).byte().flatten(0, 1)
