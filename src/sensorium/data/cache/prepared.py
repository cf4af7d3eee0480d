"""A data set made ready: pictures decoded once and mapped from disk, words as numbers, batches by one gather a column.

N rows   C captions   I ids of all captions   B batch   H side as stored
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Protocol, runtime_checkable

import numpy as np
import PIL.Image
import torch
from jaxtyping import Bool, Int, Int32
from rich.console import Console
from torch import Tensor

from sensorium.data.bad_samples import check_invalid_fraction
from sensorium.data.cache.image_cache import ImageCache, cache_images
from sensorium.data.cache.ragged import build_ragged_column
from sensorium.data.schema import Schema, extensions
from sensorium.data.splits import sample_evenly
from sensorium.data.tables import BadSample
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.nn.tokens import Batch, ColumnKey, column_label, column_names

ROWS_PER_READ = 4096  # rows whose texts are held at a time
MAX_WARNINGS = 5  # bad values named one by one
MAX_FIT_ROWS, FIT_BATCH_SIZE = (
    100_000,
    512,
)  # rows that an encoder meets before it learns, and at a time


@runtime_checkable
class Source(Protocol):
    """What is asked of a data set here."""

    bad_samples: list[BadSample]

    def __len__(self) -> int: ...
    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]: ...
    def location(self, row: int) -> str: ...
    def groups(self) -> np.ndarray: ...


@runtime_checkable
class ColumnStore(Protocol):
    """One column, ready."""

    valid: Bool[np.ndarray, " N"]
    errors: dict[int, str]  # row -> why it could not be read

    def batch(
        self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, augment: Mapping[str, float]
    ) -> Tensor: ...


class PreparedDataset:
    """N rows with their values at hand. A value that is missing, or that could not be read, is not `valid`.

    columns: names; ("caption", "caption_de") reads several text columns as one whose captions are all of theirs.
    max_invalid_fraction: the share of rows that may be unusable, those that `dataset` left out included; SensoriumError beyond it.
    derived: further columns, ready already.
    bad: what could not be read, by name.
    """

    def __init__(
        self,
        dataset: Source,
        schema: Schema,
        columns: Sequence[ColumnKey],
        *,
        max_invalid_fraction: float = 0.01,
        derived_columns: Mapping[ColumnKey, ColumnStore] | None = None,
        quiet: bool = False,
    ):
        self.dataset, self.schema = dataset, schema
        console = Console(stderr=True, quiet=quiet)
        self.columns: dict[ColumnKey, ColumnStore] = {
            name: _build_column(dataset, schema, name, console) for name in columns
        }
        self.columns |= derived_columns or {}
        found = [
            BadSample(row, column_label(name), dataset.location(row), why)
            for name, column in self.columns.items()
            for row, why in sorted(column.errors.items())
        ]
        self.bad_samples = [*dataset.bad_samples, *found]
        check_invalid_fraction(
            self.bad_samples, len(dataset) + len(dataset.bad_samples), max_invalid_fraction
        )
        for b in found[:MAX_WARNINGS]:
            console.print(
                f"left out: {b.location}, {b.column}: {b.reason}",
                highlight=False,
                markup=False,
                soft_wrap=True,
            )
        if len(found) > MAX_WARNINGS:
            console.print(f"left out: {len(found) - MAX_WARNINGS} more")

    def __len__(self) -> int:
        return len(self.dataset)

    @cached_property
    def groups(self) -> Int[np.ndarray, " N"]:
        """Rows of one number show the same thing."""
        return self.dataset.groups()

    def complete_rows(
        self, rows: Int[np.ndarray, " R"] | Sequence[int] | None = None
    ) -> Int[np.ndarray, " K"]:
        """Those of `rows` (default: all) in which no column is missing or bad."""
        rows = np.asarray(range(len(self)) if rows is None else rows, np.int64)
        return (
            rows[np.all([column.valid[rows] for column in self.columns.values()], axis=0)]
            if self.columns
            else rows
        )

    def batch(
        self,
        rows: Int[np.ndarray, " B"] | Sequence[int],
        rng: torch.Generator | None = None,
        augment: Mapping[ColumnKey, Mapping[str, float]] | None = None,
        *,
        share_captions: bool = False,
    ) -> Batch:
        """The values of some rows, flags of the columns that have gaps, the rows' numbers and groups.

        Without `rng`: each row's first caption, nothing changed. With it: a caption drawn for each row, and the changes
        that `augment` asks for, {column: {change: how far}}. The same rng gives the same batch. With `alike`, rows of
        one group share the caption drawn, where they have the same ones.
        """
        rows, augment = np.asarray(rows, np.int64), augment or {}
        group = self.groups[rows]
        for name in augment:
            if name not in self.columns:
                raise SensoriumError(
                    f"augment names the column {name!r}; this run reads "
                    f"{', '.join(map(column_label, self.columns))}."
                )
        out, present = dict[ColumnKey, Tensor](), dict[ColumnKey, Tensor]()
        for name, column in self.columns.items():
            how = augment.get(name, {})
            if share_captions and isinstance(column, TextColumn):
                out[name] = column.batch(rows, rng, how, group)
            else:
                out[name] = column.batch(rows, rng, how)
            if not column.valid.all():
                present[name] = torch.from_numpy(column.valid[rows])
        return Batch(out, present, torch.from_numpy(rows), torch.from_numpy(group))

    def iter_values(self, column: ColumnKey, rows: Int[np.ndarray, " R"]) -> Iterator[Tensor]:
        """What `rows` hold of a column, as it is, in batches; of many rows MET, of several captions all."""
        stored = self.columns[column]
        rows = sample_evenly(rows[stored.valid[rows]], MAX_FIT_ROWS)
        several = int(stored.caption_counts.max()) if isinstance(stored, TextColumn) else 1
        for start in range(0, len(rows), FIT_BATCH_SIZE):
            part = rows[start : start + FIT_BATCH_SIZE]
            yield (
                stored.batch(part, None, {})
                if several == 1
                else stored.batch(part, torch.Generator(), {"captions": several}).flatten(0, 1)
            )

    def image(self, column: ColumnKey, row: int) -> PIL.Image.Image:
        """What is stored of one row's picture, to look at."""
        stored = self.columns[column]
        assert isinstance(stored, ImageColumn)
        return PIL.Image.fromarray(np.ascontiguousarray(stored.pixels[row].transpose(1, 2, 0)))

    def caption(self, column: ColumnKey, row: int) -> str:
        """A row's first caption; "" where there is none."""
        return next(
            (
                text
                for name in column_names(column)
                for text in _as_texts(self.dataset.raw(name, [row])[0])
            ),
            "",
        )


def embedding_key(image: ColumnKey) -> ColumnKey:
    """Return the key under which a frozen encoder's embeddings of an image column are stored.

    It cannot clash with joined text columns, whose first name is never an image column.
    """
    return *column_names(image), "vector"


class ImageColumn:
    """Decoded pictures, mapped from disk."""

    def __init__(self, image: Image, cache: ImageCache):
        self.image, self.pixels, self.fingerprint = image, cache.pixels, cache.fingerprint
        self.valid = np.ones(len(cache.pixels), bool)
        self.valid[list(cache.errors)] = False
        self.errors = {row: why for row, why in cache.errors.items() if why}

    def batch(
        self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, augment: Mapping[str, float]
    ) -> Tensor:
        return self.image.preprocess(torch.from_numpy(self.pixels[rows]), rng, **augment)


class TextColumn:
    """Every caption as ids, end to end; those of a row are neighbours.

    Caption c is ids[starts[c]:starts[c + 1]]; row n has the captions first[n] to first[n + 1].
    """

    def __init__(
        self,
        text: Text,
        ids: Int32[np.ndarray, " I"],
        lengths: Int[np.ndarray, " C"],
        caption_counts: Int[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.text, self.ids, self.lengths, self.caption_counts, self.errors = (
            text,
            ids,
            np.append(lengths, 0),
            caption_counts,
            errors,
        )
        self.token_offsets = np.append(0, lengths.cumsum())
        self.caption_offsets = caption_counts.cumsum() - caption_counts
        self.valid = caption_counts > 0

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,
    ) -> Int[Tensor, "B *K T"]:
        """One caption a row, or `how["captions"]`, spread evenly over the row's list from a random start.

        `alike`: rows of one number get the captions at the same places of their lists.
        """
        rest = {name: value for name, value in augment.items() if name != "captions"}
        each = int(augment.get("captions", 1)) if rng is not None else 1
        first, counts = self.caption_offsets[rows, None], self.caption_counts[rows, None]
        which = first
        if rng is not None:
            drawn = torch.rand(len(rows), generator=rng).double().numpy()[:, None]
            drawn = drawn if group is None else drawn[np.unique(group, return_inverse=True)[1]]
            which = first + ((drawn + np.arange(each)) / each * counts).astype(np.int64)
        ids = self._pad_ids(which.reshape(-1), (counts > 0).repeat(each, 1).reshape(-1))
        ids = self.text.augment(ids, rng, **rest) if rng is not None and rest else ids
        return ids.unflatten(0, (len(rows), each)) if each > 1 else ids

    def _pad_ids(
        self, captions: Int[np.ndarray, " C"], valid: Bool[np.ndarray, " C"]
    ) -> Int[Tensor, "C T"]:
        """These captions, padded to the longest; nothing but padding where one is not real."""
        lengths = self.lengths[captions] * valid
        place = np.arange(max(1, lengths.max(initial=0)))
        there = place < lengths[:, None]
        ids = np.full(there.shape, self.text.pad, np.int64)
        ids[there] = self.ids[(self.token_offsets[captions][:, None] + place)[there]]
        return torch.from_numpy(ids)


class ArrayColumn:
    """Numbers or categories; a missing one is zero."""

    def __init__(
        self,
        modality: Modality,
        values: np.ndarray,
        valid: Bool[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.modality, self.values, self.valid, self.errors = modality, values, valid, errors

    def batch(
        self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, augment: Mapping[str, float]
    ) -> Tensor:
        batch = self.modality.collate([*map(np.asarray, self.values[rows])])
        return (
            self.modality.augment(batch, rng, **augment) if rng is not None and augment else batch
        )


def _build_column(dataset: Source, schema: Schema, key: ColumnKey, console: Console) -> ColumnStore:
    name, *others = parts = column_names(key)
    for part in parts:
        if part not in schema.columns:
            raise SensoriumError(
                f"there is no column {part!r}; there are {', '.join(schema.columns)}."
            )
    modality = schema.columns[name].modality
    if isinstance(modality, Text):
        return _build_text_column(dataset, parts, modality)
    if others:
        raise SensoriumError(
            f"columns that are read as one must hold text; {name!r} holds {modality.kind}."
        )
    if isinstance(modality, Image):
        return ImageColumn(
            modality,
            cache_images(modality, partial(dataset.raw, name), len(dataset), name, console),
        )
    if extensions(modality.kind) is not None:
        return build_ragged_column(modality, partial(dataset.raw, name), len(dataset))
    return _build_array_column(dataset, name, modality)


def _build_array_column(dataset: Source, name: str, modality: Modality) -> ArrayColumn:
    raw = dataset.raw(name, np.arange(len(dataset)))
    loaded, wrong = _load_values(modality, raw)
    there = next((v for v in loaded if v is not None), np.zeros((), np.float32))
    values = (
        np.stack([np.zeros_like(there) if v is None else v for v in loaded])
        if raw
        else there[None][:0]
    )
    return ArrayColumn(modality, values, np.array([v is not None for v in loaded], bool), wrong)


def _load_values(
    modality: Modality, raw: Sequence[Any]
) -> tuple[list[np.ndarray | None], dict[int, str]]:
    """(each value or None, why for those that could not be read)."""
    out: list[np.ndarray | None] = []
    wrong: dict[int, str] = {}
    for i, value in enumerate(raw):
        try:
            out.append(None if value is None else modality.load(value))
        except ValueError as e:
            out.append(None)
            wrong[i] = str(e)
    return out, wrong


def _as_texts(raw: Any) -> list[Any]:
    return [] if raw is None else list(raw) if isinstance(raw, list | tuple) else [raw]


def _build_text_column(dataset: Source, names: Sequence[str], text: Text) -> TextColumn:
    """The captions of all the columns `names`, encoded READ rows at a time."""
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    counts, wrong = np.zeros(len(dataset), np.int64), dict[int, str]()
    for start in range(0, len(dataset), ROWS_PER_READ):
        rows, texts = range(start, min(start + ROWS_PER_READ, len(dataset))), list[str]()
        for row, *values in zip(rows, *(dataset.raw(name, rows) for name in names), strict=True):
            found = [t for value in values for t in _as_texts(value)]
            strange = [t for t in found if not isinstance(t, str)]
            if strange:
                wrong[row] = f"expected text, found {type(strange[0]).__name__}"
                continue
            texts += found
            counts[row] = len(found)
        encoded = text.encode(texts)
        ids += encoded
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
    return TextColumn(text, np.concatenate(ids), np.concatenate(lengths), counts, wrong)
