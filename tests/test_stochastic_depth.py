"""Stochastic depth: training drops residual branches of whole samples; the mean stays."""

from pathlib import Path

import pytest
import torch
from fixtures.tiny_recipe import guess, rows
from torch import Tensor

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.nn.conv1d import Convolutions
from sensorium.nn.resnet import ResNet
from sensorium.nn.stochastic_depth import StochasticDepth, set_stochastic_depth
from sensorium.nn.tokens import Tokens, sequence_positions
from sensorium.nn.transformer import (
    FeedForward,
    GatedCrossAttention,
    Transformer,
    build_transformer,
)
from sensorium.pretrained.resnet import build_resnet
from sensorium.recipes import fusion
from sensorium.training.loop import train


def with_stochastic_depth(model: torch.nn.Module, drop_prob: float) -> torch.nn.Module:
    set_stochastic_depth(model, drop_prob)
    return model.train()


def tokens(valid: Tensor | None = None, n: int = 400) -> Tokens:
    x = torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(0))
    return Tokens(x, sequence_positions(x), valid=valid)


def test_drop_probability_rises_from_block_to_block() -> None:
    trunk = build_transformer(8, 4, 1)
    set_stochastic_depth(trunk, 0.4)
    assert [block.drop_path.drop_prob for block in trunk.block_list()] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4]
    )
    set_stochastic_depth(trunk, 0.0)
    assert not any(block.drop_path.drop_prob for block in trunk.block_list())
    resnet = ResNet(8, 2)
    set_stochastic_depth(resnet, 0.6)
    drop_probs = [part.drop_prob for part in resnet.modules() if isinstance(part, StochasticDepth)]
    assert drop_probs == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_frozen_blocks_are_never_dropped() -> None:
    for frozen in (
        ResNet(8).requires_grad_(False),
        build_transformer(8, 2, 1).requires_grad_(False),
    ):
        with_stochastic_depth(frozen, 0.9)
        assert not any(
            part.drop_prob for part in frozen.modules() if isinstance(part, StochasticDepth)
        )


def test_whole_samples_are_dropped_only_while_training() -> None:
    torch.manual_seed(0)
    block = build_transformer(8, 1, 1).block_list()[0]
    assert isinstance(block.mlp, FeedForward)
    trunk, t = Transformer([block]), tokens()  # no final norm: a dropped sample is unchanged
    full = trunk.eval()(t).x - t.x
    with_stochastic_depth(trunk, 0.5)
    block.mlp_norm.register_forward_hook(lambda *_: torch.zeros_like(t.x))  # attention only
    torch.nn.init.zeros_(block.mlp.up.bias)
    added = trunk(t).x - t.x
    dropped = added.abs().amax((1, 2)) < 1e-6
    assert 0.4 < dropped.float().mean() < 0.6
    block.eval()
    # Branches that are kept are scaled by 1 / 0.5.
    torch.testing.assert_close(added[~dropped], 2 * (trunk(t).x - t.x)[~dropped])
    assert (full.abs().amax((1, 2)) > 1e-3).all()


def test_packed_tokens_of_a_sample_are_dropped_together() -> None:
    valid = torch.arange(5) < torch.randint(
        1, 5, (400, 1), generator=torch.Generator().manual_seed(1)
    )
    torch.manual_seed(0)
    trunk = with_stochastic_depth(Transformer(build_transformer(8, 1, 1).block_list()), 0.5)
    t = tokens(valid)  # enough padding for packing
    changed = (trunk(t).x - t.x).abs().amax(2) > 1e-6
    sample_changed = changed[:, 0]
    assert 0.6 < sample_changed.float().mean() < 0.9  # at least one of two branches is kept
    assert (changed == (sample_changed[:, None] & valid))[valid].all()


def test_frozen_block_with_trained_cross_attention_is_not_dropped() -> None:
    trunk = build_transformer(
        8, 2, 1, build_cross_attention=lambda i: GatedCrossAttention(8, 1)
    ).requires_grad_(False)
    for block in trunk.block_list():
        assert block.gated_cross_attention is not None
        block.gated_cross_attention.requires_grad_(True)
    assert set_stochastic_depth(trunk, 0.5) == 0
    assert not any(block.drop_path.drop_prob for block in trunk.block_list())


def test_expected_value_is_unchanged() -> None:
    part = StochasticDepth().train()
    part.drop_prob, branch = 0.3, torch.ones(20_000, 2)
    assert part(branch).mean().item() == pytest.approx(1, abs=0.02)
    assert part.eval()(branch) is branch


@pytest.mark.parametrize(
    "model",
    [
        ResNet(8),
        Convolutions(8, 2),
        build_transformer(8, 2, 1),
        build_resnet({"stem": 4, "bottleneck": False, "stages": [(2, 4, 4)]})[0],
    ],
    ids=["resnet", "convolutions", "transformer", "pretrained"],
)
def test_models_with_stochastic_depth(model: torch.nn.Module) -> None:
    assert set_stochastic_depth(model, 0.5) > 0


def test_stochastic_depth_as_training_option(tmp_path: Path) -> None:
    for invalid in (1.0, -0.1, 2):
        with pytest.raises(SensoriumError, match="--stochastic-depth"):
            train(guess, rows(), out=tmp_path / "run", quiet=True, stochastic_depth=invalid)
    with pytest.raises(SensoriumError, match="no trainable residual block"):
        train(guess, rows(), out=tmp_path / "none", quiet=True, stochastic_depth=0.2)
    table = tmp_path / "table.csv"
    table.write_text("title,target\n" + "".join(f"number {i},{'ab'[i % 2]}\n" for i in range(40)))
    runs = [
        train(
            fusion,
            Dataset.open(table),
            out=tmp_path / f"run{i}",
            quiet=True,
            epochs=1,
            seed=0,
            layers=2,
            encoders="title=transformer",
            stochastic_depth=drop_prob,
        )
        for i, drop_prob in enumerate((0.0, 0.5, 0.5))
    ]
    probabilities = [run.predict(title=["number 1"])["target"].probability for run in runs]
    assert (probabilities[1] == probabilities[2]).all()
    assert (probabilities[0] != probabilities[1]).any()
