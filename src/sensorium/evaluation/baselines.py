"""Rows, references and pixel features shared by the evaluators.

N rows of a split   T training rows   P numbers of an image   E features
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.captions import flatten_captions
from sensorium.data.dataset import Dataset
from sensorium.nn.tokens import ColumnKey, column_names, l2_normalize

MAX_IMAGE_SIZE = 64  # side in pixels of images that are compared by pixels; larger ones are reduced
_QUERIES_PER_BATCH = 1024  # queries compared with all candidates at a time


def training_rows(dataset: Dataset, prepared: PreparedDataset) -> Int[np.ndarray, "T"]:
    """Return the complete rows of the training split."""
    no_rows = np.array([], dtype=np.int64)
    return prepared.complete_rows(dataset.splits.get("train", no_rows))


def unique_image_rows(
    prepared: PreparedDataset, image_column: ColumnKey, rows: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "M"]:
    """Return the first row of each distinct image: a dataset may have several rows per image."""
    first_rows: dict[bytes, int] = {}
    for row in rows.tolist():
        pixels = np.asarray(prepared.image(image_column, row)).tobytes()
        first_rows.setdefault(pixels, row)
    return np.array(list(first_rows.values()), np.int64)


def references(
    dataset: Dataset, text_column: ColumnKey, rows: Int[np.ndarray, "N"] | list[int]
) -> list[list[str]]:
    """Return the distinct captions of each row, in all columns of the key."""
    columns = [dataset.raw(name, rows) for name in column_names(text_column)]
    return [unique(flatten_captions(values)) for values in zip(*columns, strict=True)]


def unique(values: Iterable[str]) -> list[str]:
    """Return the distinct values in order of first appearance."""
    return list(dict.fromkeys(values))


def load_pixels(
    prepared: PreparedDataset,
    image_column: ColumnKey,
    rows: Int[np.ndarray, "N"],
    max_size: int = 0,
) -> Float[Tensor, "N P"]:
    """Return the stored images as flat vectors of values from 0 to 1.

    Args:
        prepared: the dataset.
        image_column: the image column.
        rows: rows with images of one size.
        max_size: reduce larger images to at most this side, by averaging blocks; 0 keeps the size.
    """
    images = (prepared.image(image_column, row) for row in rows.tolist())
    pixels = np.stack([np.asarray(_reduce_image(image, max_size)) for image in images])
    return torch.from_numpy(pixels).flatten(1).float() / 255


def _reduce_image(image: Image.Image, max_size: int) -> Image.Image:
    """Average blocks of pixels so that the image is at most `max_size` wide; 0 keeps the size."""
    factor = -(-image.width // (max_size or image.width))
    return image.reduce(factor)


def inverted_pixels(
    prepared: PreparedDataset, image_column: ColumnKey, rows: Int[np.ndarray, "N"]
) -> Float[Tensor, "N P"]:
    """Return images as unit vectors of inverted pixels, in which a white background is zero.

    Images are reduced to at most `MAX_IMAGE_SIZE` pixels a side.
    """
    return l2_normalize(1 - load_pixels(prepared, image_column, rows, MAX_IMAGE_SIZE))


def nearest_indices(
    queries: Float[Tensor, "N E"], candidates: Float[Tensor, "M E"]
) -> Int[Tensor, "N"]:
    """Return the index of the candidate with the largest dot product for each query."""
    batches = queries.split(_QUERIES_PER_BATCH)
    return torch.cat([(batch @ candidates.T).argmax(1) for batch in batches])


def is_scenes_dataset(dataset: Dataset) -> bool:
    """Return whether this is the bundled dataset `scenes`, whose captions can be verified."""
    return {"program", "scene"} <= set(dataset.table.columns)
