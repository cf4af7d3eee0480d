"""Files of rows (CSV, TSV, JSONL, Parquet) and what they become: a table of raw values with a name for every row.

Nothing here decides what a column means, and no picture is opened: that is for infer.py and dataset.py.
"""

import csv
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.errors import SensoriumError

TABLE_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
IMAGE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_HALF = re.compile("[\ud800-\udfff]")  # of a character: a lone surrogate, which no file can hold
_MAX_COLUMNS = (
    1024  # JSONL where every line has its own keys would grow with the square of its length
)


@dataclass
class Table:
    """Raw columns of equal length, each a list, or an array whose first axis is the rows.

    A value is a str, bytes (an encoded picture), a uint8 array [H, W, 3], a number, a list[str] (several captions), or
    None where it is missing. A str in an image column is a path, absolute or below `root`.
    """

    columns: dict[str, Any]
    locations: Sequence[str]  # each row's name in messages
    split_column: str | None = None  # the column that says which split a row is in
    group_column: str | None = None  # the column whose equal values are the same thing
    kinds: dict[str, str] = field(
        default_factory=dict
    )  # column -> kind ("image", ...), where the source knows
    reasons: dict[str, str] = field(default_factory=dict)  # column -> how the source knows
    root: Path | list[Path] = Path()  # what relative paths start from; a list: each row's own
    bad_samples: list[BadSample] = field(
        default_factory=list
    )  # rows that could not be read: their cells are None here

    def __len__(self) -> int:
        return len(self.locations)

    def take(self, rows: np.ndarray) -> "Table":
        """Some of the rows, in that order. `bad` is left as it is."""
        columns = {name: _take_rows(values, rows) for name, values in self.columns.items()}
        root = self.root if isinstance(self.root, Path) else list(_take_rows(self.root, rows))
        return replace(self, columns=columns, locations=_take_rows(self.locations, rows), root=root)

    def base_folder(self, row: int) -> Path:
        """The folder that a path in this row is relative to."""
        return self.root if isinstance(self.root, Path) else self.root[row]


class LineLocations(Sequence[str]):
    """Row names such as 'mine.csv:17', made only when one is asked for."""

    def __init__(self, file_name: str, line_numbers: np.ndarray):
        self.file_name, self.line_numbers = file_name, line_numbers

    def __len__(self) -> int:
        return len(self.line_numbers)

    def __getitem__(self, i: Any) -> Any:
        number = self.line_numbers[i]
        return (
            LineLocations(self.file_name, number)
            if isinstance(number, np.ndarray)
            else f"{self.file_name}:{number}"
        )


def _take_rows(values: Any, rows: np.ndarray) -> Any:
    return (
        values[rows]
        if isinstance(values, np.ndarray | LineLocations)
        else [values[i] for i in rows]
    )


def concat_tables(named_tables: Sequence[tuple[str | None, Table]]) -> Table:
    """One table of several, each part's name in the column `split`. A column that a part lacks is missing there."""
    tables = [table for _, table in named_tables]
    for name, table in named_tables:
        if name is not None or "split" not in table.columns:
            table.columns["split"] = [name] * len(table)
    names = dict.fromkeys(chain.from_iterable(t.columns for t in tables))
    starts = np.cumsum([0, *map(len, tables)])
    return Table(
        columns={
            n: list(chain.from_iterable(t.columns.get(n, [None] * len(t)) for t in tables))
            for n in names
        },
        locations=list(chain.from_iterable(t.locations for t in tables)),
        split_column="split",
        group_column=next((t.group_column for t in tables if t.group_column), None),
        kinds={k: v for t in tables for k, v in t.kinds.items()},
        reasons={k: v for t in tables for k, v in t.reasons.items()}
        | {"split": "the part of the source that a row is from"},
        root=[t.base_folder(i) for t in tables for i in range(len(t))],
        bad_samples=[
            replace(b, row=b.row + int(start))
            for t, start in zip(tables, starts, strict=False)
            for b in t.bad_samples
        ],
    )


def read_table(path: Path, encoding: str = "utf-8", name: str = "") -> Table:
    """Read a CSV, TSV, JSONL or Parquet file. Paths in it are relative to its folder.

    name: what messages call the file. A row that cannot be read is in `bad`, by line.
    Raises SensoriumError where the file as a whole cannot be read.
    """
    suffix, name = path.suffix.lower(), name or path.name
    if suffix not in TABLE_EXTENSIONS:
        raise SensoriumError(
            f"{path} is no kind of file that is read here. Give a folder, or {', '.join(TABLE_EXTENSIONS)}."
        )
    try:
        if suffix == ".parquet":
            table = _read_parquet(path, name)
        else:
            table = (_read_csv if suffix in (".csv", ".tsv") else _read_jsonl)(path, encoding, name)
    except UnicodeError as e:
        raise SensoriumError(_undecodable_message(path, encoding, e)) from e
    except OSError as e:
        raise SensoriumError(f"could not read {path}: {e.strerror or e}.") from e
    if not len(table):
        raise SensoriumError(f"{path} holds no rows." if table.columns else f"{path} is empty.")
    table.root = path.parent
    return table


def open_text(path: Path, encoding: str = "utf-8") -> TextIO:
    """A text file, without the byte-order mark that some programs put first; UTF-16 is known by its mark."""
    with open(path, "rb") as f:
        mark = f.read(2)
    if mark in (b"\xff\xfe", b"\xfe\xff"):
        encoding = "utf-16"
    elif encoding.lower().replace("-", "") == "utf8":
        encoding = "utf-8-sig"
    try:
        return open(path, encoding=encoding, newline="")
    except LookupError:
        raise SensoriumError(
            f"unknown encoding {encoding!r}; try utf-8, latin-1, cp1252, utf-16 or gb18030."
        ) from None


def _undecodable_message(path: Path, encoding: str, error: UnicodeError) -> str:
    """The line at fault: the decoder counts from the start of its buffer, so look again."""
    with open(path, "rb") as f:
        for number, line in enumerate(f, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return (
                    f"{path}:{number}: this line is not {encoding} text. Save the file as UTF-8, or name its "
                    "encoding (encoding='latin-1', 'cp1252', 'utf-16', ...)."
                )
    return f"{path} is not {encoding} text: {error}."


# CSV and TSV ----------------------------------------------------------------------------------------------------


def _read_csv(path: Path, encoding: str, file_name: str) -> Table:
    with open_text(path, encoding) as f:
        form = _detect_dialect(f.read(1 << 16))
        f.seek(0)
        rows = csv.reader(f, strict=True, skipinitialspace=True, **form)
        names = _check_header(path, *next(_iter_csv_rows(rows, file_name), (1, 1, [], "")))
        columns: list[list[str | None]] = [[] for _ in names]
        numbers: list[int] = []
        bad: list[BadSample] = []
        for first, last, row, reason in _iter_csv_rows(rows, file_name, len(names)):
            if not reason and len(row) != len(names):
                reason = f"{len(row)} cells where the header has {len(names)}"
            if reason:
                bad.append(
                    BadSample(
                        len(numbers),
                        "",
                        f"{file_name}:{first}" + (f"-{last}" if last > first else ""),
                        reason,
                    )
                )
                row = [""] * len(names)
            numbers.append(first)
            for column, cell in zip(columns, row, strict=True):
                column.append(cell or None)
    return Table(
        dict(zip(names, columns, strict=True)),
        LineLocations(file_name, np.array(numbers, np.int64)),
        bad_samples=bad,
    )


def _iter_csv_rows(
    rows: Any, file_name: str, num_columns: int = 0
) -> Iterator[tuple[int, int, list[str], str]]:
    """(first line, last line, cells, why it could not be read) for each row that is not blank. As many empty cells as
    there are columns are a row of which nothing is known."""
    while True:
        first = rows.line_num + 1
        row, reason = [], ""
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as e:
            if "unexpected end" in str(e) or "field limit" in str(
                e
            ):  # it has swallowed the rows that follow
                raise SensoriumError(
                    f"{file_name}:{first}: a quotation mark opens here and never closes. Close it, or "
                    'double it ("") if it is part of the text.'
                ) from e
            reason = f"quotation marks: {e}"
        if reason or any(map(str.strip, row)) or len(row) == num_columns > 1:
            yield first, rows.line_num, row, reason


def _detect_dialect(sample: str) -> dict[str, Any]:
    """What parts the cells, by the first line; and whether quotation marks in a tab-separated file are only text."""
    first = sample.lstrip("\ufeff").split("\n", 1)[0]
    mark = max(",\t;|", key=first.count)
    lines = sample.split("\n")[:-1] or [sample]
    if mark == "\t" and any(cell.count('"') % 2 for line in lines for cell in line.split(mark)):
        return {"delimiter": mark, "quoting": csv.QUOTE_NONE}
    return {"delimiter": mark}


def named(names: Iterable[str], where: Path | str) -> list[str]:
    """Column names as they are used ever after: a half of a character (a lone surrogate) becomes U+FFFD.

    Raises SensoriumError where two are then the same.
    """
    made = [_HALF.sub("\ufffd", name) for name in names]
    if twice := {name for name in made if made.count(name) > 1}:
        raise SensoriumError(
            f"{where}: the column {min(twice)!r} is there twice. Rename one of them."
        )
    return made


def _check_header(path: Path, first: int, last: int, names: list[str], reason: str) -> list[str]:
    if reason:
        raise SensoriumError(f"{path}:{first}: the header cannot be read: {reason}.")
    names = [name.strip() for name in names]
    if any(name.lower().endswith(IMAGE_EXTENSIONS) for name in names):
        raise SensoriumError(
            f"{path} has no header: its first line is {', '.join(names)[:80]!r}. "
            "Put the columns' names there, e.g. filepath,caption."
        )
    return named(
        (name or f"column {i}" for i, name in enumerate(names, 1)), path
    )  # pandas leaves its index unnamed


# JSONL ----------------------------------------------------------------------------------------------------------


def _read_jsonl(path: Path, encoding: str, file_name: str) -> Table:
    numbers: list[int] = []
    bad: list[BadSample] = []

    def each(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for line, text in enumerate(lines, 1):
            if not text.strip():
                continue
            value = parse_json(text)
            if not isinstance(value, dict):
                reason = str(value) if isinstance(value, ValueError) else "not a JSON object {...}"
                bad.append(BadSample(len(numbers), "", f"{file_name}:{line}", reason))
            numbers.append(line)
            yield value if isinstance(value, dict) else {}

    with open_text(path, encoding) as f:
        columns = columns_from_records(each(f))
    return Table(columns, LineLocations(file_name, np.array(numbers, np.int64)), bad_samples=bad)


def parse_json(text: str) -> Any:
    """The value, or the ValueError that says why there is none (returned: one bad line must not end the reading)."""
    try:
        return json.loads(text)
    except ValueError as e:
        return ValueError(f"not JSON: {e}")
    except RecursionError:
        return ValueError("not JSON that can be read: nested too deeply")


def columns_from_records(records: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Columns of all keys seen, None where a record lacks one."""
    columns: dict[str, list[Any]] = {}
    n = 0
    for n, record in enumerate(records, 1):
        for name, value in record.items():
            columns.setdefault(name, [None] * (n - 1)).append(None if value == "" else value)
        if len(columns) > len(record):
            for column in columns.values():
                if len(column) < n:
                    column.append(None)
        if len(columns) > _MAX_COLUMNS:
            raise SensoriumError(
                f"more than {_MAX_COLUMNS} different keys by record {n}: this is no table."
            )
    return dict(zip(named(columns, "keys of records"), columns.values(), strict=True))


# Parquet --------------------------------------------------------------------------------------------------------


def _read_parquet(path: Path, file_name: str) -> Table:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise SensoriumError(f'reading {path} needs pyarrow: pip install "sensorium[data]"') from e
    try:
        with pq.ParquetFile(path) as f:
            classes = _read_class_names(f.schema_arrow.metadata or {})
            columns: dict[str, list[Any]] = {name: [] for name in named(f.schema_arrow.names, path)}
            for batch in f.iter_batches(
                batch_size=4096
            ):  # bounded: never two copies of the file in memory
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    if pa.types.is_temporal(values.type):  # not every time has a Python object
                        values = values.cast(pa.string())
                    columns[name] += [
                        _convert_parquet_value(v, classes.get(name)) for v in values.to_pylist()
                    ]
    except (pa.ArrowException, ValueError, OverflowError) as e:
        raise SensoriumError(f"{path} is not a Parquet file that can be read: {e}") from e
    n = len(next(iter(columns.values()), []))
    kinds = {name: "category" for name in classes if name in columns}
    why = {name: f"the file names its {len(classes[name])} classes" for name in kinds}
    return Table(columns, LineLocations(file_name, np.arange(1, n + 1)), kinds=kinds, reasons=why)


def _convert_parquet_value(value: Any, class_names: list[str] | None) -> Any:
    """Hugging Face writes a picture as {"bytes", "path"}, and a class as its number."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"] or value["path"] or None
    if class_names and isinstance(value, int) and 0 <= value < len(class_names):
        return class_names[value]
    return None if value == "" else value


def _read_class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    info = parse_json(metadata.get(b"huggingface", b"{}").decode("utf-8", "replace"))
    features = info.get("info", {}).get("features", {}) if isinstance(info, dict) else {}
    return {
        name: f["names"]
        for name, f in features.items()
        if isinstance(f, dict) and f.get("_type") == "ClassLabel"
    }
