"""Stochastic depth: a block's addition is left out for whole samples while training, and the mean stays."""

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
from sensorium.nn.transformer import GatedCrossAttention, Transformer, build_transformer
from sensorium.pretrained.resnet import build_resnet
from sensorium.recipes import fusion
from sensorium.training.loop import train


def trained(model: torch.nn.Module, chance: float) -> torch.nn.Module:
    set_stochastic_depth(model, chance)
    return model.train()


def words(valid: Tensor | None = None, n: int = 400) -> Tokens:
    x = torch.randn(n, 5, 8, generator=torch.Generator().manual_seed(0))
    return Tokens(x, sequence_positions(x), valid=valid)


def test_the_chance_rises_from_block_to_block() -> None:
    trunk = build_transformer(8, 4, 1)
    set_stochastic_depth(trunk, 0.4)
    assert [block.drop_path.drop_prob for block in trunk._blocks()] == pytest.approx(
        [0.1, 0.2, 0.3, 0.4]
    )
    set_stochastic_depth(trunk, 0.0)
    assert not any(block.drop_path.drop_prob for block in trunk._blocks())
    eye = ResNet(8, 2)
    set_stochastic_depth(eye, 0.6)
    found = [part.drop_prob for part in eye.modules() if isinstance(part, StochasticDepth)]
    assert found == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])


def test_what_does_not_learn_is_never_left_out() -> None:
    for still in (
        ResNet(8).requires_grad_(False),
        build_transformer(8, 2, 1).requires_grad_(False),
    ):
        trained(still, 0.9)
        assert not any(
            part.drop_prob for part in still.modules() if isinstance(part, StochasticDepth)
        )


def test_whole_samples_are_left_out_and_only_while_training() -> None:
    torch.manual_seed(0)
    block = build_transformer(8, 1, 1).blocks[0]
    trunk, t = Transformer([block]), words()  # no norm at the end: what is left out stays as it was
    whole = trunk.eval()(t).x - t.x
    trained(trunk, 0.5)
    block.mlp_norm.register_forward_hook(lambda *_: torch.zeros_like(t.x))  # one addition alone
    torch.nn.init.zeros_(block.mlp.up.bias)
    added = trunk(t).x - t.x
    gone = added.abs().amax((1, 2)) < 1e-6
    assert 0.4 < gone.float().mean() < 0.6
    block.eval()
    torch.testing.assert_close(
        added[~gone], 2 * (trunk(t).x - t.x)[~gone]
    )  # the others have twice as much
    assert (whole.abs().amax((1, 2)) > 1e-3).all()


def test_padding_left_out_or_not_a_sample_is_one() -> None:
    valid = torch.arange(5) < torch.randint(
        1, 5, (400, 1), generator=torch.Generator().manual_seed(1)
    )
    torch.manual_seed(0)
    trunk = trained(Transformer(build_transformer(8, 1, 1)._blocks()), 0.5)
    t = words(valid)  # less than nine tenths real: rows are packed
    changed = (trunk(t).x - t.x).abs().amax(2) > 1e-6
    kept = changed[:, 0]
    assert 0.6 < kept.float().mean() < 0.9  # either of two additions is there
    assert (changed == (kept[:, None] & valid))[valid].all()


def test_a_frozen_block_that_holds_a_way_beside_is_whole() -> None:
    trunk = build_transformer(
        8, 2, 1, build_cross_attention=lambda i: GatedCrossAttention(8, 1)
    ).requires_grad_(False)
    for block in trunk._blocks():
        assert block.gated_cross_attention is not None
        block.gated_cross_attention.requires_grad_(True)
    assert set_stochastic_depth(trunk, 0.5) == 0
    assert not any(block.drop_path.drop_prob for block in trunk._blocks())


def test_on_average_nothing_changes() -> None:
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
    ids=["pictures", "series", "words", "published"],
)
def test_what_has_it(model: torch.nn.Module) -> None:
    assert set_stochastic_depth(model, 0.5) > 0


def test_as_a_keyword_of_training(tmp_path: Path) -> None:
    for wrong in (1.0, -0.1, 2):
        with pytest.raises(SensoriumError, match="stochastic_depth"):
            train(guess, rows(), out=tmp_path / "run", quiet=True, stochastic_depth=wrong)
    with pytest.raises(SensoriumError, match="no block of this model"):
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
            stochastic_depth=chance,
        )
        for i, chance in enumerate((0.0, 0.5, 0.5))
    ]
    said = [run.predict(title=["number 1"])["target"].probability for run in runs]
    assert (said[1] == said[2]).all()
    assert (said[0] != said[1]).any()
