"""Weights as whole numbers of eight bits, for models that only answer: a quarter of the memory, and several times as
fast where the processor multiplies bytes (VNNI, AMX).

    D width in   E width out   N rows   V vocabulary

A weight is the nearest of 255 steps, equal to both sides of zero, as wide as its row of the matrix needs (for
embeddings: its vector). What is multiplied with it is put in steps on the spot, each row by itself, so a row says the
same alone and in any company (dynamic quantization). A decoder is more easily led astray than a tower: there what the
steps leave over is rounded and multiplied too, as more rows of the same product, which cost little where rows are few.

What is multiplied is given to oneDNN as unsigned bytes, around MIDDLE: signed ones it multiplies one by one where there
is no AMX, a thousand times slower. Without VNNI sums of unsigned ones may saturate: there they stay signed.
"""
import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.kernels import multiplies_bytes
from sensorium.models import Decoder

KINDS = ("int8",)
STEPS = 127
FINER = 2 * STEPS                       # steps of what is left over to a step
MIDDLE = 128                            # that stands for zero
TINY = 1e-30                            # no row is so small that its steps have no width


def quantized(module: nn.Module, how: str = "int8") -> nn.Module:
    """The same module, in place, the weights of all linear layers and embeddings in it as `how`; it can only answer.

    Convolutions, norms, biases and learned places stay as they are. Runs on the CPU. Raises SensoriumError for an
    unknown `how`, and where PyTorch comes without the products of bytes.
    """
    if how not in KINDS:
        raise SensoriumError(f"quantize={how!r}: choose {', '.join(map(repr, KINDS))}, or leave it out")
    if not torch.backends.mkldnn.is_available():
        raise SensoriumError(f"quantize={how!r} needs a PyTorch with oneDNN, which this one is not")
    fine = {part for whole in module.modules() if isinstance(whole, Decoder) for part in whole.modules()}
    made: dict[nn.Module, nn.Module] = {}                               # a layer in two places stays one
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if name and isinstance(layer, nn.Linear | nn.Embedding):
            if layer not in made:
                made[layer] = (Int8Linear(layer, fine=layer in fine) if isinstance(layer, nn.Linear)
                               else Int8Embedding(layer))
            module.set_submodule(name, made[layer])
    return module.eval().requires_grad_(False)


class Int8Linear(nn.Module):
    """A linear layer whose weights are bytes. It has no `weight`: they lie packed, as the processor reads them.

    `fine`: what comes in is two bytes a number instead of one.
    """

    packed: Tensor
    scale: Float[Tensor, "E"]
    zero: Int[Tensor, "E"]
    bias: Float[Tensor, "E"] | None

    def __init__(self, layer: nn.Linear, *, fine: bool = False):
        super().__init__()
        self.fine = fine
        rounded, scale = in_steps(layer.weight.detach())
        self.register_buffer("packed", torch.ops.onednn.qlinear_prepack(rounded, None))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("zero", torch.zeros(len(scale), dtype=torch.int32))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())

    def forward(self, input: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        if input.requires_grad and torch.is_grad_enabled():
            raise SensoriumError("quantized weights cannot learn, nor anything below them: leave quantize out to train")
        if not input.numel():
            return input.new_zeros(*input.shape[:-1], len(self.scale))
        x = input.reshape(-1, input.shape[-1]).float()
        scale = width(x)
        steps = x / scale
        if self.fine:
            rounded = steps.round()
            both = torch.cat([rounded, steps.sub_(rounded).mul_(FINER).round_()])
            said, more = self._product(both).chunk(2)
            said = torch.add(said, more, alpha=1 / FINER)
        else:
            said = self._product(steps.round_())
        said = said.mul_(scale) if self.bias is None else torch.addcmul(self.bias, said, scale)
        return said.to(input.dtype).view(*input.shape[:-1], -1)

    def part(self, x: Float[Tensor, "*rows D"], start: int, stop: int | None) -> Float[Tensor, "*rows P"]:
        """Outputs `start` to `stop` of forward."""
        return self(x)[..., start:stop]

    def _product(self, rounded: Float[Tensor, "N D"]) -> Float[Tensor, "N E"]:
        middle = MIDDLE if multiplies_bytes() else 0
        steps = (rounded + middle).to(torch.uint8) if middle else rounded.to(torch.int8)
        return torch.ops.onednn.qlinear_pointwise(steps, 1.0, middle, self.packed, self.scale, self.zero, None, 1.0, 0,
                                                  torch.float32, "none", [], "")


class Int8Embedding(nn.Module):
    """An embedding whose vectors are bytes."""

    rounded: Int8[Tensor, "V D"]
    scale: Float[Tensor, "V 1"]

    def __init__(self, embedding: nn.Embedding):
        super().__init__()
        self.embedding_dim, self.num_embeddings = embedding.embedding_dim, embedding.num_embeddings
        rounded, scale = in_steps(embedding.weight.detach())
        self.register_buffer("rounded", rounded)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Float[Tensor, "V D"]:
        """All vectors, written out."""
        return self.rounded * self.scale

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        return self.rounded[ids] * self.scale[ids]


def in_steps(x: Float[Tensor, "N D"]) -> tuple[Int8[Tensor, "N D"], Float[Tensor, "N 1"]]:
    """Each row as a number of steps, -127 to 127, and the width of a step."""
    scale = width(x)
    return (x / scale).round_().to(torch.int8), scale


def width(x: Float[Tensor, "N D"]) -> Float[Tensor, "N 1"]:
    """Of a step of each row."""
    return x.float().abs().amax(1, keepdim=True).clamp_(min=TINY).div_(STEPS)
