"""A captioner with the frozen image encoder of a CLIP run."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.recipes import captioner
from sensorium.recipes import clip as clip_recipe
from sensorium.recipes.vision_encoders import PrefixProjection
from sensorium.training.checkpoint import load_checkpoint
from sensorium.training.loop import train

SMALL: dict[str, Any] = {
    "quiet": True,
    "batch_size": 32,
    "epochs": 1,
    "precision": "fp32",
    "dim": 32,
}


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset.open("scenes", n=100, size=24, questions=0)


@pytest.fixture
def clip(data: Dataset, tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    train(clip_recipe, data, out=folder, text_layers=1, embed_dim=16, **SMALL)
    return folder


def test_clip_encoder_stays_frozen_and_is_stored_in_the_run(
    data: Dataset, clip: Path, tmp_path: Path
) -> None:
    model = train(
        captioner,
        data,
        out=tmp_path / "captioner",
        clip_run=str(clip),
        layers=1,
        augment="strong",
        **SMALL,
    )
    prefix = model.module.get_submodule("parts.image")
    assert isinstance(prefix, PrefixProjection)
    clip_model = load_checkpoint(clip)
    for name, value in state_tensors(clip_model.module.get_submodule("image")).items():
        torch.testing.assert_close(state_tensors(prefix.tower)[name], value, rtol=0, atol=0)
    assert model.schema["image"] == clip_model.schema["image"]
    images = data.raw("image", [0, 1])
    captions = model.generate(image=images)
    shutil.rmtree(clip)
    assert load_checkpoint(tmp_path / "captioner").generate(image=images) == captions
    with pytest.raises(SensoriumError, match=r"is missing or has changed\. Restore it"):
        train(captioner, data, out=tmp_path / "captioner", resume=True, quiet=True)


def test_frozen_encoder_stays_in_eval_mode(clip: Path) -> None:
    tower = load_checkpoint(clip).module.get_submodule("image")
    prefix = PrefixProjection(tower, 8, 3, 0.0).train()  # pyright: ignore[reportArgumentType]
    images = torch.rand(5, 3, 24, 24)
    assert prefix(images).x.shape == (5, 3, 8)
    torch.testing.assert_close(prefix(images).x[:1], prefix(images[:1]).x)
    assert not any(m.training for m in tower.modules())


def test_unusable_clip_runs_are_reported(data: Dataset, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="--image '' says that there are none"):
        train(captioner, data, out=tmp_path / "a", clip_run=str(clip), image="", **SMALL)
    train(captioner, data, out=tmp_path / "b", layers=1, **SMALL)
    with pytest.raises(SensoriumError, match=r"is a run of captioner\. Name a run of clip"):
        train(captioner, data, out=tmp_path / "c", clip_run=str(tmp_path / "b"), **SMALL)
