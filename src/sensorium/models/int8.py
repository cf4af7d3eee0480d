"""Weights as whole numbers of eight bits, for models that only answer: a quarter of the memory, and several times as
fast where the processor multiplies bytes (VNNI, AMX).

    D width in   E width out   N rows   V vocabulary

A weight is the nearest of 255 steps, equal to both sides of zero, as wide as its row of the matrix needs (for
embeddings: its vector). What is multiplied with it is put in steps on the spot, each row by itself, so a row says the
same alone and in any company (dynamic quantization). A decoder is more easily led astray than a tower: there a number
is two bytes, a high one and a low one, each multiplied as a row of its own, which costs little where rows are few.

What is multiplied is given to oneDNN as unsigned bytes, around MIDDLE: signed ones it multiplies one by one where there
is no AMX, a thousand times slower. Without VNNI sums of unsigned ones may saturate: there they stay signed.
"""

from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from jaxtyping import Float, Int, Int8, UInt8
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.models.decoder import Decoder
from sensorium.nn.cpu_dispatch import has_int8_dot_product

QUANTIZED_DTYPES = ("int8",)
INT8_MAX = 127
BYTE_BASE = 256  # steps of the low byte to one of the high byte
ZERO_POINT = 128  # that stands for zero, in either byte
ROUNDING_OFFSET = torch.tensor(ZERO_POINT + 0.5)  # a half, so that cutting off rounds
FLOAT_TO_INT_OFFSET = torch.tensor(
    2.0**23 + ZERO_POINT * BYTE_BASE + ZERO_POINT
)  # added to a small number, its last bits count whole ones
BYTE_SHIFTS = torch.tensor(
    [[0], [8], [16], [24]], dtype=torch.int32
)  # how many bits of four bytes lie below each
MIN_ROW_ABS_MAX = 1e-30  # no row is so small that its steps have no width


def quantize_int8(module: nn.Module, dtype: str = "int8") -> nn.Module:
    """The same module, in place, the weights of all linear layers and embeddings in it as `how`; it can only answer.

    Convolutions, norms, biases and learned places stay as they are. Runs on the CPU. Raises SensoriumError for an
    unknown `how`, and where PyTorch comes without the products of bytes.
    """
    if dtype not in QUANTIZED_DTYPES:
        raise SensoriumError(
            f"quantize={dtype!r}: choose {', '.join(map(repr, QUANTIZED_DTYPES))}, or leave it out"
        )
    if not torch.backends.mkldnn.is_available():
        raise SensoriumError(
            f"quantize={dtype!r} needs a PyTorch with oneDNN, which this one is not"
        )
    fine = {
        part for whole in module.modules() if isinstance(whole, Decoder) for part in whole.modules()
    }
    made: dict[nn.Module, nn.Module] = {}  # a layer in two places stays one
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if name and isinstance(layer, nn.Linear | nn.Embedding):
            if layer not in made:
                made[layer] = (
                    Int8Linear(layer, two_byte_activations=layer in fine)
                    if isinstance(layer, nn.Linear)
                    else Int8Embedding(layer)
                )
            module.set_submodule(name, made[layer])
        elif (
            type(layer) is nn.LayerNorm
        ):  # called as it is, as often as a weight is: without detours
            layer.forward = partial(
                torch.layer_norm,
                normalized_shape=layer.normalized_shape,
                weight=layer.weight,
                bias=layer.bias,
                eps=layer.eps,
            )
    return module.eval().requires_grad_(False)


class Int8Linear(nn.Module):
    """A linear layer whose weights are bytes. It has no `weight`: they lie packed, as the processor reads them.

    `fine`: what comes in is two bytes a number instead of one.
    """

    packed_weight: Tensor
    scale: Float[Tensor, "E"]
    zero_point: Int[Tensor, "E"]
    bias: Float[Tensor, "E"] | None

    def __init__(self, layer: nn.Linear, *, two_byte_activations: bool = False):
        super().__init__()
        self.two_byte_activations = two_byte_activations
        rounded, scale = quantize_rows(layer.weight.detach())
        self.register_buffer("packed_weight", torch.ops.onednn.qlinear_prepack(rounded, None))
        self.register_buffer(
            "scale", scale[:, 0] / INT8_MAX
        )  # for a number of the largest magnitude
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        if input.requires_grad and torch.is_grad_enabled():
            raise SensoriumError(
                "quantized weights cannot learn, nor anything below them: leave quantize out to train"
            )
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], len(self.scale))
        kept = self._buffers  # looked up here: a module's own way takes as long as an operator
        if (
            self.two_byte_activations
            and input.dim() > 1
            and input.numel() == input.shape[-1]
            and input.dtype is torch.float32
        ):
            return _forward_one_row(input, kept)
        x = input.reshape(-1, input.shape[-1])
        if x.dtype is not torch.float32 or not x.is_contiguous():
            x = x.float().contiguous()
        most, rows, bias = (
            x.abs().amax(1, keepdim=True),
            x.shape[0],
            kept["bias"],
        )  # 0: whatever the steps are
        if self.two_byte_activations:
            said = _int8_matmul(split_bytes(x, most), kept)
            said = torch.add(said[rows : 2 * rows], said[:rows], alpha=1 / BYTE_BASE)
        else:
            said = _int8_matmul(
                torch.addcdiv(ROUNDING_OFFSET, x, most, value=INT8_MAX).to(torch.uint8), kept
            )
        said = said.mul_(most) if bias is None else torch.addcmul(bias, said, most)
        said = said.view(*input.shape[:-1], -1)
        return said if input.dtype is torch.float32 else said.to(input.dtype)

    def forward_slice(
        self, x: Float[Tensor, "*rows D"], start: int, stop: int | None
    ) -> Float[Tensor, "*rows P"]:
        """Outputs `start` to `stop` of forward."""
        return self(x)[..., start:stop]


class Int8Embedding(nn.Module):
    """An embedding whose vectors are bytes."""

    int8_weight: Int8[Tensor, "V D"]
    scale: Float[Tensor, "V 1"]

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding_dim, self.num_embeddings = embedding.embedding_dim, embedding.num_embeddings
        rounded, scale = quantize_rows(embedding.weight.detach())
        self.register_buffer("int8_weight", rounded)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """All vectors, written out."""
        return self.int8_weight * self.scale

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        return self.int8_weight[ids] * self.scale[ids]


def _forward_one_row(
    x: Float[Tensor, "*one D"], buffers: Mapping[str, Tensor | None]
) -> Float[Tensor, "*one E"]:
    """A single row, by as few operators as there can be: each has to be fetched from memory again after a product.

    Two rows of nothing stand below the low and the high bytes: oneDNN multiplies four rows faster than two.
    """
    least, largest = x.aminmax()
    most = max(-least.item(), largest.item(), MIN_ROW_ABS_MAX)
    steps = (
        torch.add(FLOAT_TO_INT_OFFSET, x, alpha=INT8_MAX * BYTE_BASE / most)
        .view(torch.int32)
        .bitwise_right_shift(BYTE_SHIFTS)
        .byte()
    )
    low, high, _ = _int8_matmul(steps, buffers, most).split_with_sizes([1, 1, 2], -2)
    said, bias = high.add_(low, alpha=1 / BYTE_BASE), buffers["bias"]
    return said if bias is None else said.add_(bias)


def _int8_matmul(
    quantized: UInt8[Tensor, "*rows D"], buffers: Mapping[str, Tensor | None], scale: float = 1.0
) -> Float[Tensor, "*rows E"]:
    """Steps around MIDDLE, each `scale` wide, times the weights that an Int8Linear keeps."""
    middle = ZERO_POINT
    if not has_int8_dot_product():
        quantized, middle = (quantized ^ ZERO_POINT).view(torch.int8), 0
    return _qlinear_operator()(
        quantized,
        scale,
        middle,
        buffers["packed"],
        buffers["scale"],
        buffers["zero"],
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
    return torch.ops.onednn.qlinear_pointwise.default


def quantize_rows(x: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float[Tensor, "N 1"]]:
    """Each row as a number of steps, -127 to 127, and the width of a step."""
    scale = x.float().abs().amax(1, keepdim=True).clamp_(min=MIN_ROW_ABS_MAX).div_(INT8_MAX)
    return (x / scale).round_().to(torch.int8), scale


def split_bytes(x: Float[Tensor, "N D"], row_abs_max: Float[Tensor, "N 1"]) -> UInt8[Tensor, "M D"]:
    """The low bytes of all rows, then the high ones, each around MIDDLE, in steps of `most` / (STEPS * BYTE)."""
    steps = torch.addcdiv(FLOAT_TO_INT_OFFSET, x, row_abs_max, value=INT8_MAX * BYTE_BASE).view(
        torch.int32
    )
    return steps.bitwise_right_shift(BYTE_SHIFTS[:2, None]).byte().flatten(0, 1)
