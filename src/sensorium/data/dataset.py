"""A data set: rows of raw values, what each column means, which rows train and which judge. No picture is opened here."""
import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.data.describe import Description, describe
from sensorium.data.examples import EXAMPLES, is_sheets, open_sheets
from sensorium.data.folders import read_folder
from sensorium.data.infer import infer
from sensorium.data.quarantine import settle
from sensorium.data.schema import Schema
from sensorium.data.sources import SUFFIXES, Bad, Table, join, read_file
from sensorium.data.splits import as_given, by_hash, in_order, read_splits
from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality

if TYPE_CHECKING:
    from sensorium.data.cache import Prepared


class Dataset:
    """N rows. `schema` says what their columns are; `bad` lists, by name, what was left out when they were read."""

    def __init__(self, table: Table, schema: Schema, name: str = "data", *, of: "tuple[Dataset, np.ndarray] | None" = None):
        self.table, self.schema, self.name = table, schema, name
        self.group = schema.role("group")
        self.bad: list[Bad] = list(table.bad)
        self._of = of                           # the data set this is a part of, and which of its rows

    @classmethod
    def open(cls, source: str | os.PathLike[str], *, split: str | None = None, group: str | None = None,
             columns: Mapping[str, str | Modality] | None = None, test: str | os.PathLike[str] | None = None,
             max_bad: float = 0.01, **options: Any) -> "Dataset":
        """Read a folder, a file (CSV, TSV, JSONL, Parquet) or an embedded set ("emoji"), and infer what its columns are.

        split: the column that says which split a row is in, or a file that does (see `splits.read_splits`).
        group: the column whose equal values are the same thing, which must not be on both sides of a split.
        columns: what columns are taken for, e.g. {"price": "ignore", "caption": "text", "photo": Image(size=128)}.
        test: another source, whose rows become the split "test".
        max_bad: the share of rows that may be unusable. options: `encoding` of text files; for an embedded set, its own.
        Raises SensoriumError, saying what to do, for whatever cannot be read or found.
        """
        table, name = _read(source, options)
        if test is not None:
            table = join([(None, table), ("test", _read(test, options)[0])])
        if split is not None and split not in table.columns:
            table.columns["split"], split = read_splits(Path(split), table), "split"
        schema = infer(table, dict(columns or {}), split, group, max_bad)
        return cls(settle(table, schema, max_bad), schema, name)

    def __len__(self) -> int:
        return len(self.table)

    def __repr__(self) -> str:
        columns = ", ".join(f"{c.name} ({c.kind})" for c in self.schema.columns.values())
        return f"Dataset({self.name!r}: {len(self):,} rows; {columns or 'no column to learn from'}; {len(self.bad)} bad)"

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Raw values: Path, bytes or uint8 array for a picture, str or list[str] for text, float, or None where missing."""
        if column not in self.table.columns:
            self.schema.pick("", column)        # says what there is
        values = self.table.columns[column]
        kind = self.schema.columns[column].kind if column in self.schema.columns else ""
        if kind == "number":
            return [None if np.isnan(v) else v for v in np.asarray(values)[np.asarray(rows, np.int64)].tolist()]
        if kind == "image":
            return [self.table.base(i) / v if isinstance(v := values[i], str) else v for i in rows]
        return [values[i] for i in rows]

    def where(self, row: int) -> str:
        """A row's name in messages: 'photos/a.jpg', 'mine.csv:17'."""
        return self.table.where[row]

    def take(self, rows: Sequence[int] | np.ndarray) -> "Dataset":
        """The data set of these rows, in this order; each stays in the split it was in."""
        rows = np.asarray(rows)
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows.astype(np.int64)
        table = replace(self.table.take(rows), bad=[])
        return Dataset(table, self.schema, f"{self.name} (part)", of=(self, rows))

    @cached_property
    def splits(self) -> dict[str, np.ndarray]:
        """Rows of each split: "train", "val", "test", or names of the data's own."""
        return self._split[0]

    @property
    def splits_from(self) -> str:
        """How the splits were made, in words."""
        return self._split[1]

    @cached_property
    def _split(self) -> tuple[dict[str, np.ndarray], str]:
        if self._of is not None:
            whole, rows = self._of
            return {name: np.flatnonzero(np.isin(rows, r)) for name, r in whole.splits.items()}, whole.splits_from
        column, told = self.schema.role("split"), f"md5 of {self._told_by()}"
        if column is None:
            return by_hash(self._keys(), {"train": 0.8, "val": 0.1, "test": 0.1}), f"80/10/10 by {told}"
        given, how = as_given(self.table.columns[column]), f"given by {column!r}"
        if set(given) == {"train"} or not given:
            return by_hash(self._keys(), {"train": 0.8, "val": 0.1, "test": 0.1}), f"80/10/10 by {told}; {column!r} tells none apart"
        if "train" in given and "val" not in given:
            parts = by_hash(self._keys(given["train"]), {"train": 0.9, "val": 0.1})
            given |= {name: given["train"][rows] for name, rows in parts.items()}
            how += f"; 10 % of train became val by {told}"
        return in_order(given), how

    def groups(self) -> np.ndarray:
        """int64 [N]: rows of one number show the same thing. Equal values of the group column, or else equal content:
        the bytes of the picture, the text where there is no picture, all values where there is neither."""
        return self._groups

    @cached_property
    def _groups(self) -> np.ndarray:
        seen: dict[str, int] = {}
        return np.fromiter((seen.setdefault(key, len(seen)) for key in self._keys()), np.int64, len(self))

    def _told_by(self) -> str:
        if self.group is not None:
            return f"the column {self.group!r}"
        first = self._shown()
        return f"the {'bytes' if self.schema.columns[first].kind == 'image' else 'text'} of {first!r}" if first else "all values"

    def _shown(self) -> str | None:
        """The column by whose content rows are told apart."""
        return next((c.name for kind in ("image", "text") for c in self.schema.columns.values() if c.kind == kind), None)

    def _keys(self, rows: np.ndarray | None = None) -> Iterator[str]:
        """What tells rows apart, row by row: equal keys are the same thing."""
        rows = np.arange(len(self)) if rows is None else rows
        named = self.raw(self.group, rows) if self.group is not None else [None] * len(rows)
        left = [int(row) for row, name in zip(rows, named, strict=True) if name is None]
        content = self._content(left)
        return (f"group:{name}" if name is not None else next(content) for name in named)

    def _content(self, rows: Sequence[int]) -> Iterator[str]:
        shown = self._shown()
        if not rows:
            return iter(())
        if shown is None:
            names = [n for n in self.table.columns if n in self.schema.columns] or list(self.table.columns)
            return (repr([self.table.columns[n][i] for n in names]) for i in rows)
        with ThreadPoolExecutor(8) as pool:     # reading waits, and hashing lets other threads run
            return iter(list(pool.map(digest, self.raw(shown, rows), map(self.where, rows), chunksize=64)))

    def prepare(self, schema: Schema, columns: Sequence[str], **how: Any) -> "Prepared":
        """Every value of these columns decoded once and kept on disk: see `cache.Prepared`."""
        from sensorium.data.cache import Prepared
        return Prepared(self, schema, columns, **how)

    def describe(self) -> Description:
        """What `sensorium data PATH` prints: plain data, and a table when rich prints it."""
        return describe(self)


def digest(raw: Any, where: str) -> str:
    """The content of a value as 32 hex digits; of a value that is missing or cannot be read, the row's name."""
    if isinstance(raw, Path):
        try:
            with open(raw, "rb") as f:
                return hashlib.file_digest(f, _md5).hexdigest()
        except OSError:
            return where
    if isinstance(raw, np.ndarray):
        return _md5(raw.tobytes() + str(raw.shape).encode()).hexdigest()
    text = raw if isinstance(raw, str) else "\n".join(raw) if isinstance(raw, list) else where
    return _md5(raw if isinstance(raw, bytes) else text.encode("utf-8", "surrogatepass")).hexdigest()


def _md5(data: bytes = b"") -> Any:
    return hashlib.md5(data, usedforsecurity=False)


def _read(source: str | os.PathLike[str], options: dict[str, Any]) -> tuple[Table, str]:
    """(the raw table, what to call it), whatever the source is."""
    path = Path(source).expanduser()
    if not path.exists():
        if str(source) not in EXAMPLES:
            known = ", ".join(EXAMPLES)
            raise SensoriumError(f"there is no file or folder {str(source)!r}, and no embedded set of that name (there is: {known}).")
        return _call(EXAMPLES[str(source)], (), options), str(source)
    name = path.resolve().name
    if path.is_dir() and is_sheets(path):
        return _call(open_sheets, (path,), options), name
    return _call(read_folder if path.is_dir() else read_file, (path,), options), name


def _call(read: Any, arguments: tuple[Any, ...], options: dict[str, Any]) -> Table:
    """Call a reader; an option it does not have is the user's mistake, not the program's."""
    from inspect import signature
    known = [n for n in signature(read).parameters if n not in ("path", "folder", "name", "options")]
    if read in EXAMPLES.values():
        known = [n for n in signature(open_sheets).parameters if n != "path"]
    for name in options:
        if name not in known:
            raise SensoriumError(f"unknown option {name!r}; this source takes {', '.join(known)}, besides split, group, columns, "
                                 "test and max_bad.")
    return read(*arguments, **options)
