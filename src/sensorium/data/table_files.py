"""Read files of rows: CSV, TSV, JSONL and Parquet."""

import csv
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    TABLE_EXTENSIONS,
    LineLocations,
    Table,
    open_text,
    parse_json,
)
from sensorium.errors import SensoriumError
from sensorium.io.regular_files import check_regular, open_regular

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which no file can hold
_MAX_COLUMNS = 1024  # JSONL whose lines all have different keys would need quadratic memory
_SNIFF_CHARACTERS = 1 << 16  # of a CSV file, by which its delimiter is recognised
_PARQUET_BATCH_ROWS = 4096  # rows converted at a time


def read_table(path: Path, encoding: str = "utf-8", name: str = "") -> Table:
    """Read a CSV, TSV, JSONL or Parquet file. Paths in it are relative to its folder.

    Args:
        path: the file.
        encoding: of a text file.
        name: what messages call the file; by default its name.

    Returns:
        The table; a row that cannot be read is in `bad_samples`, by line.

    Raises:
        SensoriumError: if the file as a whole cannot be read.
    """
    suffix = path.suffix.lower()
    name = name or path.name
    if suffix not in TABLE_EXTENSIONS:
        raise SensoriumError(
            f"{path} has an unsupported file type. Give a folder or one of "
            f"{', '.join(TABLE_EXTENSIONS)}."
        )
    try:
        if suffix == ".parquet":
            table = _read_parquet(path, name)
        elif suffix in (".csv", ".tsv"):
            table = _read_csv(path, encoding, name)
        else:
            table = _read_jsonl(path, encoding, name)
    except UnicodeError as e:
        raise SensoriumError(_undecodable_message(path, encoding, e)) from e
    except OSError as e:
        raise SensoriumError(f"could not read {path}: {e.strerror or e}.") from e
    if not len(table):
        raise SensoriumError(f"{path} has no rows." if table.columns else f"{path} is empty.")
    table.root = path.parent
    return table


def _undecodable_message(path: Path, encoding: str, error: UnicodeError) -> str:
    """Return an error that names the line, which the decoder's own error does not."""
    with open_regular(path) as f:
        for number, line in enumerate(f, 1):
            try:
                line.decode(encoding)
            except UnicodeError:
                return (
                    f"{path}:{number}: this line is not {encoding} text. Save the file as UTF-8 or "
                    "name its encoding (--source-option encoding=latin-1, cp1252, utf-16, ...)."
                )
    return f"{path} is not {encoding} text: {error}."


def clean_column_names(names: Iterable[str], source: Path | str) -> list[str]:
    """Return column names in which each lone surrogate is replaced by U+FFFD.

    Args:
        names: the names as they were read.
        source: what messages call the file.

    Raises:
        SensoriumError: if two names are equal.
    """
    cleaned = [_LONE_SURROGATE.sub("\ufffd", name) for name in names]
    duplicates = {name for name in cleaned if cleaned.count(name) > 1}
    if duplicates:
        raise SensoriumError(
            f"{source}: the column name {min(duplicates)!r} occurs twice. Rename one of them."
        )
    return cleaned


# CSV and TSV ----------------------------------------------------------------------------------


class _CsvRow(NamedTuple):
    """A row that is not blank, the lines it spans, and why it could not be read, if so."""

    first_line: int
    last_line: int
    cells: list[str]
    error: str


@runtime_checkable
class _CsvReader(Protocol):
    """What csv.reader returns."""

    @property
    def line_num(self) -> int: ...
    def __next__(self) -> list[str]: ...


def _read_csv(path: Path, encoding: str, file_name: str) -> Table:
    """Read a file of delimited text with a header."""
    with open_text(path, encoding) as f:
        dialect = _detect_dialect(f.read(_SNIFF_CHARACTERS))
        f.seek(0)
        reader = csv.reader(f, strict=True, skipinitialspace=True, **dialect)
        header = next(_iter_csv_rows(reader, file_name), _CsvRow(1, 1, [], ""))
        names = _check_header(path, header)
        columns: list[list[str | None]] = [[] for _ in names]
        line_numbers: list[int] = []
        bad_samples: list[BadSample] = []
        for row in _iter_csv_rows(reader, file_name, len(names)):
            cells = row.cells
            error = row.error
            if not error and len(cells) != len(names):
                error = f"{len(cells)} cells, but the header has {len(names)}"
            if error:
                last = f"-{row.last_line}" if row.last_line > row.first_line else ""
                location = f"{file_name}:{row.first_line}{last}"
                bad_samples.append(BadSample(len(line_numbers), "", location, error))
                cells = [""] * len(names)
            line_numbers.append(row.first_line)
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell or None)
    return Table(
        dict(zip(names, columns, strict=True)),
        LineLocations(file_name, np.array(line_numbers, np.int64)),
        bad_samples=bad_samples,
    )


def _iter_csv_rows(reader: _CsvReader, file_name: str, num_columns: int = 0) -> Iterator[_CsvRow]:
    """Yield each row that is not blank; a row of empty cells, one for each column, is not.

    Raises:
        SensoriumError: if a quotation mark never closes, since it has swallowed the rows that
            follow.
    """
    while True:
        first_line = reader.line_num + 1
        cells: list[str] = []
        error = ""
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "unexpected end" in str(e) or "field limit" in str(e):
                raise SensoriumError(
                    f"{file_name}:{first_line}: a quotation mark opens here and never closes. "
                    'Close it, or double it ("") if it is part of the text.'
                ) from e
            error = f"quotation marks: {e}"
        if error or any(map(str.strip, cells)) or len(cells) == num_columns > 1:
            yield _CsvRow(first_line, reader.line_num, cells, error)


def _detect_dialect(sample: str) -> dict[str, Any]:
    """Return the delimiter of the first line, and whether quotation marks in TSV are plain text."""
    first_line = sample.lstrip("\ufeff").split("\n", 1)[0]
    delimiter = max(",\t;|", key=first_line.count)
    if delimiter != "\t":
        return {"delimiter": delimiter}
    lines = sample.split("\n")[:-1] or [sample]
    if any(cell.count('"') % 2 for line in lines for cell in line.split(delimiter)):
        return {"delimiter": delimiter, "quoting": csv.QUOTE_NONE}
    return {"delimiter": delimiter}


def _check_header(path: Path, header: _CsvRow) -> list[str]:
    """Return the column names; one that is empty, as that of a pandas index, is numbered."""
    if header.error:
        raise SensoriumError(
            f"{path}:{header.first_line}: the header cannot be read: {header.error}."
        )
    names = [name.strip() for name in header.cells]
    if any(name.lower().endswith(IMAGE_EXTENSIONS) for name in names):
        raise SensoriumError(
            f"{path} has no header: its first line is {', '.join(names)[:80]!r}. "
            "Add the column names, e.g. filepath,caption."
        )
    return clean_column_names((name or f"column {i}" for i, name in enumerate(names, 1)), path)


# JSONL ----------------------------------------------------------------------------------------


def _read_jsonl(path: Path, encoding: str, file_name: str) -> Table:
    """Read a file with one JSON object per line."""
    line_numbers: list[int] = []
    bad_samples: list[BadSample] = []

    def records(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            value = parse_json(line)
            if not isinstance(value, dict):
                error = str(value) if isinstance(value, ValueError) else "not a JSON object {...}"
                location = f"{file_name}:{number}"
                bad_samples.append(BadSample(len(line_numbers), "", location, error))
                value = {}
            line_numbers.append(number)
            yield value

    with open_text(path, encoding) as f:
        columns = columns_from_records(records(f))
    locations = LineLocations(file_name, np.array(line_numbers, np.int64))
    return Table(columns, locations, bad_samples=bad_samples)


def columns_from_records(records: Iterable[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return a column for every key of the records, None where a record lacks it.

    Raises:
        SensoriumError: if there are more than 1024 different keys, or two keys are equal once
            cleaned.
    """
    columns: dict[str, list[Any]] = {}
    for number, record in enumerate(records, 1):
        for name, value in record.items():
            column = columns.setdefault(name, [None] * (number - 1))
            column.append(None if value == "" else value)
        if len(columns) > len(record):
            for column in columns.values():
                if len(column) < number:
                    column.append(None)
        if len(columns) > _MAX_COLUMNS:
            raise SensoriumError(
                f"more than {_MAX_COLUMNS} different keys by record {number}: this is not a table. "
                "Give every record the same keys."
            )
    names = clean_column_names(columns, "keys of records")
    return dict(zip(names, columns.values(), strict=True))


# Parquet --------------------------------------------------------------------------------------


def _read_parquet(path: Path, file_name: str) -> Table:
    """Read a Parquet file in bounded batches, so that it is never in memory twice."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as e:
        raise SensoriumError(
            f'{path} needs pyarrow. Install it: pip install "sensorium[data]".'
        ) from e
    try:
        check_regular(path)
        with pq.ParquetFile(path) as f:
            metadata = f.schema_arrow.metadata or {}
            classes = _read_class_names(metadata)
            index_columns = _read_index_columns(metadata)
            columns: dict[str, list[Any]] = {
                name: [] for name in clean_column_names(f.schema_arrow.names, path)
            }
            for batch in f.iter_batches(batch_size=_PARQUET_BATCH_ROWS):
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    if pa.types.is_temporal(values.type):  # not every time has a Python object
                        values = values.cast(pa.string())
                    columns[name] += [
                        _convert_parquet_value(v, classes.get(name)) for v in values.to_pylist()
                    ]
    except (pa.ArrowException, ValueError, OverflowError) as e:
        raise SensoriumError(f"{path} is not a readable Parquet file: {e}.") from e
    num_rows = len(next(iter(columns.values()), []))
    kinds = {name: "category" for name in classes if name in columns}
    reasons = {name: f"the file names its {len(classes[name])} classes" for name in kinds}
    locations = LineLocations(file_name, np.arange(1, num_rows + 1))
    index_columns = tuple(name for name in index_columns if name in columns)
    return Table(columns, locations, kinds=kinds, reasons=reasons, index_columns=index_columns)


def _convert_parquet_value(value: Any, class_names: list[str] | None) -> Any:
    """Convert what Hugging Face writes: an image as {"bytes", "path"}, a class as its number."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"] or value["path"] or None
    if class_names and isinstance(value, int):
        if value < 0:  # -1 stands for no label
            return None
        return class_names[value] if value < len(class_names) else value
    return None if value == "" else value


def _read_index_columns(metadata: dict[bytes, bytes]) -> list[str]:
    """Return the columns that pandas' metadata declare to be the index."""
    info = parse_json(metadata.get(b"pandas", b"{}").decode("utf-8", "replace"))
    names = info.get("index_columns") if isinstance(info, dict) else None
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _read_class_names(metadata: dict[bytes, bytes]) -> dict[str, list[str]]:
    """Return the classes of each column that Hugging Face's metadata name."""
    info = parse_json(metadata.get(b"huggingface", b"{}").decode("utf-8", "replace"))
    features = info.get("info", {}).get("features", {}) if isinstance(info, dict) else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
    }
