"""A table of raw values with a location for every row, as files and folders are read into.

Nothing here decides what a column means, and no image is opened: see `type_inference` and
`dataset`.
"""

import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, overload

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import (
    MAX_LINE_CHARACTERS,
    MAX_MISSING_CELLS,
    MAX_TABLE_COLUMNS,
    open_regular,
    replace_surrogates,
)

TABLE_EXTENSIONS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".jsonl", ".ndjson", ".parquet")
IMAGE_EXTENSIONS = (
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".png",
    ".webp",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
)
UNSUPPORTED_IMAGE_EXTENSIONS = (
    ".heic",
    ".heif",
    ".avif",
    ".svg",
    ".svgz",
    ".psd",
    ".jxl",
    ".jp2",
    ".j2k",
    ".ico",
    ".tga",
    ".ppm",
    ".pgm",
    ".exr",
    ".eps",
    ".dcm",
    ".raw",
    ".cr2",
    ".cr3",
    ".nef",
    ".arw",
    ".dng",
)
_MAY_HOLD_SURROGATES = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")  # in JSON


@dataclass
class Table:
    """Raw columns of equal length, each a list, or an array whose first axis is the rows.

    A value is a str, bytes (an encoded file), a file inside another, a uint8 array [H, W, 3], a
    number, a list[str] (several captions), or None where it is missing. A str in an image column is
    a path, absolute or relative to `root`.

    Attributes:
        columns: the values of each column.
        locations: what messages call each row.
        split_column: the column that holds each row's split.
        group_column: the column whose equal values mark one group.
        kinds: the type of a column ("image", ...), where the source knows it.
        reasons: how the source knows it.
        index_columns: columns that pandas declares to be the index of a frame.
        root: the folder of relative paths; a list holds one for each row.
        bad_samples: rows that could not be read; their cells are None.
        notes: what lay in the source and is not used, and choices between readings, a line each.
    """

    columns: dict[str, Any]
    locations: Sequence[str]
    split_column: str | None = None
    group_column: str | None = None
    kinds: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    index_columns: tuple[str, ...] = ()
    root: Path | list[Path] = Path()
    bad_samples: list[BadSample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.locations)

    def take(self, rows: np.ndarray) -> "Table":
        """Return some of the rows, in that order; `bad_samples` stays as it is."""
        columns = {name: _take_rows(values, rows) for name, values in self.columns.items()}
        root = self.root if isinstance(self.root, Path) else list(_take_rows(self.root, rows))
        return replace(self, columns=columns, locations=_take_rows(self.locations, rows), root=root)

    def base_folder(self, row: int) -> Path:
        """Return the folder to which paths in a row are relative."""
        return self.root if isinstance(self.root, Path) else self.root[row]


class LineLocations(Sequence[str]):
    """Row locations such as 'products.csv:17', formatted when they are needed.

    Args:
        file_name: what messages call the file.
        line_numbers: the line of each row, from 1.
    """

    def __init__(self, file_name: str, line_numbers: np.ndarray):
        self.file_name = file_name
        self.line_numbers = line_numbers

    def __len__(self) -> int:
        return len(self.line_numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "LineLocations": ...
    def __getitem__(self, index: int | slice) -> "str | LineLocations":
        if isinstance(index, slice):
            return LineLocations(self.file_name, self.line_numbers[index])
        return f"{self.file_name}:{self.line_numbers[index]}"

    def __iter__(self) -> Iterator[str]:
        return (f"{self.file_name}:{number}" for number in self.line_numbers)

    def take(self, rows: np.ndarray) -> "LineLocations":
        """Return the locations of some rows."""
        return LineLocations(self.file_name, self.line_numbers[rows])


def _take_rows(values: Any, rows: np.ndarray) -> Any:
    """Select rows of a list, an array or `LineLocations`."""
    if isinstance(values, LineLocations):
        return values.take(rows)
    if isinstance(values, np.ndarray):
        return values[rows]
    return [values[i] for i in rows]


def concat_tables(named_tables: Sequence[tuple[str | None, Table]]) -> Table:
    """Concatenate tables; a column that one of them lacks is missing there.

    Args:
        named_tables: the split that each table is, and the table. A table without a name keeps its
            own column "split".
    """
    tables = [table for _, table in named_tables]
    has_splits = any(name is not None or "split" in table.columns for name, table in named_tables)
    for name, table in named_tables:
        if name is not None or (has_splits and "split" not in table.columns):
            table.columns["split"] = [name] * len(table)
    names = dict.fromkeys(chain.from_iterable(t.columns for t in tables))
    columns = {
        name: list(chain.from_iterable(t.columns.get(name, [None] * len(t)) for t in tables))
        for name in names
    }
    reasons = {name: reason for t in tables for name, reason in t.reasons.items()}
    starts = np.cumsum([0, *map(len, tables)])
    bad_samples = [
        replace(sample, row=sample.row + int(start))
        for table, start in zip(tables, starts, strict=False)
        for sample in table.bad_samples
    ]
    return Table(
        columns=columns,
        locations=list(chain.from_iterable(t.locations for t in tables)),
        split_column="split" if has_splits else None,
        group_column=next((t.group_column for t in tables if t.group_column), None),
        kinds={name: kind for t in tables for name, kind in t.kinds.items()},
        reasons=reasons | {"split": "the part of the source that a row is from"}
        if has_splits
        else reasons,
        index_columns=tuple(dict.fromkeys(name for t in tables for name in t.index_columns)),
        root=_concat_roots(tables),
        bad_samples=bad_samples,
        notes=[note for t in tables for note in t.notes],
    )


def _concat_roots(tables: Sequence[Table]) -> Path | list[Path]:
    """Return the folder of each row, or the one that all tables share."""
    roots = {t.root if isinstance(t.root, Path) else None for t in tables}
    shared = next(iter(roots))
    if len(roots) == 1 and shared is not None:
        return shared
    return [t.base_folder(i) for t in tables for i in range(len(t))]


def open_text(path: Path, encoding: str = "utf-8") -> io.TextIOWrapper:
    """Open a text file. A byte-order mark is skipped, and that of UTF-16 overrides the encoding.

    Raises:
        SensoriumError: if the encoding is unknown.
        OSError: if the file cannot be opened.
    """
    file = open_regular(path)
    mark = file.read(2)
    file.seek(0)
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif encoding.lower().replace("-", "") == "utf8":
        encoding = "utf-8-sig"
    try:
        return io.TextIOWrapper(file, encoding=encoding, newline="")
    except LookupError:
        file.close()
        raise SensoriumError(
            f"unknown encoding {encoding!r}. Try utf-8, latin-1, cp1252, utf-16 or gb18030 "
            "(--source-option encoding=latin-1)."
        ) from None


def iter_lines(file: io.TextIOWrapper, file_name: str) -> Iterator[str]:
    """Yield the lines of a text file.

    Args:
        file: the file.
        file_name: what messages call it.

    Raises:
        SensoriumError: if a line has more than MAX_LINE_CHARACTERS.
    """
    for number in count(1):
        line = file.readline(MAX_LINE_CHARACTERS + 1)
        if not line:
            return
        if len(line) > MAX_LINE_CHARACTERS:
            raise SensoriumError(
                f"{file_name}:{number}: the line has more than {MAX_LINE_CHARACTERS:,} characters. "
                "Is it a table with one row per line?"
            )
        yield line


def check_missing_cells(num_cells: int, source: Path | str) -> None:
    """Check that the rows of a table do not lack most of its columns, which would fill memory.

    Raises:
        SensoriumError: if there are more than MAX_MISSING_CELLS.
    """
    if num_cells > MAX_MISSING_CELLS:
        raise SensoriumError(
            f"{source}: its rows lack {num_cells:,} cells in columns that other rows have; the "
            f"limit is {MAX_MISSING_CELLS:,}. Give every row the same columns."
        )


def table_extension(path: Path) -> str:
    """Return which of TABLE_EXTENSIONS a file has, "" if none."""
    name = path.name.lower()
    return next((e for e in TABLE_EXTENSIONS if name.endswith(e)), "")


def clean_column_names(names: Iterable[str], source: Path | str) -> list[str]:
    """Return column names in which each lone surrogate is replaced by U+FFFD.

    Args:
        names: the names as they were read.
        source: what messages call the file.

    Raises:
        SensoriumError: if two names are equal, or there are more than MAX_TABLE_COLUMNS.
    """
    cleaned = [replace_surrogates(name) for name in names]
    if len(cleaned) > MAX_TABLE_COLUMNS:
        raise SensoriumError(
            f"{source} has {len(cleaned):,} columns; the limit is {MAX_TABLE_COLUMNS:,}. Keep "
            "those you need, or store long rows of numbers as .npy files, one for each row."
        )
    duplicates = {name for name, count in Counter(cleaned).items() if count > 1}
    if duplicates:
        raise SensoriumError(
            f"{source}: the column name {min(duplicates)!r} occurs twice. Rename one of them."
        )
    return cleaned


def parse_json(text: str) -> Any:
    """Parse JSON; return, not raise, a ValueError where it is invalid.

    Lone surrogates in values are replaced by U+FFFD; keys are left to `clean_column_names`.
    """
    try:
        value = json.loads(text)
        if not _MAY_HOLD_SURROGATES.search(text):
            return value
        if isinstance(value, dict):
            return {key: replace_surrogates(item) for key, item in value.items()}
        return replace_surrogates(value)
    except ValueError as e:
        return ValueError(f"invalid JSON: {e}")
    except RecursionError:
        return ValueError("invalid JSON: nested too deeply")
