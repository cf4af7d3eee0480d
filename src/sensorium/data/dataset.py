"""Rows of raw values, what each column means, which rows train and which judge. No picture is decoded here."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.data.cache.prefetch import prefetch
from sensorium.data.schema import Schema, extensions, split_pair, unknown_column_error
from sensorium.data.splits import (
    SPLIT_FRACTIONS,
    assign_folds,
    group_rows_by_split,
    sort_splits,
    split_by_hash,
)
from sensorium.data.synonyms import Synonyms
from sensorium.data.tables import BadSample, Table
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality
from sensorium.nn.tokens import ColumnKey

if TYPE_CHECKING:
    from sensorium.data.cache.prepared import PreparedDataset
    from sensorium.data.describe import DatasetSummary

READ_BLOCK_BYTES = 1 << 20  # bytes of a file that are held at a time


class Dataset:
    """N rows. `schema` says what their columns are; `bad` lists, by name, what was left out when they were read."""

    def __init__(
        self,
        table: Table,
        schema: Schema,
        name: str = "data",
        *,
        max_invalid_fraction: float = 0.01,
        parent: "tuple[Dataset, np.ndarray] | None" = None,
    ):
        self.table, self.schema, self.name, self.max_invalid_fraction = (
            table,
            schema,
            name,
            max_invalid_fraction,
        )
        self.group_column = schema.find_role("group")
        self.bad_samples: list[BadSample] = list(table.bad_samples)
        self.source: dict[str, Any] = {}  # what `open` was asked for, so that it can be asked again
        self.synonyms: dict[
            str, Synonyms
        ] = {}  # column -> by what its texts of train are said in other ways too
        self._parent = parent  # the data set this is a part of, and which of its rows

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
        schema_from: Schema | None = None,
        **source_options: Any,
    ) -> "Dataset":
        """Read a folder, a file (CSV, TSV, JSONL, Parquet) or a set that comes along ("emoji", "scenes").

        split: the column that says which split a row is in, or a file that does (see `splits.read_splits`).
        group: the column whose equal values are the same thing, which must not be on both sides of a split.
        types: what columns are taken for, e.g. {"price": "ignore", "caption": "text", "photo": Image(size=128)}.
        test: another source, whose rows become the split "test".
        max_invalid_fraction: the share of rows that may be unusable.
        schema_from: the schema of a run, whose columns these are, as far as they are there; nothing is guessed then.
        source_options: `encoding` of text files; for a set that comes along, its own (see `data.emoji`, `data.scenes`).
        `synonyms`: of text columns, files of words that stand for each other, a group a line, parted by commas, e.g.
        {"title": "words.txt"}. Texts of train are there with some of them exchanged, too, as further captions.
        Raises SensoriumError, saying what to do, for whatever cannot be read or found.
        """
        from sensorium.data.open import (  # not needed where a model is served
            open_table,
            open_table_with_schema,
        )

        words = source_options.pop("synonyms", {}) if schema_from is None else {}
        if not isinstance(words, Mapping):
            raise SensoriumError(
                f"synonyms={words!r}: which column is it for? Give {{column: file}} "
                "(--synonyms title=words.txt)."
            )
        chosen = {**(types or {}), **({group: "group"} if group else {})}
        if schema_from is not None:
            return cls(
                *open_table_with_schema(
                    Path(source), schema_from, max_invalid_fraction, source_options
                ),
                max_invalid_fraction=max_invalid_fraction,
            )
        found = open_table(
            Path(source),
            chosen,
            split,
            None if test is None else Path(test),
            max_invalid_fraction,
            source_options,
        )
        opened = cls(*found, max_invalid_fraction=max_invalid_fraction)
        words = dict(
            split_pair(f"{name}={path}", opened.schema.columns) for name, path in words.items()
        )
        opened.synonyms = {name: opened._load_synonyms(name, path) for name, path in words.items()}
        at = Path(source)
        asked = {
            "split": split,
            "group": group,
            "test": test,
            **source_options,
            "types": {
                name: taken for name, taken in (types or {}).items() if isinstance(taken, str)
            },
            "synonyms": {name: str(Path(path).resolve()) for name, path in words.items()},
        }
        opened.source = {
            "path": str(at.resolve() if at.exists() else at),
            "max_invalid_fraction": max_invalid_fraction,
            **{
                k: v if isinstance(v, dict | list | tuple | int | float) else str(v)
                for k, v in asked.items()
                if v not in (None, {})
            },
        }
        return opened

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        names = [f"{c.name} ({c.kind})" for c in self.schema.columns.values()]
        more = [f"{len(names) - 4} more columns"] if len(names) > 5 else []
        shown = ", ".join(names[:4] + more if more else names) or "nothing to learn from"
        return f"Dataset({self.name!r}, {len(self):,} rows: {shown}; {len(self.bad_samples)} bad)"

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Raw values; None where missing.

        Path, bytes or uint8 array (picture); Path, list or array (series); str or list[str] (text); float; str.
        A text of train in a column that has `synonyms` is followed by other ways to say it.
        """
        values, words = self._raw_values(column, rows), self.synonyms.get(column)
        if words is None:
            return values
        return [
            _add_paraphrases(v, words) if learned else v
            for v, learned in zip(
                values, self._train_mask[np.asarray(rows, np.int64)].tolist(), strict=True
            )
        ]

    def _load_synonyms(self, column: str, path: str | os.PathLike[str]) -> Synonyms:
        """The list of a text column. Raises SensoriumError where it is none, or cannot be read."""
        if self.schema.get_column(column).kind != "text":
            raise SensoriumError(
                f"synonyms: the column {column!r} holds {self.schema.get_column(column).kind}, and no text"
            )
        return Synonyms.from_file(Path(path))

    @cached_property
    def _train_mask(self) -> np.ndarray:
        """bool [N]: rows of train."""
        return np.isin(np.arange(len(self)), self.splits.get("train", []))

    def _raw_values(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Raw values as the source has them."""
        if column not in self.table.columns:
            raise unknown_column_error(
                column, self.table.columns, f"Columns: {', '.join(self.table.columns)}."
            )
        values, rows = self.table.columns[column], np.asarray(rows, np.int64)
        kind = self.schema.columns[column].kind if column in self.schema.columns else ""
        if kind == "numeric":
            return [None if np.isnan(v) else v for v in values[rows].tolist()]
        if extensions(kind) is not None:
            return [
                self.table.base_folder(i) / v if isinstance(v := values[i], str) else v
                for i in rows.tolist()
            ]
        return [values[i] for i in rows.tolist()]

    def location(self, row: int) -> str:
        """A row's name in messages: 'photos/a.jpg', 'mine.csv:17'."""
        return self.table.locations[int(row)]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Dataset":
        """The data set of these rows, in this order; each stays in the split it was in."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        table = replace(self.table.take(rows), bad_samples=[])
        part = Dataset(
            table,
            self.schema,
            f"{self.name} (part)",
            max_invalid_fraction=self.max_invalid_fraction,
            parent=(self, rows),
        )
        part.synonyms = self.synonyms
        return part

    def folds(self, num_folds: int) -> "list[Dataset]":
        """n data sets of these rows, in each of which another part of train is the split "fold" instead.

        What shows the same thing stays in one fold (see `splits.in_folds`); the other splits are left as they are.
        """
        train = self.splits.get("train", np.zeros(0, np.int64))
        fold = assign_folds(list(self._row_keys(train)), num_folds)
        return [
            self._with_splits(
                {**self.splits, "train": train[fold != i], "fold": train[fold == i]},
                f"{self.split_rule}; fold is {i + 1} of {num_folds} of train",
            )
            for i in range(num_folds)
        ]

    def _with_splits(self, splits: dict[str, np.ndarray], rule: str) -> "Dataset":
        other = copy(self)
        other.__dict__.pop("_learned", None)
        other.splits, other._splits_and_rule = sort_splits(splits), (splits, rule)
        return other

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows of each split: "train", "val", "test", or names of the data's own."""
        return self._splits_and_rule[0]

    @property
    def split_rule(self) -> str:
        """How the splits were made, in words."""
        return self._splits_and_rule[1]

    @cached_property
    def _splits_and_rule(self) -> tuple[dict[str, np.ndarray], str]:
        if self._parent is not None:
            whole, rows = self._parent
            return {
                name: np.flatnonzero(np.isin(rows, r)) for name, r in whole.splits.items()
            }, whole.split_rule
        column, told = self.schema.find_role("split"), f"by md5 of {self._describe_split_key()}"
        given = group_rows_by_split(self.table.columns[column]) if column is not None else {}
        if not given.keys() - {"train"}:
            return split_by_hash(self._row_keys(), SPLIT_FRACTIONS), f"80 : 10 : 10 {told}"
        how = f"as the column {column!r} says"
        rest = np.setdiff1d(np.arange(len(self)), np.concatenate(list(given.values())))
        if "train" not in given and len(rest):
            given, how = {"train": rest, **given}, f"{how}, the rest train"
        if "train" in given and "val" not in given:
            parts = split_by_hash(self._row_keys(given["train"]), {"train": 0.9, "val": 0.1})
            given |= {name: given["train"][rows] for name, rows in parts.items()}
            how += f"; val is 10 % of train {told}"
        return sort_splits(given), how

    def groups(self) -> np.ndarray:
        """int64 [N]: rows of one number show the same thing. Equal values of the group column, or else equal content:
        the bytes of the picture, else the text, the sound, the series, all values where there is none of them."""
        return self._groups

    @cached_property
    def _groups(self) -> np.ndarray:
        seen: dict[str, int] = {}
        return np.fromiter(
            (seen.setdefault(key, len(seen)) for key in self._row_keys()), np.int64, len(self)
        )

    def _describe_split_key(self) -> str:
        if self.group_column is not None:
            return f"the column {self.group_column!r}"
        shown = self._content_column()
        return f"the content of {shown!r}" if shown else "all values"

    def _content_column(self) -> str | None:
        """The column by whose content rows are told apart."""
        columns = self.schema.columns.values()
        return next(
            (
                c.name
                for kind in ("image", "text", "audio", "series")
                for c in columns
                if c.kind == kind
            ),
            None,
        )

    def _row_keys(self, rows: np.ndarray | None = None) -> Iterator[str]:
        """What tells rows apart, row by row: equal keys are the same thing."""
        rows = np.arange(len(self)) if rows is None else rows
        named = (
            self._raw_values(self.group_column, rows)
            if self.group_column is not None
            else [None] * len(rows)
        )
        left = [int(row) for row, name in zip(rows, named, strict=True) if name is None]
        content = self._content_keys(left)
        return (f"group:{name}" if name is not None else next(content) for name in named)

    def _content_keys(self, rows: Sequence[int]) -> Iterator[str]:
        shown = self._content_column()
        if not rows:
            return iter(())
        if shown is None:
            names = [n for n in self.table.columns if n in self.schema.columns] or list(
                self.table.columns
            )
            return (repr([self.table.columns[n][i] for n in names]) for i in rows)

        def part(start: int) -> list[str]:
            some = rows[start : start + 256]
            return [
                content_digest(raw, self.location(i))
                for i, raw in zip(some, self._raw_values(shown, some), strict=True)
            ]

        return chain.from_iterable(prefetch(part, range(0, len(rows), 256), io_bound=True))

    def prepare(
        self, schema: Schema, columns: Sequence[ColumnKey], **options: Any
    ) -> "PreparedDataset":
        """Every value of these columns decoded once and kept on disk: see `cache.Prepared`. `max_invalid_fraction`: as in `open`."""
        from sensorium.data.cache.prepared import PreparedDataset

        return PreparedDataset(
            self, schema, columns, **{"max_invalid_fraction": self.max_invalid_fraction, **options}
        )

    def describe(self) -> "DatasetSummary":
        """What `sensorium data PATH` prints: plain data, and a table when rich prints it. Every file is read."""
        from sensorium.data.describe import describe_dataset

        filed = [c.name for c in self.schema.columns.values() if extensions(c.kind) is not None]
        found = (
            self.prepare(self.schema, filed, max_invalid_fraction=1.0, quiet=True).bad_samples
            if filed and len(self)
            else self.bad_samples
        )
        return replace(describe_dataset(self), bad_samples=found)


def _add_paraphrases(value: Any, synonyms: Synonyms) -> Any:
    """A text, or several, followed by other ways to say each."""
    several = value if isinstance(value, list) else [value]
    others = [
        other for text in several if isinstance(text, str) for other in synonyms.paraphrase(text)
    ]
    return [*several, *others] if others else value


def content_digest(raw: Any, location: str) -> str:
    """The content of a value as 32 hex digits; of a value that is missing or cannot be read, the row's name."""
    if isinstance(raw, Path):
        try:
            content = _md5()
            with open(raw, "rb", buffering=0) as f:
                while data := f.read(READ_BLOCK_BYTES):
                    content.update(data)
            return content.hexdigest()
        except OSError:
            return location
    if isinstance(raw, np.ndarray):
        return _md5(raw.tobytes() + str(raw.shape).encode()).hexdigest()
    text = (
        raw
        if isinstance(raw, str)
        else "\n".join(map(str, raw))
        if isinstance(raw, list)
        else location
    )
    return _md5(
        raw if isinstance(raw, bytes) else text.encode("utf-8", "surrogatepass")
    ).hexdigest()


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)
