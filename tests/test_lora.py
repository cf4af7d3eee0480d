"""Fine-tuning: what is attached changes nothing at first, what is frozen stays, what is folded says the same."""

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


def encoder(depth: int = 3, dropout: float = 0.0) -> Encoder:
    torch.manual_seed(0)
    return Encoder(
        PatchEmbedding(DIM, 16, 4),
        build_transformer(DIM, depth, 2, input_norm=True, dropout=dropout),
    )


def pictures() -> Tensor:
    return torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def trained(module: nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_a_correction_changes_nothing_at_first_and_alone_learns() -> None:
    before = encoder().pooled(pictures())
    module = add_lora(encoder(), rank=2)
    torch.testing.assert_close(module.whole(pictures()), before, atol=0, rtol=0)
    module.whole(pictures()).square().sum().backward()
    names = trained(module)
    assert names
    assert all(".parametrizations.weight.0." in name for name in names)
    for name, p in module.named_parameters():
        assert (p.grad is not None) == (name in names), name


def test_a_correction_has_its_rank_and_folds_into_the_weight() -> None:
    module = add_lora(encoder(), rank=2)
    for part in module.modules():
        if isinstance(part, LoRA):
            nn.init.normal_(part.lora_B, std=0.1)
    corrected = module.whole(pictures())
    plain = encoder()
    assert (corrected - plain.pooled(pictures())).abs().amax() > 1e-3
    assert merge_lora(module) is module
    assert set(module.state_dict()) == set(plain.state_dict())
    torch.testing.assert_close(module.whole(pictures()), corrected)
    change = module.trunk.blocks[0].mlp.up.weight - plain.trunk.blocks[0].mlp.up.weight
    assert torch.linalg.matrix_rank(change) == 2


def test_what_is_frozen_stands_still_while_the_rest_is_trained() -> None:
    still = set_trainable(encoder(dropout=0.5), "none")
    whole = nn.Sequential(still).train()
    assert isinstance(still, FrozenEncoder)
    assert not trained(whole)
    assert whole.training
    assert still.pooled(pictures()).equal(still.pooled(pictures()))
    assert not still.trunk.training
    assert set(still.state_dict()) == set(encoder().state_dict())


def test_lower_blocks_learn_more_slowly() -> None:
    module = encoder(3)
    depth = layer_depths(module)
    assert depth[module.embed.linear.weight] == 3
    assert [depth[block.mlp.up.weight] for block in module.trunk.blocks] == [2, 1, 0]
    assert module.trunk.last.weight not in depth
    several = build_optimizers("adamw", module, OptimizerConfig(1.0, 0.1, layer_decay=0.5))
    rates = {
        p: group["lr"]
        for optimizer in several
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert {rates[block.mlp.up.weight] for block in module.trunk.blocks} == {0.25, 0.5, 1.0}
    assert rates[module.embed.places] == 0.125
    assert rates[module.trunk.last.weight] == 1.0
    assert set(rates) == set(module.parameters())


@pytest.mark.parametrize("decay", [0.5, 1.0])
def test_groups_keep_their_parameters(decay: float) -> None:
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(3))
    groups = layer_wise_lr([{"params": [a, b], "lr": 2.0, "weight_decay": 0.1}], {a: 1}, decay)
    assert [(g["lr"], g["weight_decay"]) for g in groups] == [(2.0, 0.1), (2.0 * decay, 0.1)]
    assert [g["params"][0] is p for g, p in zip(groups, (b, a), strict=True)] == [True, True]
