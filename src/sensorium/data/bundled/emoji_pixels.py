"""How hard an unseen artist is: what plain pixels find of each artist's drawings among all the others'."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sensorium.data.tables import Table


@dataclass(frozen=True)
class PixelSimilarity:
    """How easily one artist's drawings are found by pixels alone among all other artists'."""

    drawings: int
    same: float  # share whose nearest neighbour shows the same concept
    twin: float  # share whose nearest neighbour is nearly the same picture


def measure_pixel_similarity(
    table: Table, group_by: Literal["artist", "style"] = "artist"
) -> dict[str, PixelSimilarity]:
    """How hard each artist (or style) is: what the nearest neighbour in pixels finds among all *other* artists'.

    Nearness is the cosine between the inks (255 - value) at 32 pixels, all colours; drawings are compared as they are.
    A set whose artists copy one another has high shares, and an "unseen" artist of it proves little.
    """
    ink = _ink_vectors(np.asarray(table.columns["image"]))
    artist, concept, who = (
        np.asarray(table.columns[name]) for name in ("artist", "concept", group_by)
    )
    result = {}
    for name in dict.fromkeys(who.tolist()):
        mine = np.flatnonzero(who == name)
        others = np.flatnonzero(artist != artist[mine[0]])
        if not len(others):
            continue
        bank, same, twin = ink[others], 0, 0
        for part in np.array_split(mine, range(256, len(mine), 256)):
            near = ink[part] @ bank.T
            same += int((concept[others[near.argmax(1)]] == concept[part]).sum())
            twin += int((near.max(1) > 0.95).sum())
        result[name] = PixelSimilarity(
            len(mine), round(same / len(mine), 3), round(twin / len(mine), 3)
        )
    return result


def _ink_vectors(images: np.ndarray) -> np.ndarray:
    """uint8 [N, S, S, 3] -> unit float32 [N, 32 * 32 * 3] (mean of each cell where S is a multiple of 32)."""
    n, side = len(images), images.shape[1]
    factor = side // 32 if side % 32 == 0 else 1
    out = np.empty((n, (side // factor) ** 2 * 3), np.float32)
    for start in range(
        0, n, 512
    ):  # in parts: the float copy of a large set would not fit beside it
        part = 255 - images[start : start + 512].astype(np.float32)
        cells = part.reshape(len(part), side // factor, factor, side // factor, factor, 3).mean(
            (2, 4)
        )
        out[start : start + 512] = cells.reshape(len(part), -1)
    return out / (np.linalg.norm(out, axis=1, keepdims=True) + 1e-6)
