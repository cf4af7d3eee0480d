"""Tests of LoRA, frozen encoders and layer-wise learning rates."""

import pytest
import torch
from torch import Tensor, nn

from sensorium.modalities.image import PatchEmbedding
from sensorium.models.lora import (
    FrozenEncoder,
    LoRA,
    add_lora,
    layer_depths,
    merge_lora,
    set_trainable,
)
from sensorium.models.towers import Encoder
from sensorium.nn.transformer import build_transformer
from sensorium.training.optimizers import OptimizerConfig, build_optimizers, layer_wise_lr

DIM = 32


def build_encoder(depth: int = 3, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        PatchEmbedding(DIM, 16, 4),
        build_transformer(DIM, depth, 2, input_norm=True, dropout=dropout),
    )


def random_images() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def trainable_names(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_lora_is_identity_at_first_and_only_lora_is_trainable() -> None:
    before = build_encoder().pooled(random_images())
    module = build_encoder()
    add_lora(module, rank=2)
    torch.testing.assert_close(module.pooled(random_images()), before, atol=0, rtol=0)
    module.pooled(random_images()).square().sum().backward()
    names = trainable_names(module)
    assert names
    assert all(".parametrizations.weight.0." in name for name in names)
    for name, p in module.named_parameters():
        assert (p.grad is not None) == (name in names), name


def test_lora_update_has_its_rank_and_merges_into_the_weight() -> None:
    module = build_encoder()
    add_lora(module, rank=2)
    for part in module.modules():
        if isinstance(part, LoRA):
            nn.init.normal_(part.lora_B, std=0.1)
    adapted = module.pooled(random_images())
    plain = build_encoder()
    assert (adapted - plain.pooled(random_images())).abs().amax() > 1e-3
    assert merge_lora(module) is module
    assert set(module.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(module.pooled(random_images()), adapted)
    name = "trunk.blocks.0.mlp.up.weight"
    update = module.get_parameter(name) - plain.get_parameter(name)
    assert torch.linalg.matrix_rank(update) == 2


def test_frozen_encoder_stays_in_eval_mode() -> None:
    frozen = set_trainable(build_encoder(dropout=0.5), "none")
    model = nn.Sequential(frozen).train()
    assert isinstance(frozen, FrozenEncoder)
    assert not trainable_names(model)
    assert model.training
    assert frozen.pooled(random_images()).equal(frozen.pooled(random_images()))
    assert not any(part.training for part in frozen.modules())
    assert set(frozen.state_dict()) == set(build_encoder().state_dict())


def test_lower_blocks_have_smaller_learning_rates() -> None:
    module = build_encoder(3)
    depth = layer_depths(module)
    up_weights = [module.get_parameter(f"trunk.blocks.{i}.mlp.up.weight") for i in range(3)]
    final_norm = module.get_parameter("trunk.final_norm.weight")
    assert depth[module.get_parameter("embed.projection.weight")] == 3
    assert [depth[weight] for weight in up_weights] == [2, 1, 0]
    assert final_norm not in depth
    optimizers = build_optimizers("adamw", module, OptimizerConfig(1.0, 0.1, layer_decay=0.5))
    rates = {
        p: group["lr"]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {rates[weight] for weight in up_weights} == {0.25, 0.5, 1.0}
    assert rates[module.get_parameter("embed.position_embedding")] == 0.125
    assert rates[final_norm] == 1.0
    assert set(rates) == set(module.parameters())


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_layer_wise_lr_keeps_all_parameters(decay: float) -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    groups = layer_wise_lr([{"params": [a, b], "lr": 2.0, "weight_decay": 0.1}], {a: 1}, decay)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(2.0, 0.1), (2.0 * decay, 0.1)]
    assert [g["params"][0] is p for g, p in zip(groups, (b, a), strict=True)] == [True, True]
