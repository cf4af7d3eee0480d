"""Fine-tuning modes of encoders: LoRA, frozen, or full with layer-wise learning rates.

B batch   D width in   E width out   R rank
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sensorium.models.towers import Encoder, InputEmbedding
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.transformer import Transformer

LORA_RANK = 8
LORA_SCALE = 2.0  # alpha / R
ORIGINAL_WEIGHT = ".parametrizations.weight.original"  # of a layer with LoRA, in its module
TRAIN_MODES = ("none", "lora", "all")


class LoRA(nn.Module):
    """A low-rank update of a weight, W + (alpha / R) B A (Hu et al. 2021), as a parametrization.

    B starts at zero, so that the layer is unchanged at first. alpha / R is 2 for every rank.

    Args:
        weight: The frozen weight.
        rank: R.
    """

    def __init__(self, weight: Float[Tensor, "E D"], rank: int):
        super().__init__()
        self.lora_A = normal_parameter(rank, weight.shape[1], std=weight.shape[1] ** -0.5)
        self.lora_B = nn.Parameter(weight.new_zeros(weight.shape[0], rank))

    def forward(self, weight: Float[Tensor, "E D"]) -> Float[Tensor, "E D"]:
        """Return the weight with the update added."""
        return weight + LORA_SCALE * (self.lora_B @ self.lora_A)


def add_lora(module: nn.Module, rank: int = LORA_RANK) -> nn.Module:
    """Freeze a module in place and add LoRA to the linear layers of its transformer blocks."""
    module.requires_grad_(False)
    for layer in _iter_linear_layers(module):
        _parametrize(layer, LoRA(layer.weight, rank))
    return module


def _parametrize(layer: nn.Module, lora: "LoRA") -> None:
    """Add the update to the weight of a layer, whose class is then one that still pickles."""
    parametrize.register_parametrization(layer, "weight", lora)
    setattr(type(layer), "__reduce_ex__", _reduce_parametrized)  # noqa: B010 - a class of its own


def _reduce_parametrized(layer: nn.Module, protocol: object) -> tuple[Any, ...]:  # noqa: ARG001
    """Return how to rebuild a layer with LoRA: torch refuses to pickle a parametrized one."""
    updates = layer.get_submodule("parametrizations.weight")
    state = dict(vars(layer))
    modules = {name: child for name, child in layer.named_children() if name != "parametrizations"}
    parameters = {**state["_parameters"], "weight": updates.get_parameter("original")}
    state |= {"_modules": modules, "_parameters": parameters}
    return _restore_parametrized, (type(layer).__bases__[0], state, updates.get_submodule("0"))


def _restore_parametrized(cls: type[nn.Module], state: dict[str, Any], lora: "LoRA") -> nn.Module:
    layer = cls.__new__(cls)
    layer.__setstate__(state)  # pyright: ignore[reportUnknownMemberType]
    _parametrize(layer, lora)
    layer.train(state["training"])
    return layer


def merge_lora(module: nn.Module) -> nn.Module:
    """Merge all LoRA updates into the weights, in place; size and speed are as before LoRA."""
    for layer in list(module.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    return module


def merge_lora_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a module, and the merged weights of its layers with LoRA as well."""
    merged = dict(tensors)
    for name, weight in tensors.items():
        layer, original, rest = name.partition(ORIGINAL_WEIGHT)
        if original and not rest:
            factors = f"{layer}.parametrizations.weight.0"
            update = tensors[f"{factors}.lora_B"] @ tensors[f"{factors}.lora_A"]
            merged[f"{layer}.weight"] = weight + LORA_SCALE * update
    return merged


class FrozenEncoder(Encoder):
    """An encoder without trainable parameters that stays in eval mode.

    Args:
        embed: See Encoder.
        trunk: See Encoder.
        pool: See Encoder.
    """

    def __init__(
        self, embed: InputEmbedding, trunk: nn.Module | None = None, pool: nn.Module | None = None
    ):
        super().__init__(embed, trunk, pool)
        self.requires_grad_(False)
        self.train(False)

    def pooled(self, raw: Tensor) -> Float[Tensor, "B D"]:
        """Return the pooled embeddings; embeddings computed before are returned as they are."""
        is_embedding = raw.ndim == 2 and raw.is_floating_point()
        return raw if is_embedding else super().pooled(raw)

    def train(self, mode: bool = True) -> "FrozenEncoder":  # noqa: ARG002 - torch's signature
        """Keep the encoder in eval mode regardless of `mode`."""
        super().train(False)
        return self


def set_trainable(encoder: Encoder, train_mode: str) -> Encoder:
    """Prepare a pretrained encoder for training.

    Args:
        encoder: The encoder; changed in place.
        train_mode: One of TRAIN_MODES: "all" trains every weight, "lora" low-rank updates only,
            "none" nothing.

    Returns:
        The encoder, or a FrozenEncoder with the same modules.
    """
    if train_mode == "lora":
        add_lora(encoder)
    if train_mode == "none":
        return FrozenEncoder(encoder.embed, encoder.trunk, encoder.pool)
    return encoder


def layer_depths(module: nn.Module) -> dict[Tensor, int]:
    """Return how many blocks of its encoder lie above each parameter.

    It is 0 for the last block, and the number of blocks for the input embedding and pooling.
    Parameters after or outside the blocks, such as the final norm, are left out.
    """
    depths: dict[Tensor, int] = {}
    for encoder in module.modules():
        trunk = getattr(encoder, "trunk", None)
        if isinstance(trunk, Transformer):
            num_blocks = len(trunk.blocks)
            for name, child in encoder.named_children():
                if name != "trunk":
                    depths |= dict.fromkeys(child.parameters(), num_blocks)
            for i, block in enumerate(trunk.blocks):
                depths |= dict.fromkeys(block.parameters(), num_blocks - 1 - i)
    return depths


def _iter_linear_layers(module: nn.Module) -> Iterator[Linear]:
    """Yield the linear layers of every block of every transformer in the module."""
    for trunk in module.modules():
        if isinstance(trunk, Transformer):
            for layer in trunk.blocks.modules():
                if isinstance(layer, Linear):
                    yield layer
