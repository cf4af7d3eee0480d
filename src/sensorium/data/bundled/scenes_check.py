"""Recognize the objects in an image of a scene, so that generated images can be verified.

    N images   S side in pixels   c side of a cell   K codes of a cell   L blur levels
    P numbers of a cell

Each cell gets the code whose drawing, sharp or blurred, is nearest to it (root mean square
difference of channels, of 255). A cell farther than `MAX_CELL_DISTANCE` from all drawings is
unknown, which never matches. Fraction of scenes in which all nine cells are recognized, at 32 / 64
pixels (tests/test_scenes_check.py):

    clean                                      1.00 / 1.00
    noise of standard deviation 32             1.00 / 1.00   80: 0.00, all unknown
    blur of standard deviation 1 / 2 pixels    1.00 / 1.00   1.5 / 3 pixels: 1.00 / 0.55
    patches of 4 x 4 as 24, 12, 8, 6, 4 numbers of 8 levels (a linear FSQ):
                                               0.97, 0.92, 0.84, 0.74, 0.24 /
                                               1.00, 1.00, 1.00, 1.00, 0.45
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import PIL.Image
from jaxtyping import Float32, Integer, UInt8

from sensorium.data.bundled.scenes_draw import GRID_SIZE, NUM_CELLS, cell_images, grid_bounds
from sensorium.modalities.image_resize import resize_square

MAX_CELL_DISTANCE = 40.0  # of 255
UNKNOWN_CODE = -1
_BLUR_PASSES = (0, 1, 3)  # passes of a filter [1 2 1] / 4: standard deviations 0, 0.7, 1.2 pixels


def recognize_cells(images: UInt8[np.ndarray, "N S S 3"]) -> Integer[np.ndarray, "N 9"]:
    """Return the code of each cell (see `scenes_draw`), `UNKNOWN_CODE` where it is unclear."""
    cells = _crop_cells(images).astype(np.float32)
    references = _reference_cells(images.shape[1])
    flat = references.reshape(-1, references.shape[-1])
    squared = (cells**2).sum(-1)[..., None] + (flat**2).sum(-1) - 2 * cells @ flat.T
    distances = np.sqrt(squared.clip(0) / flat.shape[1])
    nearest = distances.reshape(*cells.shape[:2], *references.shape[:2]).min(-2)
    return np.where(nearest.min(-1) <= MAX_CELL_DISTANCE, nearest.argmin(-1), UNKNOWN_CODE)


@cache
def _reference_cells(side: int) -> Float32[np.ndarray, "L K P"]:
    sharp = cell_images(side).astype(np.float32)
    return np.stack([_blur(sharp, passes).reshape(len(sharp), -1) for passes in _BLUR_PASSES])


def _blur(cells: Float32[np.ndarray, "K c c 3"], passes: int) -> Float32[np.ndarray, "K c c 3"]:
    """Blur drawings on a white background."""
    for _ in range(passes):
        for axis in (1, 2):
            padding = [(1, 1) if i == axis else (0, 0) for i in range(4)]
            padded = np.pad(cells, padding, constant_values=255)
            before, middle, after = (
                padded.take(np.arange(cells.shape[axis]) + shift, axis) for shift in (0, 1, 2)
            )
            cells = (before + 2 * middle + after) / 4
    return cells


def recognize_images(images: Sequence[PIL.Image.Image], side: int) -> Integer[np.ndarray, "N 9"]:
    """Return the code of each cell of images of any size, resized to `side` x `side` pixels."""
    resized = [resize_square(image.convert("RGB"), side, "stretch") for image in images]
    return recognize_cells(np.stack(resized))


def _crop_cells(images: UInt8[np.ndarray, "N S S 3"]) -> UInt8[np.ndarray, "N 9 P"]:
    start, end = grid_bounds(images.shape[1])
    c = (end - start) // GRID_SIZE
    grid = images[:, start:end, start:end].reshape(len(images), GRID_SIZE, c, GRID_SIZE, c, 3)
    return grid.swapaxes(2, 3).reshape(len(images), NUM_CELLS, -1)
