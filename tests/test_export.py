"""Export as a CLIP model of transformers and of OpenCLIP."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.export_cases import TEXTS, example_images, untrained_run

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.export.export import export_model


def test_transformers_computes_the_same_embeddings(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, out = untrained_run(tmp_path), tmp_path / "out"
    assert export_model(model, "hf", out)["vectors"] < 1e-5
    exported = transformers.CLIPModel.from_pretrained(out).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(out)
    tokens = tokenizer(TEXTS, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = exported(
            input_ids=tokens.input_ids, **processor(example_images(), return_tensors="pt")
        )
    assert (
        torch.from_numpy(model.embed(image=example_images())).sub(outputs.image_embeds).abs().max()
        < 1e-5
    )
    assert torch.from_numpy(model.embed(text=TEXTS)).sub(outputs.text_embeds).abs().max() < 1e-5
    assert exported.logit_scale.item() == pytest.approx(model.module.logit_scale.item())
    # With an EOS id of 2 transformers would pool at the highest id.
    assert exported.config.text_config.eos_token_id != 2
    loaded = sn.load(out)
    assert np.abs(loaded.embed(text=TEXTS) - model.embed(text=TEXTS)).max() < 1e-5


def test_open_clip_folder_loads_with_the_same_embeddings(tmp_path: Path) -> None:
    model, out = untrained_run(tmp_path, "centre"), tmp_path / "out"
    export_model(model, "open_clip", out)
    loaded = sn.load(out)
    assert np.abs(loaded.embed(text=TEXTS) - model.embed(text=TEXTS)).max() < 1e-5
    assert (
        np.abs(loaded.embed(image=example_images()) - model.embed(image=example_images())).max()
        < 1e-5
    )


def test_small_size_with_plain_encoders_leaves_as_clip(tmp_path: Path) -> None:
    """What the error of a small model recommends."""
    model = untrained_run(tmp_path, size="small", image_encoder="vit", subword_features=False)
    assert export_model(model, "hf", tmp_path / "out")["vectors"] < 1e-5


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"image_encoder": "resnet", "image_layers": 3}, r"train it with --image-encoder vit\.$"),
        ({"size": "small"}, r"train it with --image-encoder vit --no-subword-features\.$"),
        ({"projection": "nonlinear"}, "no place for"),
        ({"loss": "siglip"}, "logit_bias"),
    ],
)
def test_models_that_are_no_plain_clip_are_reported(
    tmp_path: Path, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        export_model(untrained_run(tmp_path, **keywords), "hf", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(SensoriumError, match=r"exists already\. Name a new folder"):
        export_model(untrained_run(tmp_path), "torch", tmp_path)
