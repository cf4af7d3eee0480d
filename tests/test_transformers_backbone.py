"""Encoders of the transformers library as towers, for architectures without a family here."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fixtures.parity import (
    assert_close,
    randomize_weights,
)
from safetensors.torch import save_file

from sensorium.errors import SensoriumError
from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.family import skip_init
from sensorium.pretrained.load import detect_family, load_pretrained_model
from sensorium.pretrained.transformers_backbone import BACKBONE
from sensorium.pretrained.weight_files import open_weights

transformers = pytest.importorskip("transformers")
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}


def random_ids() -> torch.Tensor:
    token_ids = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(0))
    token_ids[1, 5:] = 1
    return token_ids


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "with another task's head"])
def test_text_encoder_matches_reference(masked: bool, tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        **SMALL, vocab_size=60, max_position_embeddings=20, pad_token_id=1
    )
    full_model = randomize_weights(
        (transformers.RobertaForMaskedLM if masked else transformers.RobertaModel)(config)
    )
    reference = full_model.roberta if masked else full_model
    full_model.save_pretrained(tmp_path / "reference")
    assert detect_family(open_weights(tmp_path / "reference"))[0] is BACKBONE
    ours: Any = load_pretrained_model(tmp_path / "reference").module
    input_ids, mask = random_ids(), (random_ids() != 1).float()[..., None]
    expected = reference(
        input_ids=input_ids, attention_mask=(input_ids != 1).long()
    ).last_hidden_state
    assert_close(ours["text"].encoder.pooled(input_ids), (expected * mask).sum(1) / mask.sum(1))


def test_image_encoder_matches_reference(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    reference = randomize_weights(transformers.Dinov2Model(config))
    reference.save_pretrained(tmp_path / "reference")
    ours: Any = load_pretrained_model(tmp_path / "reference").module
    images = torch.randn(2, 3, 16, 16)
    expected = reference(pixel_values=images).last_hidden_state
    tokens = ours["image"].encoder(images)
    assert_close(tokens.x, expected)
    tokens.x.square().sum().backward()
    expected.square().sum().backward()
    gradients = dict(reference.named_parameters())
    for name, p in ours["image"].encoder.embed.model.named_parameters():
        assert p.grad is not None or gradients[name].grad is None, name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, gradients[name].grad, rtol=1e-4, atol=1e-5)


def test_missing_tensor_is_named(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        **SMALL, vocab_size=60, max_position_embeddings=20, pad_token_id=1
    )
    model = transformers.RobertaModel(config)
    model.config.save_pretrained(tmp_path)
    save_file(
        {k: v for k, v in model.state_dict().items() if "layer.1.output.dense.bias" not in k},
        tmp_path / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(SensoriumError, match=r"layer.1.output.dense.bias"):
        load_pretrained_model(tmp_path)


def test_unknown_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing_of_the_kind"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match="nothing_of_the_kind"):
        detect_family(open_weights(tmp_path), PRETRAINED_FAMILIES)


def test_skip_init_sets_the_mean_whatever_was_in_memory() -> None:
    """torch samples a truncated normal distribution again until no value lies outside of it."""
    weight, other = torch.full((9,), 1e9), torch.nn.Parameter(torch.full((9,), float("nan")))
    with skip_init():
        torch.nn.init.trunc_normal_(weight, mean=1.0, std=0.02, a=0.5, b=2.0)
        torch.nn.init.trunc_normal_(other, a=-2.0, b=2.0)
    assert (weight == 1).all()
    assert not other.any()
