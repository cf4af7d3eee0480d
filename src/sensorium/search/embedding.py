"""Read the rows of a dataset and embed them.

N rows   D width
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from sensorium.data.bad_samples import BadSample
from sensorium.data.captions import caption_list, flatten_captions
from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.search.attributes import read_attributes
from sensorium.search.results import RowInfo, make_thumbnail

MAX_FAILURES = 100  # values tried until one can be embedded


@runtime_checkable
class EmbeddingModel(Protocol):
    """A model with the verb `embed`."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of its weights."""
        ...

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


def select_rows(dataset: Dataset, split: str | None) -> np.ndarray:
    """Return the rows of a split, or all rows.

    Raises:
        SensoriumError: there is no such split, or no row in it.
    """
    if split is None:
        rows = np.arange(len(dataset))
    elif split in dataset.splits:
        rows = dataset.splits[split]
    else:
        raise SensoriumError(
            f"{dataset.name} has no split {split!r}. Choose one of {', '.join(dataset.splits)}."
        )
    if not len(rows):
        raise SensoriumError(f"{dataset.name} has no rows to index. Choose another --split.")
    return rows


def find_image_column(dataset: Dataset) -> str | None:
    """Return the image column that shows rows, if there is one."""
    kinds = {column.kind for column in dataset.schema.columns.values()}
    return dataset.schema.resolve_column("image", None) if "image" in kinds else None


@dataclass(frozen=True)
class RowBatch:
    """Rows to embed.

    Attributes:
        kind: type of the column to embed.
        column: its name.
        rows: the rows of the dataset that have a value.
        values: their values; lists of texts for a text column.
        infos: the packed `RowInfo` of each.
        locations: each row in messages.
    """

    kind: str
    column: str
    rows: list[int]
    values: list[Any]
    infos: list[bytes]
    locations: list[str]


def embedding_dim(model: EmbeddingModel, dataset: Dataset, column: str, rows: np.ndarray) -> int:
    """Return D, from the first value that can be embedded.

    Raises:
        SensoriumError: no value can be read, or none of the first ones embedded.
    """
    errors: list[SensoriumError] = []
    for row in rows:
        batch = read_batch(dataset, column, np.array([row]), [])
        if not batch.values:
            continue
        try:
            return embed_values(model, batch.kind, batch.values).shape[1]
        except SensoriumError as e:
            errors.append(e)
        if len(errors) == MAX_FAILURES:
            break
    if errors:
        raise errors[0]
    raise SensoriumError(
        f"No value of column {column!r} of {dataset.name} can be read. Choose another column."
    )


def read_batch(
    dataset: Dataset, column: str, rows: np.ndarray, bad_samples: list[BadSample]
) -> RowBatch:
    """Read the rows that have a value.

    Args:
        dataset: the data.
        column: the column to embed.
        rows: rows of the dataset.
        bad_samples: values that cannot be read are appended to it.
    """
    kind = dataset.schema.columns[column].kind
    image_column = find_image_column(dataset)
    text_columns = [name for name, c in dataset.schema.columns.items() if c.kind == "text"]
    texts = [dataset.raw(name, rows) for name in text_columns]
    raw_values = dataset.raw(column, rows)
    images = dataset.raw(image_column, rows) if image_column else [None] * len(rows)
    attributes = read_attributes(dataset, rows)
    batch = RowBatch(kind, column, [], [], [], [])
    for i, row in enumerate(rows.tolist()):
        if raw_values[i] is None:
            continue
        location = dataset.location(row)
        try:
            thumbnail = b"" if images[i] is None else make_thumbnail(images[i])
        except ValueError as e:
            bad_samples.append(BadSample(row, image_column or column, location, str(e)))
            continue
        captions = list(dict.fromkeys(flatten_captions(column_texts[i] for column_texts in texts)))
        batch.rows.append(row)
        batch.locations.append(location)
        batch.values.append(caption_list(raw_values[i]) if kind == "text" else raw_values[i])
        path = _file_path(images[i], raw_values[i])
        info = RowInfo(location, kind, captions, attributes[i], path)
        batch.infos.append(info.pack(thumbnail))
    return batch


def embed_rows(
    model: EmbeddingModel, batch: RowBatch, bad_samples: list[BadSample]
) -> tuple[Float[np.ndarray, "n D"], list[bytes]]:
    """Return the embeddings of a batch and the row infos; values that fail are left out.

    Args:
        model: the model.
        batch: the rows.
        bad_samples: values that cannot be embedded are appended to it.
    """
    if not batch.values:
        return np.zeros((0, 0), np.float32), []
    try:
        return embed_values(model, batch.kind, batch.values), batch.infos
    except SensoriumError:
        pass  # one by one, to find which
    vectors: list[np.ndarray] = []
    infos: list[bytes] = []
    for i, row in enumerate(batch.rows):
        try:
            vectors.append(embed_values(model, batch.kind, batch.values[i : i + 1])[0])
        except SensoriumError as e:
            bad_samples.append(BadSample(row, batch.column, batch.locations[i], str(e)))
        else:
            infos.append(batch.infos[i])
    return np.array(vectors), infos


def _file_path(*values: Any) -> str:
    """Return the absolute path of the first value that is a file, as text; "" where none is."""
    path = next((value for value in values if isinstance(value, Path)), None)
    return "" if path is None else str(path.absolute()).encode(errors="replace").decode()


def embed_values(
    model: EmbeddingModel, kind: str, values: Sequence[Any]
) -> Float[np.ndarray, "N D"]:
    """Return unit embeddings; those of a list of texts are averaged.

    Args:
        model: the model.
        kind: column type: text, image, ...
        values: values, or lists of texts.

    Raises:
        SensoriumError: an embedding is zero or not finite.
    """
    if not values or not isinstance(values[0], list):
        return normalize(model.embed(**{kind: list(values)}), "the embedding of a value")
    vectors = model.embed(**{kind: [text for texts in values for text in texts]})
    sizes = np.array([len(texts) for texts in values])
    sums = np.add.reduceat(vectors, np.cumsum(sizes) - sizes, axis=0)
    return normalize(sums, "the mean embedding of a row's texts")


def normalize(vectors: Float[np.ndarray, "N D"], name: str) -> Float[np.ndarray, "N D"]:
    """Return the vectors with length 1.

    Args:
        vectors: the vectors.
        name: what they are, for the error.

    Raises:
        SensoriumError: a vector is zero or not finite.
    """
    length = np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    invalid = ~(np.isfinite(length) & (length > 0))
    if invalid.any():
        raise SensoriumError(
            f"{name[0].upper()}{name[1:]} has no direction: row {np.flatnonzero(invalid)[0]} is "
            "zero, infinite or NaN. Leave it out."
        )
    return (vectors / length).astype(np.float32)
