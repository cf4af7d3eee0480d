"""Read files of rows: CSV, TSV, JSONL and Parquet."""

import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.bad_samples import BadSample
from sensorium.data.csv_files import read_csv
from sensorium.data.tables import (
    IMAGE_EXTENSIONS,
    TABLE_EXTENSIONS,
    LineLocations,
    Table,
    check_missing_cells,
    clean_column_names,
    iter_lines,
    open_text,
    parse_json,
    table_extension,
)
from sensorium.errors import SensoriumError
from sensorium.io.untrusted import (
    MAX_TABLE_COLUMNS,
    MIN_UNPACKED_BYTES,
    check_regular,
    check_unpacked_size,
    open_regular,
)

_MAX_SNIFFED_CHARACTERS = 1 << 16  # of a line
_PARQUET_BATCH_ROWS = 4096  # rows converted at a time
_NESTED_BATCH_ROWS = 64  # the same, of lists, which may be of any length
_MIN_BATCH_ROWS = 16
_MAX_BATCH_BYTES = 4 << 30  # if each row of a batch held the largest text that there may be
_BYTES_PER_VALUE = 8  # of a number, and of the reference to a text


def read_table(path: Path, encoding: str = "utf-8", name: str = "", delimiter: str = "") -> Table:
    """Read a CSV, TSV, JSONL or Parquet file. Paths in it are relative to its folder.

    Args:
        path: the file.
        encoding: of a text file.
        name: what messages call the file; by default its name.
        delimiter: between the cells of CSV or TSV; by default it is recognised.

    Returns:
        The table; a row that cannot be read is in `bad_samples`, by line.

    Raises:
        SensoriumError: if the file as a whole cannot be read.
    """
    suffix = table_extension(path) or (".csv" if is_text_table(path) else "")
    name = name or path.name
    if not suffix:
        raise SensoriumError(
            f"{path} has an unsupported file type. Give a folder or one of "
            f"{', '.join(TABLE_EXTENSIONS)}."
        )
    if len(delimiter) > 1 or delimiter in ("\n", "\r", '"'):
        raise SensoriumError(
            f"the delimiter {delimiter!r} is not one character. Give one, e.g. "
            "--source-option 'delimiter=;'."
        )
    try:
        if suffix == ".parquet":
            table = _read_parquet(path, name)
        elif suffix.startswith((".csv", ".tsv")):
            table = read_csv(path, encoding, name, delimiter)
        else:
            table = _read_jsonl(path, encoding, name)
    except UnicodeError as e:
        raise SensoriumError(_undecodable_message(path, encoding, e)) from e
    except (OSError, EOFError, zlib.error) as e:
        reason = getattr(e, "strerror", None) or e
        raise SensoriumError(f"could not read {path}: {reason}.") from e
    if not len(table):
        raise SensoriumError(f"{path} has no rows." if table.columns else f"{path} is empty.")
    table.root = path.parent
    return table


def is_text_table(path: Path) -> bool:
    """Return whether a .txt file is a table that names images, as captions.txt of Flickr8k."""
    if path.suffix.lower() != ".txt":
        return False
    try:
        with open_text(path) as f:
            lines = [f.readline(_MAX_SNIFFED_CHARACTERS) for _ in range(2)]
    except (OSError, UnicodeError):
        return False
    cells = [re.split(r"[,;|\t]", line, maxsplit=1) for line in lines]
    is_row = [len(c) > 1 and c[0].strip(' "').lower().endswith(IMAGE_EXTENSIONS) for c in cells]
    return len(cells[0]) > 1 and is_row == [False, True]


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
            yield {name: _unwrap_media(item) for name, item in value.items()}

    with open_text(path, encoding) as f:
        columns = columns_from_records(records(iter_lines(f, file_name)), path)
    locations = LineLocations(file_name, np.array(line_numbers, np.int64))
    return Table(columns, locations, bad_samples=bad_samples)


def columns_from_records(
    records: Iterable[dict[str, Any]], source: Path | str = "records"
) -> dict[str, list[Any]]:
    """Return a column for every key of the records, None where a record lacks it.

    Args:
        records: the records.
        source: what messages call them.

    Raises:
        SensoriumError: if there are more than MAX_TABLE_COLUMNS different keys, records lack too
            many of them, or two keys are equal once cleaned.
    """
    columns: dict[str, list[Any]] = {}
    num_missing = 0
    for number, record in enumerate(records, 1):
        for name, value in record.items():
            column = columns.get(name)
            if column is None:
                column = columns[name] = [None] * (number - 1)
                num_missing += number - 1
            column.append(None if value == "" else value)
        if len(columns) > len(record):
            num_missing += len(columns) - len(record)
            check_missing_cells(num_missing, source)
            for column in columns.values():
                if len(column) < number:
                    column.append(None)
        if len(columns) > MAX_TABLE_COLUMNS:
            raise SensoriumError(
                f"{source}: more than {MAX_TABLE_COLUMNS:,} different keys by record {number:,}. "
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
            repeating, batch_rows = _check_parquet(f, path)
        with pq.ParquetFile(path, read_dictionary=repeating) as f:
            metadata = f.schema_arrow.metadata or {}
            num_bytes = 0
            classes = _read_class_names(metadata)
            index_columns = _read_index_columns(metadata)
            columns: dict[str, list[Any]] = {
                name: [] for name in clean_column_names(f.schema_arrow.names, path)
            }
            for batch in f.iter_batches(batch_size=batch_rows):
                for name, values in zip(batch.schema.names, batch.columns, strict=True):
                    num_bytes += _expanded_bytes(values)
                    _check_unpacked(num_bytes, path)
                    if pa.types.is_dictionary(values.type):
                        columns[name] += _expand_dictionary(values, classes.get(name))
                        continue
                    if pa.types.is_temporal(values.type):  # not every time has a Python object
                        values = values.cast(pa.string())
                    columns[name] += [
                        _convert_parquet_value(v, classes.get(name)) for v in values.to_pylist()
                    ]
    except (pa.ArrowMemoryError, MemoryError) as e:
        raise SensoriumError(
            f"{path} needs more memory to unpack than there is. Write it with smaller row groups."
        ) from e
    except (pa.ArrowException, ValueError, OverflowError) as e:
        raise SensoriumError(f"{path} is not a readable Parquet file: {e}.") from e
    num_rows = len(next(iter(columns.values()), []))
    kinds = {name: "category" for name in classes if name in columns}
    reasons = {name: f"the file names its {len(classes[name])} classes" for name in kinds}
    locations = LineLocations(file_name, np.arange(1, num_rows + 1))
    index_columns = tuple(name for name in index_columns if name in columns)
    return Table(columns, locations, kinds=kinds, reasons=reasons, index_columns=index_columns)


def _check_parquet(file: Any, path: Path) -> tuple[list[str], int]:
    """Check what a Parquet file claims to unpack to.

    Returns:
        The columns to read as dictionaries, whose texts repeat so often that unpacking each of
        them would fill memory, and the number of rows to convert at a time.

    Raises:
        SensoriumError: if it has too many columns, or unpacks to far more than its size.
    """
    import pyarrow as pa

    clean_column_names(file.schema_arrow.names, path)
    texts = {
        field.name
        for field in file.schema_arrow
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
    }
    repeating: set[str] = set()
    num_bytes = 0
    rows_at_once = _PARQUET_BATCH_ROWS
    for i in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(i)
        for chunk in map(group.column, range(group.num_columns)):
            value_bytes = max(chunk.num_values, 0) * _BYTES_PER_VALUE
            num_bytes += max(value_bytes, chunk.total_uncompressed_size)
            if chunk.path_in_schema in texts and chunk.total_uncompressed_size < value_bytes:
                repeating.add(chunk.path_in_schema)
            elif chunk.physical_type == "BYTE_ARRAY":  # one value may be as large as all of them
                largest = max(chunk.total_uncompressed_size, 1)
                rows_at_once = min(rows_at_once, _MAX_BATCH_BYTES // largest)
            elif "." in chunk.path_in_schema:  # a list of any length
                rows_at_once = min(rows_at_once, _NESTED_BATCH_ROWS)
        _check_unpacked(num_bytes, path)
    return sorted(repeating), max(rows_at_once, _MIN_BATCH_ROWS)


def _check_unpacked(num_bytes: int, path: Path) -> None:
    reason = check_unpacked_size(num_bytes, path.stat().st_size, MIN_UNPACKED_BYTES)
    if reason:
        raise SensoriumError(f"{path}: {reason}, and keep only the columns you need.")


def _expanded_bytes(values: Any) -> int:
    """Return the bytes of an array's values, each repeated as often as it occurs."""
    import pyarrow as pa
    from pyarrow import compute

    if not pa.types.is_dictionary(values.type):
        return values.nbytes
    lengths = compute.call_function("binary_length", [values.dictionary])
    total = compute.call_function("sum", [lengths.take(values.indices).cast(pa.int64())])
    return _BYTES_PER_VALUE * len(values) + (total.as_py() or 0)


def _expand_dictionary(values: Any, class_names: list[str] | None) -> list[Any]:
    """Return the texts of a dictionary array; equal ones are one object."""
    used, positions = np.unique(values.indices.fill_null(-1), return_inverse=True)
    present = used[used >= 0]
    texts = [None] * (len(used) - len(present)) + values.dictionary.take(present).to_pylist()
    converted = [_convert_parquet_value(text, class_names) for text in texts]
    return [converted[i] for i in positions.tolist()]


def _convert_parquet_value(value: Any, class_names: list[str] | None) -> Any:
    """Convert what Hugging Face writes: an image as {"bytes", "path"}, a class as its number."""
    value = _unwrap_media(value)
    if class_names and isinstance(value, int):
        if value < 0:  # -1 stands for no label
            return None
        return class_names[value] if value < len(class_names) else value
    return None if value == "" else value


def _unwrap_media(value: Any) -> Any:
    """Return the content or the path of a file that Hugging Face writes as {"bytes", "path"}."""
    if isinstance(value, dict) and value.keys() == {"bytes", "path"}:
        return value["bytes"] or value["path"] or None
    return value


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
