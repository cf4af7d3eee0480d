"""A captioner that sees through a trained CLIP: its eye stays as it is, and the run needs nothing but itself."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io.tensors import state_tensors
from sensorium.recipes import captioner, clip_small
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
    train(clip_small, data, out=folder, text_layers=1, embed_dim=16, **SMALL)
    return folder


def test_the_eye_learns_nothing_and_comes_along(data: Dataset, clip: Path, tmp_path: Path) -> None:
    model = train(
        captioner,
        data,
        out=tmp_path / "says",
        clip_run=str(clip),
        layers=1,
        augment="strong",
        **SMALL,
    )
    eye = model.module.get_submodule("parts.image")
    assert isinstance(eye, PrefixProjection)
    theirs = load_checkpoint(clip)
    for name, value in state_tensors(theirs.module.get_submodule("image")).items():
        torch.testing.assert_close(state_tensors(eye.tower)[name], value, rtol=0, atol=0)
    assert model.schema["image"] == theirs.schema["image"]
    shown = data.raw("image", [0, 1])
    said = model.generate(image=shown)
    shutil.rmtree(clip)
    assert load_checkpoint(tmp_path / "says").generate(image=shown) == said
    with pytest.raises(SensoriumError, match="not there any more"):
        train(captioner, data, out=tmp_path / "says", resume=True, quiet=True)


def test_its_statistics_stand_still(clip: Path) -> None:
    tower = load_checkpoint(clip).module.get_submodule("image")
    eye = PrefixProjection(tower, 8, 3, 0.0).train()  # pyright: ignore[reportArgumentType]
    pictures = torch.rand(5, 3, 24, 24)
    assert eye(pictures).x.shape == (5, 3, 8)
    torch.testing.assert_close(eye(pictures).x[:1], eye(pictures[:1]).x)
    assert not any(m.training for m in tower.modules())


def test_what_cannot_be_is_said(data: Dataset, clip: Path, tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="says that there are none"):
        train(captioner, data, out=tmp_path / "a", clip=str(clip), image="", **SMALL)
    train(captioner, data, out=tmp_path / "b", layers=1, **SMALL)
    with pytest.raises(SensoriumError, match="run of captioner; here one of clip or clip_small"):
        train(captioner, data, out=tmp_path / "c", clip=str(tmp_path / "b"), **SMALL)
