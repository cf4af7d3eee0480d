"""What judges share: which rows they look at, what they compare with.

N rows of a split   P numbers in a picture
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.nn.tokens import ColumnKey, column_names, l2_normalize

MAX_IMAGE_SIZE = 64  # side of a picture compared by its pixels; larger ones are made smaller
_BLOCK_SIZE = 1024  # pictures compared with all others at a time


def training_rows(dataset: Dataset, prepared: PreparedDataset) -> Int[np.ndarray, "T"]:
    """The rows a model may have been trained on."""
    return prepared.complete_rows(dataset.splits.get("train", np.array([], dtype=np.int64)))


def unique_image_rows(
    prepared: PreparedDataset, image_column: ColumnKey, rows: Int[np.ndarray, "N"]
) -> Int[np.ndarray, "M"]:
    """The first row of each picture that is there: a data set may ask several things of one."""
    first: dict[bytes, int] = {}
    for row in rows.tolist():
        first.setdefault(np.asarray(prepared.image(image_column, row)).tobytes(), row)
    return np.array(list(first.values()), np.int64)


def references(
    dataset: Dataset, text_column: ColumnKey, rows: Int[np.ndarray, "N"]
) -> list[list[str]]:
    """Everything that the columns `words` say of each row, each text once."""
    columns = [dataset.raw(name, rows) for name in column_names(text_column)]
    said = [
        [t for cell in cells for t in ([cell] if isinstance(cell, str) else cell or ())]
        for cells in zip(*columns, strict=True)
    ]
    return [list(dict.fromkeys(texts)) for texts in said]


def load_pixels(
    prepared: PreparedDataset,
    image_column: ColumnKey,
    rows: Int[np.ndarray, "N"],
    max_size: int = 0,
) -> Float[Tensor, "N P"]:
    """Pictures as they are stored, 0 to 1; with `largest`, none of more pixels a side: they are averaged in squares."""
    shown = (prepared.image(image_column, row) for row in rows.tolist())
    found = np.stack(
        [np.asarray(one.reduce(-(-one.width // (max_size or one.width)))) for one in shown]
    )
    return torch.from_numpy(found).flatten(1).float() / 255


def inverted_pixels(
    prepared: PreparedDataset, image_column: ColumnKey, rows: Int[np.ndarray, "N"]
) -> Float[Tensor, "N P"]:
    """Pictures, at most LARGEST pixels a side, as vectors of length one in which white paper is zero."""
    return l2_normalize(1 - load_pixels(prepared, image_column, rows, MAX_IMAGE_SIZE))


def nearest_indices(
    queries: Float[Tensor, "N E"], candidates: Float[Tensor, "M E"]
) -> Int[Tensor, "N"]:
    """The most similar of `b` for each of `a`, by their product."""
    return torch.cat([(part @ candidates.T).argmax(1) for part in queries.split(_BLOCK_SIZE)])


def is_scenes_dataset(dataset: Dataset) -> bool:
    """Whether the data are the set `scenes`, where a program can tell what is true (`judge_scenes`)."""
    return {"program", "scene"} <= set(dataset.table.columns)
