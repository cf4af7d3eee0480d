"""Scenes as arrays: which thing lies in which of nine cells, drawn by formula.

    N scenes   S side in pixels   c side of a cell   K codes of a cell

A scene is nine numbers, cell by cell in reading order: 0 is empty, any other number is a thing (`code`).
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
SIZES = {"small": 0.62, "big": 0.97}  # of a cell's side
GRID_SIZE = 3
NUM_CELLS = GRID_SIZE * GRID_SIZE
NUM_CODES = 1 + len(SHAPES) * len(COLOURS) * len(SIZES)
MIN_IMAGE_SIZE = 24  # side of a picture in which shapes can still be told apart
_SAMPLES_PER_PIXEL = 16  # samples along a pixel's side


@dataclass(frozen=True)
class SceneObject:
    """What lies in one cell."""

    size: str
    colour: str
    shape: str
    row: int
    column: int


def encode_object(size: int, colour: int, shape: int) -> int:
    """The number of a thing, from the places of its size, colour and shape in their tables."""
    return 1 + (shape * len(COLOURS) + colour) * len(SIZES) + size


def decode_objects(cells: Integer[np.ndarray, "9"]) -> list[SceneObject]:
    """What is in a scene, in reading order."""
    return [
        SceneObject(*_object_features(int(cells[at])), *divmod(int(at), GRID_SIZE))
        for at in np.flatnonzero(cells > 0)
    ]


@cache
def _object_features(code: int) -> tuple[str, str, str]:
    rest, size = divmod(code - 1, len(SIZES))
    shape, colour = divmod(rest, len(COLOURS))
    return tuple(SIZES)[size], tuple(COLOURS)[colour], SHAPES[shape]


def draw_scenes(cells: Integer[np.ndarray, "N 9"], side: int) -> UInt8[np.ndarray, "N S S 3"]:
    """Pictures of scenes: white paper, each thing in the middle of its cell."""
    tiled = cell_images(side)[cells].reshape(
        len(cells), GRID_SIZE, GRID_SIZE, *cell_images(side).shape[1:]
    )
    first, end = grid_bounds(side)
    out = np.full((len(cells), side, side, 3), 255, np.uint8)
    out[:, first:end, first:end] = tiled.swapaxes(2, 3).reshape(
        len(cells), end - first, end - first, 3
    )
    return out


def grid_bounds(side: int) -> tuple[int, int]:
    """Where the grid begins and ends, along either side; what is beyond is paper."""
    first = side % GRID_SIZE // 2
    return first, first + side // GRID_SIZE * GRID_SIZE


@cache
def cell_images(side: int) -> UInt8[np.ndarray, "K c c 3"]:
    """A cell for each code, in pictures of that side."""
    masks = np.stack(
        [
            _shape_mask(shape, share, side // GRID_SIZE)
            for shape in SHAPES
            for share in SIZES.values()
        ]
    )
    ink = masks.reshape(len(SHAPES), 1, len(SIZES), *masks.shape[1:], 1)
    colours = np.array(list(COLOURS.values()), np.float64).reshape(1, -1, 1, 1, 1, 3)
    drawn = np.rint(255 * (1 - ink) + colours * ink).astype(np.uint8)
    out = np.concatenate([np.full_like(drawn[0, 0, :1], 255), drawn.reshape(-1, *drawn.shape[3:])])
    out.flags.writeable = False
    return out


def _shape_mask(shape: str, scale: float, cell_size: int) -> Float[np.ndarray, "c c"]:
    """Which part of each pixel a shape covers."""
    line = (
        (np.arange(cell_size * _SAMPLES_PER_PIXEL) + 0.5) / (cell_size * _SAMPLES_PER_PIXEL) * 2 - 1
    ) / scale
    inside = _is_inside(shape, line[None, :], line[:, None])
    return inside.reshape(cell_size, _SAMPLES_PER_PIXEL, cell_size, _SAMPLES_PER_PIXEL).mean((1, 3))


def _is_inside(
    shape: str, x: Float[np.ndarray, "1 n"], y: Float[np.ndarray, "n 1"]
) -> Bool[np.ndarray, "n n"]:
    """Where a shape is, in a square from -1 to 1; y grows downwards."""
    far, near, radius = np.maximum(abs(x), abs(y)), np.minimum(abs(x), abs(y)), x**2 + y**2
    match shape:
        case "circle":
            return radius < 1
        case "square":
            return far < 0.98
        case "triangle":
            return (abs(x) < (y + 1) / 2) & (y < 1)
        case "cross":
            return (near < 0.34) & (far < 1)
        case "ring":
            return (radius < 1) & (radius > 0.3)
    raise ValueError(f"no shape {shape!r}")
