"""The program that reads scenes from pixels: never wrong on clean pictures, and how far from clean they may be."""

import numpy as np
import pytest
from PIL import Image, ImageFilter

from sensorium.data.bundled.scenes import open_scenes
from sensorium.data.bundled.scenes_check import UNKNOWN_CODE, recognize_cells, recognize_images
from sensorium.data.bundled.scenes_draw import NUM_CODES, draw_scenes

CELLS = open_scenes(n=200, questions=0).columns["image"].cells
Pixels = np.ndarray


@pytest.fixture(scope="module", params=[32, 64])
def clean(request: pytest.FixtureRequest) -> Pixels:
    return draw_scenes(CELLS, request.param)


def whole(pictures: Pixels) -> float:
    """Share of pictures in which every cell is read right."""
    return float((recognize_cells(pictures) == CELLS).all(1).mean())


def blurred(pictures: Pixels, sigma: float) -> Pixels:
    return np.stack(
        [np.asarray(Image.fromarray(p).filter(ImageFilter.GaussianBlur(sigma))) for p in pictures]
    )


def noisy(pictures: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, pictures.shape)
    return (pictures + noise).clip(0, 255).round().astype(np.uint8)


def coded(pictures: Pixels, dims: int, levels: int = 8, patch: int = 4) -> Pixels:
    """Patches as the nearest of `levels` values in each of `dims` principal directions: a linear FSQ."""
    n, side = pictures.shape[:2]
    cut = pictures.reshape(n, side // patch, patch, side // patch, patch, 3).swapaxes(2, 3)
    flat = cut.reshape(-1, patch * patch * 3).astype(float)
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov(flat.T))[1][:, -dims:]
    z = (flat - mean) @ basis
    step = 2 * abs(z).max(0) / (levels - 1)
    back = (np.round(z / step) * step @ basis.T + mean).clip(0, 255).round().astype(np.uint8)
    return back.reshape(cut.shape).swapaxes(2, 3).reshape(pictures.shape)


@pytest.mark.parametrize("side", [32, 48, 64])
def test_every_thing_in_every_place_is_read(side: int) -> None:
    cells = (np.eye(9, dtype=int)[:, None] * np.arange(NUM_CODES)[:, None]).reshape(-1, 9)
    assert (recognize_cells(draw_scenes(cells, side)) == cells).all()


def test_clean_scenes_are_read_without_a_mistake(clean: Pixels) -> None:
    assert whole(clean) == 1


def test_noise(clean: Pixels) -> None:
    assert whole(noisy(clean, 32)) == 1
    assert whole(noisy(clean, 80)) < 0.1


def test_blur(clean: Pixels) -> None:
    found = [whole(blurred(clean, spread * clean.shape[1] / 32)) for spread in (0.5, 1, 1.5)]
    assert found[:2] == [1, 1]
    assert found[2] > 0.5


def test_coarse_codes(clean: Pixels) -> None:
    found = [whole(coded(clean, dims)) for dims in (24, 12, 8, 6, 4)]
    least = (0.96, 0.9, 0.8, 0.7, 0.2) if clean.shape[1] == 32 else (1, 1, 1, 1, 0.4)
    assert all(share >= wanted for share, wanted in zip(found, least, strict=True)), found


def test_another_size_will_do(clean: Pixels) -> None:
    other = [Image.fromarray(p).resize((128, 128), Image.Resampling.BICUBIC) for p in clean[:50]]
    assert (recognize_images(other, clean.shape[1]) == CELLS[:50]).all()


def test_what_is_no_scene_is_unclear() -> None:
    rng = np.random.default_rng(0)
    assert (
        recognize_cells(rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)) == UNKNOWN_CODE
    ).all()
    assert (recognize_cells(np.full((1, 32, 32, 3), 128, np.uint8)) == UNKNOWN_CODE).all()
