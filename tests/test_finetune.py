"""Fine-tuning of a pretrained CLIP, and interpolation between its old and new weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fixtures.squares import clip_folder as clip_folder
from fixtures.squares import data as data

import sensorium as sn
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.recipes import finetune
from sensorium.training.checkpoint import Model
from sensorium.training.weight_interpolation import (
    evaluate_interpolations,
    evaluate_metric,
    interpolate_weights,
    load_start_weights,
    save_interpolation,
)


@pytest.fixture(scope="module", params=["all", "lora"])
def model(
    request: pytest.FixtureRequest,
    clip_folder: Path,
    data: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
) -> Model:
    return sn.train(
        finetune,
        data,
        out=tmp_path_factory.mktemp("run") / "run",
        quiet=True,
        weights=str(clip_folder),
        train=request.param,
        epochs=3,
        batch_size=8,
        lr=3e-3,
        augment="none",
        precision="fp32",
    )


def test_initial_weights_embed_like_the_pretrained_model(model: Model, clip_folder: Path) -> None:
    pretrained = sn.load(clip_folder)
    after = {name: value.clone() for name, value in state_tensors(model.module).items()}
    start = load_start_weights(model)
    with torch.no_grad():
        for name, value in state_tensors(model.module).items():
            value.copy_(start[name])
    try:
        requests: list[dict[str, Any]] = [
            {"text": ["a red square", "white"]},
            {"image": [np.full((20, 16, 3), 99, np.uint8)]},
        ]
        for inputs in requests:
            np.testing.assert_allclose(model.embed(**inputs), pretrained.embed(**inputs), atol=1e-6)
    finally:
        with torch.no_grad():
            for name, value in state_tensors(model.module).items():
                value.copy_(after[name])
    changed = [name for name in after if not after[name].equal(start[name])]
    assert changed
    if model.config.keywords["train"] == "lora":
        assert not any(name.endswith("original") for name in changed)


def test_run_loads_without_the_pretrained_weights(model: Model, clip_folder: Path) -> None:
    hidden = clip_folder.rename(clip_folder.with_name("elsewhere"))
    try:
        loaded = sn.load(model.folder)
        np.testing.assert_array_equal(
            loaded.embed(text=["a red square"]), model.embed(text=["a red square"])
        )
    finally:
        hidden.rename(clip_folder)
    assert model.config.keywords["weights"]["source"] == str(clip_folder)
    image, text = model.schema["image"], model.schema["caption"]
    assert isinstance(image, Image)
    assert isinstance(text, Text)
    assert image.size == 16
    assert text.vocab_size == 300


def test_finished_run_resumes_with_the_same_keywords_only(
    model: Model, clip_folder: Path, data: Dataset
) -> None:
    resumed = sn.train(
        finetune, data, out=model.folder, resume=True, quiet=True, weights=str(clip_folder)
    )
    np.testing.assert_array_equal(resumed.embed(text=["blue"]), model.embed(text=["blue"]))
    with pytest.raises(SensoriumError, match="was trained with --weights"):
        sn.train(finetune, data, out=model.folder, resume=True, quiet=True, weights="another/model")


def test_interpolation_ends_are_the_pretrained_and_the_finetuned_model(
    model: Model, data: Dataset
) -> None:
    before = model.embed(text=["green"])
    result = evaluate_interpolations(model, data, alphas=(0.0, 0.5, 1.0))
    assert result.reference_values[0] == pytest.approx(1.0, abs=1e-5)
    assert result.reference_values[-1] < result.reference_values[1] < result.reference_values[0]
    assert result.target_values[-1] == pytest.approx(evaluate_metric(model, data))
    assert result.best_alpha in result.alphas
    np.testing.assert_array_equal(model.embed(text=["green"]), before)
    on_reference = evaluate_interpolations(model, data, data.take(np.arange(12)), alphas=(0.0, 1.0))
    assert "recall@1" in on_reference.reference_name


def test_saved_interpolation_loads_as_a_run(model: Model, tmp_path: Path) -> None:
    half = sn.load(save_interpolation(model, 0.5, tmp_path / "half"))
    whole = sn.load(save_interpolation(model, 1.0, tmp_path / "whole"))
    np.testing.assert_allclose(whole.embed(text=["green"]), model.embed(text=["green"]), atol=1e-6)
    assert np.abs(half.embed(text=["green"]) - model.embed(text=["green"])).max() > 1e-5
    with pytest.raises(SensoriumError, match="not empty"):
        save_interpolation(model, 0.5, tmp_path / "half")


def test_interpolated_lora_is_half_of_the_product() -> None:
    up, down = "x.parametrizations.weight.0.up", "x.parametrizations.weight.0.down"
    start = {up: torch.zeros(4, 2), down: torch.randn(2, 3)}
    trained = {up: torch.randn(4, 2), down: torch.randn(2, 3)}
    middle = interpolate_weights(start, trained, 0.5, {down})
    torch.testing.assert_close(middle[up] @ middle[down], 0.5 * trained[up] @ trained[down])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("", "--weights is missing"),
        ("nowhere/at/all", "neither a folder nor"),
        ({"family": "clip"}, "A pretrained source in a config"),
    ],
)
def test_invalid_weights_are_reported(
    weights: object, message: str, data: Dataset, tmp_path: Path
) -> None:
    with pytest.raises(SensoriumError, match=message):
        sn.train(finetune, data, out=tmp_path / "run", quiet=True, weights=weights)
