"""What judges share: which rows they look at, what they compare with.

    N rows of a split   P numbers in a picture
"""
import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.data.cache import Prepared
from sensorium.data.dataset import Dataset
from sensorium.models import unit
from sensorium.tokens import ColumnKey, column_names

LARGEST = 64                                # side of a picture compared by its pixels; larger ones are made smaller
_BLOCK = 1024                               # pictures compared with all others at a time


def training_rows(dataset: Dataset, prepared: Prepared) -> Int[np.ndarray, "T"]:
    """The rows a model may have been trained on."""
    return prepared.complete(dataset.splits.get("train", np.array([], dtype=np.int64)))


def distinct(prepared: Prepared, picture: ColumnKey, rows: Int[np.ndarray, "N"]) -> Int[np.ndarray, "M"]:
    """The first row of each picture that is there: a data set may ask several things of one."""
    first: dict[bytes, int] = {}
    for row in rows.tolist():
        first.setdefault(np.asarray(prepared.picture(picture, row)).tobytes(), row)
    return np.array(list(first.values()), np.int64)


def references(dataset: Dataset, words: ColumnKey, rows: Int[np.ndarray, "N"]) -> list[list[str]]:
    """Everything that the columns `words` say of each row, each text once."""
    columns = [dataset.raw(name, rows) for name in column_names(words)]
    said = [[t for cell in cells for t in ([cell] if isinstance(cell, str) else cell or ())]
            for cells in zip(*columns, strict=True)]
    return [list(dict.fromkeys(texts)) for texts in said]


def pixels(prepared: Prepared, picture: ColumnKey, rows: Int[np.ndarray, "N"],
           largest: int = 0) -> Float[Tensor, "N P"]:
    """Pictures as they are stored, 0 to 1; with `largest`, none of more pixels a side: they are averaged in squares."""
    shown = (prepared.picture(picture, row) for row in rows.tolist())
    found = np.stack([np.asarray(one.reduce(-(-one.width // (largest or one.width)))) for one in shown])
    return torch.from_numpy(found).flatten(1).float() / 255


def ink(prepared: Prepared, picture: ColumnKey, rows: Int[np.ndarray, "N"]) -> Float[Tensor, "N P"]:
    """Pictures, at most LARGEST pixels a side, as vectors of length one in which white paper is zero."""
    return unit(1 - pixels(prepared, picture, rows, LARGEST))


def alike(a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> Int[Tensor, "N"]:
    """The most similar of `b` for each of `a`, by their product."""
    return torch.cat([(part @ b.T).argmax(1) for part in a.split(_BLOCK)])


def made_of_things(dataset: Dataset) -> bool:
    """Whether the data are the set `scenes`, where a program can tell what is true (`judge_scenes`)."""
    return {"program", "scene"} <= set(dataset.table.columns)
