"""What is in a picture of a scene: read from the pixels by a program, so that a generated picture can be judged.

    N pictures   S side in pixels   c side of a cell   K codes of a cell   L degrees of blur   P numbers in a cell

Each cell is the code whose drawing, sharp or blurred, is nearest to it (root of the mean squared difference of
channels, of 255). A cell that is farther than UNCLEAR from all drawings is unclear, which is never right. Share of
scenes in which all nine cells are read right, at 32 / 64 pixels (tests/test_scenes_check.py):

    clean                                   1.00 / 1.00
    noise of a spread of 32 levels          1.00 / 1.00     80 levels: 0.00, all unclear
    blur of a spread of 1 / 2 pixels        1.00 / 1.00     1.5 / 3 pixels: 1.00 / 0.55
    patches of 4 x 4 as 24, 12, 8, 6, 4 numbers of 8 levels (a linear FSQ):
                                            0.97, 0.92, 0.84, 0.74, 0.24 / 1.00, 1.00, 1.00, 1.00, 0.45
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import PIL.Image
from jaxtyping import Float32, Integer, UInt8

from sensorium.data.bundled.scenes_draw import GRID_SIZE, NUM_CELLS, cell_images, grid_bounds
from sensorium.modalities.image_decode import resize_square

MAX_CELL_DISTANCE = 40.0  # of 255
UNKNOWN_CODE = -1
_BLUR_PASSES = (0, 1, 3)  # passes of a filter [1 2 1] / 4: a spread of 0, 0.7 and 1.2 pixels


def recognize_cells(images: UInt8[np.ndarray, "N S S 3"]) -> Integer[np.ndarray, "N 9"]:
    """The code of each cell (`scenes_draw`), -1 where it is unclear."""
    cells, known = _crop_cells(images).astype(np.float32), _reference_cells(images.shape[1])
    flat = known.reshape(-1, known.shape[-1])
    apart = (cells**2).sum(-1)[..., None] + (flat**2).sum(-1) - 2 * cells @ flat.T
    apart = (
        np.sqrt(apart.clip(0) / flat.shape[1]).reshape(*cells.shape[:2], *known.shape[:2]).min(-2)
    )
    return np.where(apart.min(-1) <= MAX_CELL_DISTANCE, apart.argmin(-1), UNKNOWN_CODE)


@cache
def _reference_cells(side: int) -> Float32[np.ndarray, "L K P"]:
    sharp = cell_images(side).astype(np.float32)
    return np.stack([_blur(sharp, passes).reshape(len(sharp), -1) for passes in _BLUR_PASSES])


def _blur(cells: Float32[np.ndarray, "K c c 3"], passes: int) -> Float32[np.ndarray, "K c c 3"]:
    """Blurred on white paper."""
    for _ in range(passes):
        for axis in (1, 2):
            wide = np.pad(
                cells, [(1, 1) if i == axis else (0, 0) for i in range(4)], constant_values=255
            )
            before, middle, after = (
                wide.take(np.arange(cells.shape[axis]) + shift, axis) for shift in (0, 1, 2)
            )
            cells = (before + 2 * middle + after) / 4
    return cells


def recognize_images(images: Sequence[PIL.Image.Image], side: int) -> Integer[np.ndarray, "N 9"]:
    """The same of pictures of any size, brought to `side` x `side` pixels first."""
    return recognize_cells(
        np.stack([resize_square(p.convert("RGB"), side, "stretch") for p in images])
    )


def _crop_cells(images: UInt8[np.ndarray, "N S S 3"]) -> UInt8[np.ndarray, "N 9 P"]:
    first, end = grid_bounds(images.shape[1])
    c = (end - first) // GRID_SIZE
    grid = images[:, first:end, first:end].reshape(len(images), GRID_SIZE, c, GRID_SIZE, c, 3)
    return grid.swapaxes(2, 3).reshape(len(images), NUM_CELLS, -1)
