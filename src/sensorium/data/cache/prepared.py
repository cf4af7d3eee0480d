"""A dataset ready for training: decoded images, token ids and numbers, gathered into batches.

N rows   R some rows   B batch
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int
from torch import Tensor

from sensorium.data.bad_samples import (
    BadSample,
    check_invalid_fraction,
    summarize_bad_samples,
)
from sensorium.data.batching import iter_batches
from sensorium.data.cache.columns import ArrayColumn, Augment, ColumnStore, ImageColumn, TextColumn
from sensorium.data.cache.image_cache import cache_images
from sensorium.data.cache.ragged import build_ragged_column
from sensorium.data.captions import flatten_captions
from sensorium.data.schema import Schema, extensions
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError
from sensorium.io.terminal import SafeConsole
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch, ColumnKey, column_label, column_names

ROWS_PER_READ = 4096  # rows whose texts are in memory at a time
MAX_FIT_ROWS = 100_000  # rows on which parts of an encoder are fitted before training
FIT_BATCH_SIZE = 512


@runtime_checkable
class DataSource(Protocol):
    """A dataset, as far as it is needed to prepare it.

    Attributes:
        bad_samples: the rows that were left out when it was read.
    """

    bad_samples: list[BadSample]

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw values of some rows, None where missing."""
        ...

    def location(self, row: int) -> str:
        """Return the location of a row in messages."""
        ...

    def groups(self) -> np.ndarray:
        """Return the group of each row, int64 [N]."""
        ...


class PreparedDataset:
    """N rows with decoded values. A value that is missing, or could not be read, is not `valid`.

    Args:
        dataset: the raw values.
        schema: the settings with which the columns are read.
        columns: the columns; ("caption", "caption_de") joins text columns into one with the
            captions of all.
        max_invalid_fraction: the largest fraction of rows that may be invalid, including those that
            `dataset` left out.
        derived_columns: further columns, which are prepared already.
        quiet: do not report progress and bad values on stderr.

    Attributes:
        columns: the prepared columns.
        bad_samples: what could not be read.

    Raises:
        SensoriumError: if too many rows are invalid, or there is no such column.
    """

    def __init__(
        self,
        dataset: DataSource,
        schema: Schema,
        columns: Sequence[ColumnKey],
        *,
        max_invalid_fraction: float = 0.01,
        derived_columns: Mapping[ColumnKey, ColumnStore] | None = None,
        quiet: bool = False,
    ):
        self.dataset = dataset
        self.schema = schema
        console = SafeConsole(stderr=True, quiet=quiet)
        self.columns: dict[ColumnKey, ColumnStore] = {
            key: _build_column(dataset, schema, key, console) for key in columns
        }
        self.columns |= derived_columns or {}
        bad_values = [
            BadSample(row, column_label(key), dataset.location(row), error)
            for key, column in self.columns.items()
            for row, error in sorted(column.errors.items())
        ]
        self.bad_samples = [*dataset.bad_samples, *bad_values]
        num_rows = len(dataset) + len(dataset.bad_samples)
        check_invalid_fraction(self.bad_samples, num_rows, max_invalid_fraction)
        _report_bad_values(bad_values, console)

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def groups(self) -> Int[np.ndarray, " N"]:
        """The group of each row."""
        return self.dataset.groups()

    def complete_rows(
        self,
        rows: Int[np.ndarray, " R"] | Sequence[int] | None = None,
        columns: Iterable[ColumnKey] | None = None,
    ) -> Int[np.ndarray, " K"]:
        """Return those of `rows` (default: all) that have a value in each of `columns` (all)."""
        rows = np.asarray(range(len(self)) if rows is None else rows, np.int64)
        stored = [self.columns[key] for key in (self.columns if columns is None else columns)]
        if not stored:
            return rows
        return rows[np.all([column.valid[rows] for column in stored], axis=0)]

    def batch(
        self,
        rows: Int[np.ndarray, " B"] | Sequence[int],
        rng: torch.Generator | None = None,
        augment: Augment | None = None,
        *,
        share_captions: bool = False,
    ) -> Batch:
        """Return the values of some rows, with presence masks for columns that have gaps.

        Args:
            rows: row numbers.
            rng: source of random captions and augmentations; the same state gives the same
                batch. None: the first caption of each row, without augmentation.
            augment: the augmentation of each column, {column: {transform: strength}}.
            share_captions: rows of one group use the same position in their lists of captions.

        Raises:
            SensoriumError: if `augment` names an unknown column.
        """
        rows = np.asarray(rows, np.int64)
        augment = augment or {}
        for key in augment:
            if key not in self.columns:
                raise SensoriumError(
                    f"augment names the unknown column {key!r}. The columns are "
                    f"{', '.join(map(column_label, self.columns))}."
                )
        group = self.groups[rows]
        caption_group = group if share_captions else None
        columns: dict[ColumnKey, Tensor] = {}
        present: dict[ColumnKey, Tensor] = {}
        for key, column in self.columns.items():
            columns[key] = column.batch(rows, rng, augment.get(key, {}), caption_group)
            if not column.valid.all():
                present[key] = torch.from_numpy(column.valid[rows])
        return Batch(columns, present, torch.from_numpy(rows), torch.from_numpy(group))

    def iter_values(self, column: ColumnKey, rows: Int[np.ndarray, " R"]) -> Iterator[Tensor]:
        """Yield the values of a column in batches, without augmentation and with all captions.

        Args:
            column: the column.
            rows: row numbers; of more than MAX_FIT_ROWS, evenly spaced ones are read.
        """
        stored = self.columns[column]
        rows = sample_evenly(rows[stored.valid[rows]], MAX_FIT_ROWS)
        max_captions = int(stored.caption_counts.max()) if isinstance(stored, TextColumn) else 1
        for batch in iter_batches(rows, FIT_BATCH_SIZE):
            if max_captions == 1:
                yield stored.batch(batch, None, {})
            else:
                captions = stored.batch(batch, torch.Generator(), {"captions": max_captions})
                yield captions.flatten(0, 1)

    def image_column(self, column: ColumnKey) -> ImageColumn:
        """Return a column of images.

        Raises:
            TypeError: if the column holds something else.
        """
        stored = self.columns[column]
        if not isinstance(stored, ImageColumn):
            raise TypeError(f"{column_label(column)} is not an image column")
        return stored

    def image(self, column: ColumnKey, row: int) -> PIL.Image.Image:
        """Return one row's image as it is stored, for display."""
        pixels = self.image_column(column).pixels[row]
        return PIL.Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    def caption(self, column: ColumnKey, row: int) -> str:
        """Return a row's first caption, "" if it has none."""
        values = (self.dataset.raw(name, [row])[0] for name in column_names(column))
        return next(iter(flatten_captions(values)), "")


def embedding_key(image: ColumnKey) -> ColumnKey:
    """Return the key under which a frozen encoder's embeddings of an image column are stored.

    It cannot clash with joined text columns, whose first name is never an image column.
    """
    return *column_names(image), "vector"


def _report_bad_values(bad_values: Sequence[BadSample], console: SafeConsole) -> None:
    """Print the bad values, grouped by reason."""
    for line in summarize_bad_samples(bad_values):
        console.print(f"left out: {line}", soft_wrap=True)


def _build_column(
    dataset: DataSource, schema: Schema, key: ColumnKey, console: SafeConsole
) -> ColumnStore:
    """Prepare one column, or several joined text columns."""
    names = column_names(key)
    for name in names:
        if name not in schema.columns:
            raise SensoriumError(
                f"There is no column {name!r}. The columns are {', '.join(schema.columns)}."
            )
    name = names[0]
    modality = schema.columns[name].modality
    if isinstance(modality, Text):
        return _build_text_column(dataset, names, modality)
    if len(names) > 1:
        raise SensoriumError(
            f"only text columns can be joined, but {name!r} is {modality.kind}. Name one column."
        )
    read = partial(dataset.raw, name)
    if isinstance(modality, Image):
        images = cache_images(modality, read, len(dataset), name, console)
        return ImageColumn(modality, images)
    if extensions(modality.kind) is not None:
        return build_ragged_column(modality, read, len(dataset))
    return _build_array_column(dataset, name, modality)


def _build_array_column(dataset: DataSource, name: str, modality: Modality) -> ArrayColumn:
    """Load every value of a column whose values have one shape."""
    loaded: list[np.ndarray | None] = []
    errors: dict[int, str] = {}
    for row, value in enumerate(dataset.raw(name, np.arange(len(dataset)))):
        try:
            loaded.append(None if value is None else modality.load(value))
        except ValueError as e:
            loaded.append(None)
            errors[row] = str(e)
    example = next((value for value in loaded if value is not None), np.zeros((), np.float32))
    if loaded:
        values = np.stack([np.zeros_like(example) if v is None else v for v in loaded])
    else:
        values = example[None][:0]
    valid = np.array([value is not None for value in loaded], bool)
    return ArrayColumn(modality, values, valid, errors)


def _build_text_column(dataset: DataSource, names: Sequence[str], text: Text) -> TextColumn:
    """Encode the captions of one column or several, ROWS_PER_READ rows at a time."""
    ids = [np.zeros(0, np.int32)]
    lengths = [np.zeros(0, np.int64)]
    caption_counts = np.zeros(len(dataset), np.int64)
    errors: dict[int, str] = {}
    for rows in iter_batches(range(len(dataset)), ROWS_PER_READ):
        texts: list[str] = []
        for row, *values in zip(rows, *(dataset.raw(name, rows) for name in names), strict=True):
            captions = flatten_captions(values)
            invalid = [caption for caption in captions if not isinstance(caption, str)]
            if invalid:
                errors[row] = f"expected text, not {type(invalid[0]).__name__}"
                continue
            texts += captions
            caption_counts[row] = len(captions)
        encoded = text.encode(texts)
        ids += encoded
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return TextColumn(text, np.concatenate(ids), np.concatenate(lengths), caption_counts, errors)
