"""DALL-E 2: prior, decoder, variations, blends, text differences, and a cascade on top."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

import sensorium as sn
from sensorium.errors import SensoriumError
from sensorium.inference.sample_embedding import slerp, text_difference
from sensorium.recipes import clip, dalle2, dalle2_prior, imagen
from sensorium.training.checkpoint import Model

TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "fp32"}
CLIP: dict[str, Any] = {
    "size": "small",
    "dim": 32,
    "text_layers": 1,
    "embed_dim": 16,
    "augment": "none",
}


def noise_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def arrays(images: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of images with captions, and runs of clip and dalle2 with the prior inside."""
    here = tmp_path_factory.mktemp("dalle2")
    (here / "photos").mkdir()
    for i in range(24):
        PIL.Image.fromarray(noise_image(i)).save(here / "photos" / f"{i:02}.png")
        (here / "photos" / f"{i:02}.txt").write_text(f"picture {i % 4}\n")
    data = open_photos(here)
    sn.train(clip, data, out=here / "clip", quiet=True, **CLIP, **TRAINING)
    prior = {"clip_run": str(here / "clip"), "dim": 32, "layers": 1, **TRAINING}
    sn.train(
        dalle2,
        data,
        out=here / "dalle2",
        prior=prior,
        dim=8,
        text_dim=32,
        text_layers=1,
        quiet=True,
        **TRAINING,
    )
    return here


def open_photos(here: Path) -> sn.Dataset:
    return sn.Dataset.open(str(here / "photos"), types={"image": "image:size=16"})


@pytest.fixture(scope="module")
def model(place: Path) -> Model:
    loaded = sn.load(place / "dalle2")
    assert isinstance(loaded, Model)
    return loaded


def test_a_run_is_self_contained(place: Path, model: Model, tmp_path: Path) -> None:
    images = arrays(model.generate(text="picture 1", n=2, steps=3))
    assert images.shape == (2, 16, 16, 3)
    shutil.copytree(place / "dalle2", tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "prior")
    copy = sn.load(tmp_path / "copy")
    assert np.array_equal(arrays(copy.generate(text="picture 1", n=2, steps=3)), images)


def test_the_frozen_parts_are_those_of_their_runs(place: Path, model: Model) -> None:
    prior = sn.load(place / "dalle2" / "prior")
    towers = sn.load(place / "clip")
    assert isinstance(prior, Model)
    assert isinstance(towers, Model)
    state = model.module.state_dict()
    for name, value in prior.module.state_dict().items():
        assert state[f"prior.{name}"].equal(value), name
    for name, value in towers.module["image"].state_dict().items():
        assert state[f"prior.image_tower.{name}"].equal(value), name


def test_the_prior_embeds_texts_as_images(place: Path) -> None:
    prior = sn.load(place / "dalle2" / "prior")
    towers = sn.load(place / "clip")
    images = [noise_image(i) for i in range(3)]
    np.testing.assert_allclose(prior.embed(image=images), towers.embed(image=images), atol=2e-2)
    texts = ["picture 1", "picture 2"]
    vectors = prior.embed(text=texts)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(prior.embed(text=texts[1:]), vectors[1:], atol=1e-5)
    with pytest.raises(SensoriumError, match="Give values of text or of image"):
        prior.embed(sound=["x"])


def test_variations_follow_the_image_and_differ(model: Model) -> None:
    image = noise_image()
    varied = arrays(model.generate(image=image, vary=True, n=3, steps=4))
    assert varied.shape == (3, 16, 16, 3)
    assert np.abs(varied[0] - varied[1]).max() > 1
    again = arrays(model.generate(image=[noise_image(1), image], vary=True, n=3, steps=4))
    assert again.shape == (6, 16, 16, 3)
    blended = arrays(model.generate(image=image, blend_image=noise_image(5), amount=0.5, steps=4))
    assert blended.shape == (1, 16, 16, 3)
    moved = model.generate(image=image, source_text="picture 1", text="picture 2", steps=4)
    assert moved[0].size == (16, 16)


def test_nothing_is_moved_by_an_amount_of_zero(model: Model) -> None:
    image = noise_image()
    plain, other = (
        arrays(model.generate(image=image, blend_image=noise_image(seed), amount=0.0, steps=3))
        for seed in (5, 6)
    )
    assert np.abs(plain - other).max() <= 1


def test_a_cascade_on_dalle2_enlarges_and_varies(place: Path, tmp_path: Path) -> None:
    model = sn.train(
        imagen,
        open_photos(place),
        out=tmp_path / "large",
        base=str(place / "dalle2"),
        size=32,
        dim=8,
        quiet=True,
        **TRAINING,
    )
    assert model.generate(text="picture 1", steps=2)[0].size == (32, 32)
    assert model.generate(image=noise_image(), vary=True, steps=2)[0].size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vary": True, "text": "x"}, "start from an image"),
        ({"vary": True, "image": [None]}, "An image is missing"),
        ({"image": noise_image(), "source_text": "a"}, "also say what it should show"),
        ({"vary": True, "image": noise_image(), "amount": 2.0}, "--amount 2.0 is out of range"),
    ],
)
def test_wrong_requests_are_refused(model: Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SensoriumError, match=message):
        model.generate(**options)


def test_a_base_is_needed(place: Path) -> None:
    data = open_photos(place)
    with pytest.raises(SensoriumError, match="dalle2 builds on a CLIP"):
        sn.train(dalle2, data, out=place / "none", quiet=True)
    with pytest.raises(SensoriumError, match="--clip-run is missing"):
        sn.train(dalle2_prior, data, out=place / "none", quiet=True)
    with pytest.raises(SensoriumError, match="Name one of dalle2_prior"):
        sn.train(dalle2, data, out=place / "none", prior=str(place / "clip"), quiet=True)
    with pytest.raises(SensoriumError, match="Name a run of imagen or dalle2"):
        sn.train(imagen, data, out=place / "none", base=str(place / "clip"), quiet=True)


def test_slerp_stays_on_the_sphere() -> None:
    a, b = torch.randn(2, 5, 8)
    middle = slerp(a, b, 0.5)
    torch.testing.assert_close(middle.norm(dim=-1), a.norm(dim=-1))
    torch.testing.assert_close(slerp(a, b, 0.0), a)
    torch.testing.assert_close(slerp(a, b, 1.0), b * (a.norm(dim=-1) / b.norm(dim=-1))[:, None])
    cosine = torch.cosine_similarity
    torch.testing.assert_close(cosine(middle, a), cosine(middle, b))
    torch.testing.assert_close(slerp(a, a, 0.3), a)
    moved = text_difference(a, b, b.flip(0), 0.3)
    torch.testing.assert_close(moved.norm(dim=-1), a.norm(dim=-1))
