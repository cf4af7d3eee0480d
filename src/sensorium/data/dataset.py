"""A dataset: rows of raw values, the type of each column, and the splits; no image is decoded."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.data.captions import caption_list
from sensorium.data.row_keys import describe_row_key, raw_values, row_keys
from sensorium.data.schema import Schema, split_pair
from sensorium.data.splits import (
    SPLIT_FRACTIONS,
    assign_folds,
    group_rows_by_split,
    sort_splits,
    split_by_hash,
)
from sensorium.data.synonyms import Synonyms
from sensorium.data.tables import Table
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality
from sensorium.nn.tokens import ColumnKey

if TYPE_CHECKING:
    from sensorium.data.cache.prepared import PreparedDataset
    from sensorium.data.describe import DatasetSummary

Splits = Mapping[str, np.ndarray]  # name -> int64 row numbers


class Dataset:
    """N rows of typed columns.

    Args:
        table: the raw values.
        schema: the type of each column.
        name: its name in reports.
        max_invalid_fraction: the largest fraction of rows that may be invalid.
        splits: the rows of each split and a description of how they were made; by default they are
            taken from the split column, or else made by a hash of each row's group or content.
        parent: the dataset of which this one is a part, and which of its rows these are; each row
            stays in its split.

    Attributes:
        bad_samples: the rows that were left out when the table was read.
        source: the arguments of `Dataset.open`, so that the dataset can be opened again.
        synonyms: the synonym list of each augmented text column.
        input_columns: all columns as they were read, where every row is predicted.
    """

    def __init__(
        self,
        table: Table,
        schema: Schema,
        name: str = "data",
        *,
        max_invalid_fraction: float = 0.01,
        splits: tuple[Splits, str] | None = None,
        parent: "tuple[Dataset, np.ndarray] | None" = None,
    ):
        self.table = table
        self.schema = replace(schema, num_rows=len(table))
        self.name = name
        self.max_invalid_fraction = max_invalid_fraction
        self.group_column = schema.find_role("group")
        self.bad_samples: list[BadSample] = list(table.bad_samples)
        self.source: dict[str, Any] = {}
        self.synonyms: dict[str, Synonyms] = {}
        self.input_columns: dict[str, Any] = {}
        self._fixed_splits = splits
        self._parent = parent

    @classmethod
    def open(
        cls,
        source: str | os.PathLike[str],
        *,
        split: str | None = None,
        group: str | None = None,
        types: Mapping[str, str | Modality] | None = None,
        test: str | os.PathLike[str] | None = None,
        max_invalid_fraction: float = 0.01,
        synonyms: Mapping[str, str | os.PathLike[str]] | None = None,
        **source_options: Any,
    ) -> "Dataset":
        """Open a folder, a file (CSV, TSV, JSONL, Parquet) or a bundled dataset (emoji, scenes).

        Args:
            source: a path or the name of a bundled dataset.
            split: the column that holds each row's split, or a file that does (see
                `splits.read_splits`).
            group: the column whose equal values mark rows that must stay in one split.
            types: column types where the inferred ones are wrong, e.g.
                {"price": "ignore", "caption": "text", "photo": Image(size=128)}.
            test: another source, whose rows become the split "test".
            max_invalid_fraction: the largest fraction of rows that may be invalid.
            synonyms: a synonym list for each text column to augment, e.g. {"title": "words.txt"}:
                one comma-separated group per line. Training texts get paraphrases as additional
                captions.
            **source_options: the `encoding` of text files, or the options of a bundled dataset; and
                `known_types`, types and roles of columns that the source may have, such as those of
                a run, used where neither `types` nor `group` names another.

        Raises:
            SensoriumError: if something cannot be read or is missing.
        """
        from sensorium.data.open import open_table  # not needed where a model is served

        known_types = source_options.pop("known_types", None)
        all_types = {**(types or {}), **({group: "group"} if group else {})}
        test_path = None if test is None else Path(test)
        opened = open_table(
            Path(source),
            all_types,
            split,
            test_path,
            max_invalid_fraction,
            source_options,
            known_types,
        )
        dataset = cls(*opened, max_invalid_fraction=max_invalid_fraction)
        synonym_files = dataset._load_synonyms(synonyms)
        named_types = {name: kind for name, kind in (types or {}).items() if isinstance(kind, str)}
        options = {"split": split, "group": group, "test": test, **source_options}
        options |= {"types": named_types, "synonyms": synonym_files}
        dataset.source = _source_arguments(source, max_invalid_fraction, options)
        return dataset

    @classmethod
    def open_with_schema(
        cls,
        source: str | os.PathLike[str],
        schema: Schema,
        *,
        max_invalid_fraction: float = 0.01,
        **source_options: Any,
    ) -> "Dataset":
        """Open a source whose columns have the types of a trained run; nothing is inferred.

        Args:
            source: a path or the name of a bundled dataset.
            schema: the schema of the run. Columns that it lacks are ignored; some of its own may be
                missing.
            max_invalid_fraction: the largest fraction of rows that may be invalid.
            **source_options: the `encoding` of text files, or the options of a bundled dataset.

        Raises:
            SensoriumError: if the source cannot be read or has none of the columns.
        """
        from sensorium.data.open import open_table_with_schema

        opened = open_table_with_schema(Path(source), schema, max_invalid_fraction, source_options)
        return cls(*opened, max_invalid_fraction=max_invalid_fraction)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        names = [f"{c.name} ({c.kind})" for c in self.schema.columns.values()]
        if len(names) > 5:
            names = [*names[:4], f"{len(names) - 4} more columns"]
        columns = ", ".join(names) or "no columns"
        return f"Dataset({self.name!r}, {len(self):,} rows: {columns}; {len(self.bad_samples)} bad)"

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw values of some rows, None where missing.

        Args:
            column: the name of the column.
            rows: row numbers.

        Returns:
            A Path, bytes or uint8 array (image); a Path, list or array (series, audio); a str or
            list[str] (text); a float; or a str. A training text of a column with synonyms is
            followed by its paraphrases.
        """
        values = raw_values(self.table, self.schema, column, rows)
        synonyms = self.synonyms.get(column)
        if synonyms is None:
            return values
        is_train = self._train_mask[np.asarray(rows, np.int64)].tolist()
        return [
            _add_paraphrases(value, synonyms) if train else value
            for value, train in zip(values, is_train, strict=True)
        ]

    def _load_synonyms(
        self, synonyms: Mapping[str, str | os.PathLike[str]] | None
    ) -> dict[str, str]:
        """Load the synonym list of each column; return the absolute path of each file."""
        if not isinstance(synonyms, Mapping | None):
            raise SensoriumError(
                f"--synonyms {synonyms} names no column. Give COLUMN=FILE, e.g. title=words.txt "
                "(in Python a dict)."
            )
        paths: dict[str, str] = {}
        for name, path in (synonyms or {}).items():
            column, file = split_pair(f"{name}={path}", self.schema.columns)
            kind = self.schema.get_column(column).kind
            if kind != "text":
                raise SensoriumError(
                    f"--synonyms {column}={file}: the column {column!r} is {kind}, not text. "
                    "Name a text column."
                )
            self.synonyms[column] = Synonyms.from_file(Path(file))
            paths[column] = str(Path(file).resolve())
        return paths

    @cached_property
    def _train_mask(self) -> np.ndarray:
        """The rows of the training split, bool [N]."""
        return np.isin(np.arange(len(self)), self.splits.get("train", []))

    def location(self, row: int) -> str:
        """Return the location of a row in messages: 'photos/a.jpg' or 'products.csv:17'."""
        return self.table.locations[int(row)]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Dataset":
        """Return the dataset of these rows, in this order; each stays in its split.

        Args:
            rows: row numbers, or a bool mask of all rows.
        """
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        subset = Dataset(
            replace(self.table.take(rows), bad_samples=[]),
            self.schema,
            f"{self.name} (subset)",
            max_invalid_fraction=self.max_invalid_fraction,
            parent=(self, rows),
        )
        subset.synonyms = self.synonyms
        return subset

    def folds(self, num_folds: int) -> "list[Dataset]":
        """Return one dataset per fold, where that part of the training split is the split "fold".

        Rows of one group stay in one fold (see `splits.assign_folds`); the other splits stay as
        they are.

        Raises:
            SensoriumError: if there are fewer groups of training rows than folds.
        """
        train = self.splits.get("train", np.zeros(0, np.int64))
        fold = assign_folds(list(self._row_keys(train)), num_folds)
        return [
            self.with_splits(
                {**self.splits, "train": train[fold != i], "fold": train[fold == i]},
                f"{self.split_rule}; fold is {i + 1} of {num_folds} of train",
            )
            for i in range(num_folds)
        ]

    def with_splits(self, splits: Splits, rule: str) -> "Dataset":
        """Return the same rows in other splits."""
        other = Dataset(
            self.table,
            self.schema,
            self.name,
            max_invalid_fraction=self.max_invalid_fraction,
            splits=(splits, rule),
        )
        other.bad_samples = self.bad_samples
        other.source = self.source
        other.synonyms = self.synonyms
        return other

    @property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows of each split: "train", "val", "test", or the data's own names."""
        return self._splits_and_rule[0]

    @property
    def split_rule(self) -> str:
        """How the splits were made, as text."""
        return self._splits_and_rule[1]

    @cached_property
    def _splits_and_rule(self) -> tuple[dict[str, np.ndarray], str]:
        """The rows of each split and how they were made."""
        if self._fixed_splits is not None:
            splits, rule = self._fixed_splits
            return sort_splits(splits), rule
        if self._parent is not None:
            parent, rows = self._parent
            inherited = {
                name: np.flatnonzero(np.isin(rows, members))
                for name, members in parent.splits.items()
            }
            return inherited, parent.split_rule
        hash_rule = f"by md5 of {describe_row_key(self.schema)}"
        column = self.schema.find_role("split")
        splits = {} if column is None else group_rows_by_split(self.table.columns[column])
        if not splits.keys() - {"train"}:
            return split_by_hash(self._row_keys(), SPLIT_FRACTIONS), f"80 : 10 : 10 {hash_rule}"
        rule = f"from the column {column!r}"
        unassigned = np.setdiff1d(np.arange(len(self)), np.concatenate(list(splits.values())))
        if "train" not in splits and len(unassigned):
            splits = {"train": unassigned, **splits}
            rule += ", the other rows are train"
        if "train" in splits and "val" not in splits:
            train = splits["train"]
            parts = split_by_hash(self._row_keys(train), {"train": 0.9, "val": 0.1})
            splits |= {name: train[rows] for name, rows in parts.items()}
            rule += f"; val is 10 % of train {hash_rule}"
        return sort_splits(splits), rule

    def groups(self) -> np.ndarray:
        """Return the group of each row, int64 [N].

        Rows of one group have the same value in the group column or, without one, the same content:
        the bytes of the image, else the text, the audio or the series, else all values.
        """
        return self._groups

    @cached_property
    def _groups(self) -> np.ndarray:
        """The group of each row, int64 [N], numbered in order of appearance."""
        numbers: dict[str, int] = {}
        return np.fromiter(
            (numbers.setdefault(key, len(numbers)) for key in self._row_keys()), np.int64, len(self)
        )

    def _row_keys(self, rows: np.ndarray | None = None) -> Iterator[str]:
        """Yield the key of each row; rows of one group have equal keys."""
        rows = np.arange(len(self)) if rows is None else rows
        return row_keys(self.table, self.schema, rows)

    def prepare(
        self,
        schema: Schema,
        columns: Sequence[ColumnKey],
        *,
        max_invalid_fraction: float | None = None,
        **options: Any,
    ) -> "PreparedDataset":
        """Decode every value of some columns once and cache it on disk.

        Args:
            schema: the settings with which the columns are read.
            columns: the columns, as `PreparedDataset` takes them.
            max_invalid_fraction: the largest fraction of rows that may be invalid; by default this
                dataset's own.
            **options: further keywords of `PreparedDataset`.
        """
        from sensorium.data.cache.prepared import PreparedDataset

        limit = self.max_invalid_fraction if max_invalid_fraction is None else max_invalid_fraction
        return PreparedDataset(self, schema, columns, max_invalid_fraction=limit, **options)

    def describe(self) -> "DatasetSummary":
        """Return the summary that `sensorium data PATH` prints. Every file is read."""
        from sensorium.data.describe import describe_dataset

        return describe_dataset(self)


def _source_arguments(
    source: str | os.PathLike[str], max_invalid_fraction: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `Dataset.open` as JSON values, without those that are not set."""
    path = Path(source)
    arguments: dict[str, Any] = {
        "path": str(path.resolve() if path.exists() else path),
        "max_invalid_fraction": max_invalid_fraction,
    }
    for name, value in options.items():
        if value not in (None, {}):
            plain = isinstance(value, dict | list | tuple | int | float)
            arguments[name] = value if plain else str(value)
    return arguments


def _add_paraphrases(value: Any, synonyms: Synonyms) -> Any:
    """Return the captions of a raw value followed by paraphrases of each."""
    captions = caption_list(value)
    paraphrases = [
        paraphrase
        for caption in captions
        if isinstance(caption, str)
        for paraphrase in synonyms.paraphrase(caption)
    ]
    return [*captions, *paraphrases] if paraphrases else value
