"""Fine-tuning: how much of a trained model learns again, and how fast.

D width in   E width out   R rank
"""

from collections.abc import Iterator

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sensorium.models.towers import Encoder, InputEmbedding
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.transformer import Transformer

LORA_RANK = 8


class LoRA(nn.Module):
    """A weight and a correction of low rank, W + (alpha / R) B A (LoRA, Hu et al. 2021).

    B starts at zero, so at first nothing has changed. alpha / R is 2, whatever the rank.
    """

    def __init__(self, weight: Float[Tensor, "E D"], rank: int):
        super().__init__()
        self.lora_A = normal_parameter(rank, weight.shape[1], std=weight.shape[1] ** -0.5)
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Float[Tensor, "E D"]) -> Float[Tensor, "E D"]:
        return weight + 2.0 * (self.lora_B @ self.lora_A)


def add_lora(module: nn.Module, rank: int = LORA_RANK) -> nn.Module:
    """Freeze a module but for corrections of its blocks' linear layers; `folded` makes them part of the weights."""
    module.requires_grad_(False)
    for layer in _iter_linear_layers(module):
        parametrize.register_parametrization(layer, "weight", LoRA(layer.weight, rank))
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """The same module with its corrections added to the weights: as quick, and as large, as one never corrected."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def set_trainable(encoder: Encoder, train_mode: str) -> Encoder:
    """A trained encoder made ready to learn: all of it, "lora" (corrections of low rank alone), or "none"."""
    if train_mode == "lora":
        add_lora(encoder)
    return (
        FrozenEncoder(encoder.embed, encoder.trunk, encoder.pool)
        if train_mode == "none"
        else encoder
    )


TRAIN_MODES = ("none", "lora", "all")


class FrozenEncoder(Encoder):
    """An encoder that learns nothing, and whose statistics and dropout stand still while the rest is trained."""

    def __init__(
        self, embed: InputEmbedding, trunk: nn.Module | None = None, pool: nn.Module | None = None
    ):
        super().__init__(embed, trunk, pool)
        self.requires_grad_(False)
        self.train(False)

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """Of a value its vector; of a vector, worked out before, itself."""
        return raw if raw.ndim == 2 and raw.is_floating_point() else super().pooled(raw)

    def train(self, mode: bool = True) -> "FrozenEncoder":
        """Never."""
        super().train(False)
        return self


def _iter_linear_layers(module: nn.Module) -> Iterator[Linear]:
    """The linear layers of every block of every transformer within."""
    for trunk in module.modules():
        if isinstance(trunk, Transformer):
            yield from (layer for layer in trunk.blocks.modules() if isinstance(layer, Linear))


def layer_depths(module: nn.Module) -> dict[Tensor, int]:
    """How many blocks of its encoder stand above each parameter: 0 for the last block and whatever is after it.

    What an encoder's values enter by stands below all of its blocks.
    """
    found: dict[Tensor, int] = {}
    for encoder in module.modules():
        trunk = getattr(encoder, "trunk", None)
        if isinstance(trunk, Transformer):
            below = [
                p
                for name, part in encoder.named_children()
                if name != "trunk"
                for p in part.parameters()
            ]
            found |= dict.fromkeys(below, len(trunk.blocks))
            for i, block in enumerate(trunk.blocks):
                found |= dict.fromkeys(block.parameters(), len(trunk.blocks) - 1 - i)
    return found
