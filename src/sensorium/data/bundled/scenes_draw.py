"""Scenes as arrays of codes, and their images.

    N scenes   S side in pixels   c side of a cell   K codes of a cell

A scene is nine codes, cell by cell in reading order: 0 is empty, any other code is an object (see
`encode_object`).
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Integer, UInt8

SHAPES = ("circle", "square", "triangle", "cross", "ring")
COLOURS = {
    "red": (220, 30, 30),
    "orange": (255, 140, 0),
    "yellow": (250, 225, 40),
    "green": (30, 160, 60),
    "cyan": (0, 195, 225),
    "blue": (40, 60, 220),
    "purple": (150, 40, 190),
    "black": (25, 25, 25),
}
SIZES = {"small": 0.62, "big": 0.97}  # fraction of a cell's side
GRID_SIZE = 3
NUM_CELLS = GRID_SIZE * GRID_SIZE
NUM_CODES = 1 + len(SHAPES) * len(COLOURS) * len(SIZES)
MIN_IMAGE_SIZE = 24  # side in pixels at which shapes are still distinguishable
_SAMPLES_PER_PIXEL = 16  # anti-aliasing samples along a pixel's side


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        size: a key of `SIZES`.
        colour: a key of `COLOURS`.
        shape: one of `SHAPES`.
        row: row of its cell, from the top.
        column: column of its cell, from the left.
    """

    size: str
    colour: str
    shape: str
    row: int
    column: int


def encode_object(size: int, colour: int, shape: int) -> int:
    """Return the code of an object from the indices of its size, colour and shape."""
    return 1 + (shape * len(COLOURS) + colour) * len(SIZES) + size


def decode_objects(cells: Integer[np.ndarray, "9"]) -> list[SceneObject]:
    """Return the objects of a scene in reading order."""
    return [
        SceneObject(*_object_features(int(cells[cell])), *divmod(int(cell), GRID_SIZE))
        for cell in np.flatnonzero(cells > 0)
    ]


@cache
def _object_features(code: int) -> tuple[str, str, str]:
    """Size, colour and shape of a code."""
    rest, size = divmod(code - 1, len(SIZES))
    shape, colour = divmod(rest, len(COLOURS))
    return tuple(SIZES)[size], tuple(COLOURS)[colour], SHAPES[shape]


def draw_scenes(cells: Integer[np.ndarray, "N 9"], side: int) -> UInt8[np.ndarray, "N S S 3"]:
    """Draw scenes on a white background, each object in the middle of its cell."""
    drawings = cell_images(side)
    grid = drawings[cells].reshape(len(cells), GRID_SIZE, GRID_SIZE, *drawings.shape[1:])
    start, end = grid_bounds(side)
    images = np.full((len(cells), side, side, 3), 255, np.uint8)
    tiled = grid.swapaxes(2, 3).reshape(len(cells), end - start, end - start, 3)
    images[:, start:end, start:end] = tiled
    return images


def grid_bounds(side: int) -> tuple[int, int]:
    """Return where the grid starts and ends along either side of an image; the rest is margin."""
    start = side % GRID_SIZE // 2
    return start, start + side // GRID_SIZE * GRID_SIZE


@cache
def cell_images(side: int) -> UInt8[np.ndarray, "K c c 3"]:
    """Return the drawing of each code, for images of this side."""
    masks = np.stack(
        [
            _shape_mask(shape, scale, side // GRID_SIZE)
            for shape in SHAPES
            for scale in SIZES.values()
        ]
    )
    opacity = masks.reshape(len(SHAPES), 1, len(SIZES), *masks.shape[1:], 1)
    colours = np.array(list(COLOURS.values()), np.float64).reshape(1, -1, 1, 1, 1, 3)
    drawings = np.rint(255 * (1 - opacity) + colours * opacity).astype(np.uint8)
    empty = np.full_like(drawings[0, 0, :1], 255)
    cells = np.concatenate([empty, drawings.reshape(-1, *drawings.shape[3:])])
    cells.flags.writeable = False
    return cells


def _shape_mask(shape: str, scale: float, cell_size: int) -> Float[np.ndarray, "c c"]:
    """The fraction of each pixel that a shape covers."""
    samples = cell_size * _SAMPLES_PER_PIXEL
    line = ((np.arange(samples) + 0.5) / samples * 2 - 1) / scale
    inside = _is_inside(shape, line[None, :], line[:, None])
    return inside.reshape(cell_size, _SAMPLES_PER_PIXEL, cell_size, _SAMPLES_PER_PIXEL).mean((1, 3))


def _is_inside(
    shape: str, x: Float[np.ndarray, "1 n"], y: Float[np.ndarray, "n 1"]
) -> Bool[np.ndarray, "n n"]:
    """Whether points of the square from -1 to 1 are inside a shape; y points down."""
    far = np.maximum(abs(x), abs(y))
    near = np.minimum(abs(x), abs(y))
    squared_radius = x**2 + y**2
    match shape:
        case "circle":
            return squared_radius < 1
        case "square":
            return far < 0.98
        case "triangle":
            return (abs(x) < (y + 1) / 2) & (y < 1)
        case "cross":
            return (near < 0.34) & (far < 1)
        case "ring":
            return (squared_radius < 1) & (squared_radius > 0.3)
        case _:
            raise ValueError(f"{shape!r} is not a shape.")
