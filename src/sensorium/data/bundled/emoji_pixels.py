"""Measure how similar each artist's drawings are in pixels to those of all other artists.

N drawings   S side in pixels
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sensorium.data.batching import iter_batches
from sensorium.data.tables import Table

COMPARED_SIZE = 32  # side in pixels at which drawings are compared
MIN_TWIN_COSINE = 0.95  # above it two drawings are near duplicates
_QUERIES_PER_BATCH = 256
_IMAGES_PER_BATCH = 512


@dataclass(frozen=True)
class PixelSimilarity:
    """Similarity of one artist's drawings to those of all other artists.

    Attributes:
        drawings: number of drawings.
        same: fraction of drawings whose nearest neighbour shows the same concept.
        twin: fraction of drawings whose nearest neighbour is a near duplicate.
    """

    drawings: int
    same: float
    twin: float


def measure_pixel_similarity(
    table: Table, group_by: Literal["artist", "style"] = "artist"
) -> dict[str, PixelSimilarity]:
    """Return the similarity of each artist (or style) to all *other* artists.

    Similarity is the cosine between inverted pixels (255 - value) at 32 pixels a side. In a set
    whose artists copy one another it is high, and an "unseen" artist proves little.

    Args:
        table: a table of `open_sheets`.
        group_by: the column whose values are compared.
    """
    vectors = _inverted_vectors(np.asarray(table.columns["image"]))
    artists, concepts, groups = (
        np.asarray(table.columns[name]) for name in ("artist", "concept", group_by)
    )
    result = {}
    for name in dict.fromkeys(groups.tolist()):
        own = np.flatnonzero(groups == name)
        others = np.flatnonzero(artists != artists[own[0]])
        if not len(others):
            continue
        candidates = vectors[others]
        same, twin = 0, 0
        for part in iter_batches(own, _QUERIES_PER_BATCH):
            cosine = vectors[part] @ candidates.T
            same += int((concepts[others[cosine.argmax(1)]] == concepts[part]).sum())
            twin += int((cosine.max(1) > MIN_TWIN_COSINE).sum())
        result[name] = PixelSimilarity(
            len(own), round(same / len(own), 3), round(twin / len(own), 3)
        )
    return result


def _inverted_vectors(images: np.ndarray) -> np.ndarray:
    """Unit vectors of inverted pixels: uint8 [N, S, S, 3] -> float32 [N, 32 * 32 * 3].

    Blocks of pixels are averaged where S is a multiple of 32; other sizes are kept.
    """
    n, side = len(images), images.shape[1]
    factor = side // COMPARED_SIZE if side % COMPARED_SIZE == 0 else 1
    reduced = side // factor
    vectors = np.empty((n, reduced**2 * 3), np.float32)
    for rows in iter_batches(range(n), _IMAGES_PER_BATCH):  # a float copy of all is too large
        inverted = 255 - images[rows.start : rows.stop].astype(np.float32)
        blocks = inverted.reshape(len(inverted), reduced, factor, reduced, factor, 3).mean((2, 4))
        vectors[rows.start : rows.stop] = blocks.reshape(len(inverted), -1)
    return vectors / (np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-6)
