"""Recognition of scenes: exact on clean images, and robust to noise, blur and coarse codes."""

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


def recognized_fraction(images: Pixels) -> float:
    """The fraction of images in which every cell is recognized."""
    return float((recognize_cells(images) == CELLS).all(1).mean())


def blur(images: Pixels, sigma: float) -> Pixels:
    blur_filter = ImageFilter.GaussianBlur(sigma)
    return np.stack([np.asarray(Image.fromarray(p).filter(blur_filter)) for p in images])


def add_noise(images: Pixels, sigma: float) -> Pixels:
    noise = np.random.default_rng(0).normal(0, sigma, images.shape)
    return (images + noise).clip(0, 255).round().astype(np.uint8)


def quantize(images: Pixels, dims: int, levels: int = 8, patch: int = 4) -> Pixels:
    """Quantize patches to `levels` values in each of `dims` principal directions: a linear FSQ."""
    n, side = images.shape[:2]
    cut = images.reshape(n, side // patch, patch, side // patch, patch, 3).swapaxes(2, 3)
    flat = cut.reshape(-1, patch * patch * 3).astype(float)
    mean = flat.mean(0)
    basis = np.linalg.eigh(np.cov(flat.T))[1][:, -dims:]
    z = (flat - mean) @ basis
    step = 2 * abs(z).max(0) / (levels - 1)
    back = (np.round(z / step) * step @ basis.T + mean).clip(0, 255).round().astype(np.uint8)
    return back.reshape(cut.shape).swapaxes(2, 3).reshape(images.shape)


@pytest.mark.parametrize("side", [32, 48, 64])
def test_every_object_in_every_cell_is_recognized(side: int) -> None:
    cells = (np.eye(9, dtype=int)[:, None] * np.arange(NUM_CODES)[:, None]).reshape(-1, 9)
    assert (recognize_cells(draw_scenes(cells, side)) == cells).all()


def test_clean_scenes_are_recognized_exactly(clean: Pixels) -> None:
    assert recognized_fraction(clean) == 1


def test_moderate_noise_is_tolerated_and_strong_noise_is_not(clean: Pixels) -> None:
    assert recognized_fraction(add_noise(clean, 32)) == 1
    assert recognized_fraction(add_noise(clean, 80)) < 0.1


def test_moderate_blur_is_tolerated(clean: Pixels) -> None:
    scale = clean.shape[1] / 32
    fractions = [recognized_fraction(blur(clean, sigma * scale)) for sigma in (0.5, 1, 1.5)]
    assert fractions[:2] == [1, 1]
    assert fractions[2] > 0.5


def test_coarsely_quantized_patches_are_mostly_recognized(clean: Pixels) -> None:
    fractions = np.array([recognized_fraction(quantize(clean, d)) for d in (24, 12, 8, 6, 4)])
    minimum = (0.96, 0.9, 0.8, 0.7, 0.2) if clean.shape[1] == 32 else (1, 1, 1, 1, 0.4)
    assert (fractions >= minimum).all(), fractions


def test_images_of_another_size_are_resized(clean: Pixels) -> None:
    enlarged = [Image.fromarray(p).resize((128, 128), Image.Resampling.BICUBIC) for p in clean[:50]]
    assert (recognize_images(enlarged, clean.shape[1]) == CELLS[:50]).all()


def test_images_of_no_scene_have_unknown_codes() -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    assert (recognize_cells(noise) == UNKNOWN_CODE).all()
    assert (recognize_cells(np.full((1, 32, 32, 3), 128, np.uint8)) == UNKNOWN_CODE).all()
