"""Encoders that no family hosts, by the library transformers: as towers, through files, in our own signature."""

from pathlib import Path

import pytest
import torch
from fixtures.parity import close, lively
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


def ids() -> torch.Tensor:
    found = torch.randint(5, 60, (3, 8), generator=torch.Generator().manual_seed(0))
    found[1, 5:] = 1
    return found


@pytest.mark.parametrize("masked", [False, True], ids=["plain", "with another task's head"])
def test_words(masked: bool, tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        **SMALL, vocab_size=60, max_position_embeddings=20, pad_token_id=1
    )
    whole = lively(
        (transformers.RobertaForMaskedLM if masked else transformers.RobertaModel)(config)
    )
    theirs = whole.roberta if masked else whole
    whole.save_pretrained(tmp_path / "theirs")
    assert detect_family(open_weights(tmp_path / "theirs"))[0] is BACKBONE
    ours = load_pretrained_model(tmp_path / "theirs").module
    given, real = ids(), (ids() != 1).float()[..., None]
    said = theirs(input_ids=given, attention_mask=(given != 1).long()).last_hidden_state
    close(ours["text"].encode.whole(given), (said * real).sum(1) / real.sum(1))


def test_pictures(tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    theirs = lively(transformers.Dinov2Model(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_pretrained_model(tmp_path / "theirs").module
    pictures = torch.randn(2, 3, 16, 16)
    said = theirs(pixel_values=pictures).last_hidden_state
    tokens = ours["image"].encode(pictures)
    close(tokens.x, said)
    tokens.x.square().sum().backward()
    said.square().sum().backward()
    slopes = dict(theirs.named_parameters())
    for name, p in ours["image"].encode.embed.model.named_parameters():
        assert p.grad is not None or slopes[name].grad is None, name
        if p.grad is not None:
            torch.testing.assert_close(p.grad, slopes[name].grad, rtol=1e-4, atol=1e-5)


def test_a_tensor_that_is_missing(tmp_path: Path) -> None:
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
    with pytest.raises(SensoriumError, match="layer.1.output.dense.bias"):
        load_pretrained_model(tmp_path)


def test_what_transformers_does_not_know_either(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nothing_of_the_kind"}')
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(SensoriumError, match="nothing_of_the_kind"):
        detect_family(open_weights(tmp_path), PRETRAINED_FAMILIES)


def test_first_weights_that_are_not_drawn_end_whatever_stood_in_memory() -> None:
    """torch draws a cut normal distribution again until no value lies outside of it."""
    weight, other = torch.full((9,), 1e9), torch.nn.Parameter(torch.full((9,), float("nan")))
    with skip_init():
        torch.nn.init.trunc_normal_(weight, mean=1.0, std=0.02, a=0.5, b=2.0)
        torch.nn.init.trunc_normal_(other, a=-2.0, b=2.0)
    assert (weight == 1).all()
    assert not other.any()
