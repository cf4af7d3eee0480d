"""Imagen: sampling, editing, frozen text encoders, and a cascade of two stages."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch
from fixtures.recipe_cases import GPT_RUN, IMAGEN_BASE, PRIOR_RUN, RECIPE_CASES, build

import sensorium as sn
from sensorium.cli import app
from sensorium.data.schema import Column, Schema
from sensorium.errors import SensoriumError
from sensorium.inference.sample_image import DiffusionImageGenerator
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.models.denoiser import Cascade, TextConditionalDenoiser
from sensorium.recipes import gpt, imagen
from sensorium.recipes.recipe import build_recipe

TEXTS = ["a red apple", "the green cat", "a blue dog runs", "grey"]
TEXT = Text(length=8, vocab_size=280).fit(TEXTS * 3)
SCHEMA = Schema({"image": Column("image", Image(size=16)), "caption": Column("caption", TEXT)})
SMALL: dict[str, Any] = {"dim": 8, "text_dim": 32, "text_layers": 1}
TRAINING: dict[str, Any] = {"epochs": 2, "batch_size": 8, "precision": "fp32", "quiet": True}


@pytest.fixture(scope="module")
def generator() -> DiffusionImageGenerator:
    torch.manual_seed(0)
    recipe = build_recipe(imagen, SCHEMA, SMALL)[0]
    with torch.no_grad():
        for p in recipe.model.parameters():  # as if trained: no part is zero
            p.add_(0.05 * torch.randn_like(p))
    generator = recipe.verbs["generate"]
    assert isinstance(generator, DiffusionImageGenerator)
    return generator


def arrays(images: list[PIL.Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


def noise_image(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def test_a_row_is_the_same_in_any_batch(generator: DiffusionImageGenerator) -> None:
    together = arrays(generator(text=TEXTS, n=2, steps=3, batch_size=3, seed=4))
    assert together.shape == (8, 16, 16, 3)
    alone = arrays(generator(text="the green cat", n=2, steps=3, seed=4))
    assert np.abs(together[2:4] - alone).max() <= 1  # rounding of another batch size
    other_seed = arrays(generator(text="the green cat", n=2, steps=3, seed=5))
    assert np.abs(alone - other_seed).max() > 1
    assert np.abs(alone[0] - alone[1]).max() > 1


def test_guidance_moves_away_from_images_without_a_caption(
    generator: DiffusionImageGenerator,
) -> None:
    plain, guided, null = (
        arrays(generator(text=text, steps=3, guidance_scale=scale))
        for text, scale in ((TEXTS[0], 1.0), (TEXTS[0], 6.0), ([None], 6.0))
    )
    assert np.abs(plain - guided).max() > 1
    assert null.shape == plain.shape


@pytest.mark.parametrize("sampler", ["dpm++", "ddim", "ddpm", "euler", "heun"])
def test_pixels_outside_the_mask_stay_exactly(
    generator: DiffusionImageGenerator, sampler: str
) -> None:
    image, mask = noise_image(), np.zeros((16, 16), np.uint8)
    mask[4:9, 3:12] = 255
    edited = arrays(generator(text=TEXTS[0], image=image, mask=mask, steps=3, sampler=sampler, n=2))
    outside = mask == 0
    assert (edited[:, outside] == image[outside]).all()
    assert (edited[:, ~outside] != image[~outside]).mean() > 0.5


def test_strength_says_how_much_of_an_image_is_replaced(
    generator: DiffusionImageGenerator,
) -> None:
    image = noise_image()
    difference = [
        np.abs(arrays(generator(image=image, strength=s, steps=3)) - image.astype(int)).mean()
        for s in (0.05, 0.5, 1.0)
    ]
    assert difference[0] < difference[1] < difference[2]
    fresh = arrays(generator(text=[None], steps=3))
    assert arrays(generator(image=image, strength=1.0, steps=3)).shape == fresh.shape


def test_progress_shows_images(generator: DiffusionImageGenerator) -> None:
    seen: list[tuple[int, int, int]] = []
    generator(text=TEXTS[:2], steps=3, on_step=lambda step, of, x: seen.append((step, of, len(x))))
    assert seen == [(1, 3, 2), (2, 3, 2), (3, 3, 2)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask": [noise_image()]}, "--mask needs the image"),
        ({"image": [None], "text": ["x"]}, "missing"),
        ({"image": noise_image(), "strength": 0.0}, "--strength 0.0 is out of range"),
        ({"text": "x", "guidance_scale": -1.0}, "--guidance-scale -1.0 is out of range"),
        ({"text": "x", "sampler": "magic"}, "--sampler 'magic' is not one of ddim"),
        ({"text": "x", "steps": 0}, "steps"),
        ({"image": noise_image(), "upscale": True}, "--upscale needs a cascade"),
        ({"sound": "x"}, "Unknown input 'sound'"),
    ],
)
def test_wrong_requests_are_refused(
    generator: DiffusionImageGenerator, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(SensoriumError, match=message):
        generator(**options)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("imagen") / "photos"
    folder.mkdir()
    for i in range(24):
        PIL.Image.fromarray(noise_image(i)).save(folder / f"{i:02}.png")
        (folder / f"{i:02}.txt").write_text(f"picture {i % 4}\n")
    return folder


def open_photos(folder: Path) -> sn.Dataset:
    return sn.Dataset.open(str(folder), types={"image": "image:size=16"})


def test_a_frozen_text_encoder_of_a_run_stays_as_it_is(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = open_photos(photos)
    first = sn.train(gpt, data, out=tmp_path / "gpt", dim=16, layers=1, **TRAINING)
    model = sn.train(
        imagen, data, out=tmp_path / "run", text_run=str(tmp_path / "gpt"), dim=8, **TRAINING
    )
    assert isinstance(model.module, TextConditionalDenoiser)
    encoder = model.module.text_encoder
    assert not any(p.requires_grad for p in encoder.parameters())
    embedding = first.module.parts["text"].token_embedding.weight
    assert torch.equal(encoder.embed.token_embedding.weight, embedding)  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    images = arrays(model.generate(text="picture 3", steps=2))
    shutil.rmtree(tmp_path / "gpt")  # the run is self-contained
    assert np.array_equal(
        arrays(sn.load(tmp_path / "run").generate(text="picture 3", steps=2)), images
    )
    with pytest.raises(SensoriumError, match="Give only one"):
        build_recipe(imagen, SCHEMA, {"text_run": "a", "text_weights": "b"})


@pytest.mark.parametrize(
    ("name", "keywords"),
    [
        ("imagen", {"text_run": GPT_RUN}),
        ("imagen", {"base": IMAGEN_BASE}),
        ("gan", {"text_run": GPT_RUN}),
        ("dalle2", {"prior": PRIOR_RUN}),
    ],
)
def test_training_does_not_start_on_frozen_parts_that_are_gone(
    photos: Path, name: str, keywords: dict[str, Any]
) -> None:
    data = open_photos(photos)
    prepared = data.prepare(data.schema, ("image",))
    recipe = build(name, {**RECIPE_CASES[name].small, **keywords})
    assert recipe.hooks.on_start is not None
    with pytest.raises(SensoriumError, match="is missing or has changed"):
        recipe.hooks.on_start(recipe.model, prepared, np.zeros(0, np.int64))


def test_a_cascade_is_trained_stage_by_stage_and_generates_large_images(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SENSORIUM_HOME", str(tmp_path / "home"))
    data = open_photos(photos)
    base: dict[str, Any] = {"size": 8, **SMALL, **TRAINING}
    del base["quiet"]
    model = sn.train(imagen, data, out=tmp_path / "run", base=base, dim=8, **TRAINING)
    cascade = model.module
    assert isinstance(cascade, Cascade)
    trained = sn.load(tmp_path / "run" / "base")
    for name, value in trained.module.state_dict().items():
        assert cascade.base.state_dict()[name].equal(value), name
    assert [image.size for image in trained.generate(text="picture 1", steps=2)] == [(8, 8)]
    images = arrays(model.generate(text="picture 1", steps=2, n=2))
    assert images.shape == (2, 16, 16, 3)
    shutil.rmtree(tmp_path / "run" / "base")
    loaded = sn.load(tmp_path / "run")
    assert np.array_equal(arrays(loaded.generate(text="picture 1", steps=2, n=2)), images)
    enlarged = loaded.generate(image=noise_image()[:8, :8], upscale=True, steps=2)
    assert enlarged[0].size == (16, 16)
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    edited = arrays(loaded.generate(text="picture 1", image=noise_image(), mask=mask, steps=2))
    assert (edited[0, :, :8] == noise_image()[:, :8]).all()
    with pytest.raises(SensoriumError, match="not smaller than 8"):
        build_recipe(imagen, data.schema, {"base": str(tmp_path / "run"), "size": 8})


def test_the_command_line_edits_images(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
    options += ["--epochs", "1", "--batch-size", "8", "--size", "16", "--precision", "fp32"]
    assert app.run(["train", "imagen", str(photos), "--out", "run", *options]) == 0
    PIL.Image.fromarray(np.full((16, 16, 3), 255, np.uint8)).save("mask.png")
    image = str(photos / "00.png")
    edit = ["generate", "run", "picture 2", "--image", image, "--steps", "2", "--seed", "1"]
    assert app.run([*edit, "--mask", "mask.png", "-o", "masked.png"]) == 0
    assert app.run([*edit, "--strength", "0.5", "--sampler", "ddim", "-o", "changed.png"]) == 0
    for name in ("masked.png", "changed.png"):
        with PIL.Image.open(name) as written:
            assert written.size == (16, 16)
    capsys.readouterr()
    assert app.run([*edit, "--upscale", "-o", "large.png"]) != 0
    assert "--upscale needs a cascade" in capsys.readouterr().err
