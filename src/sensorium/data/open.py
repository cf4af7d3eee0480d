"""Open a source: find its reader, infer the column types and set the invalid rows aside."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any, NamedTuple

from sensorium.data.bundled.registry import BUNDLED_DATASETS, is_sheets_folder, open_sheets
from sensorium.data.caption_files import read_json_file
from sensorium.data.folders import concat_shards, read_folder
from sensorium.data.named_files import (
    expand_file_lists,
    group_captions,
    lacks_files,
    list_subfolder_files,
    resolve_files,
)
from sensorium.data.schema import Schema
from sensorium.data.shards import (
    PACKED_TAR_ENDINGS,
    TAR_ENDING,
    expand_pattern,
    is_pattern,
    read_shards,
)
from sensorium.data.splits import read_splits
from sensorium.data.table_files import read_table
from sensorium.data.tables import Table, concat_tables
from sensorium.data.type_inference import infer_schema
from sensorium.data.validation import mask_invalid_values, validate_table
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality

_READER_ARGUMENTS = ("path", "folder", "name")  # of readers, which are not options of a source


class OpenedRows(NamedTuple):
    """Rows to predict: typed, part of a schema, named, and the columns as they were read."""

    table: Table
    schema: Schema
    name: str
    raw_columns: dict[str, Any]


def open_table(
    source: Path,
    types: Mapping[str, str | Modality],
    split: str | None = None,
    test: Path | None = None,
    max_invalid_fraction: float = 0.01,
    source_options: dict[str, Any] | None = None,
    known_types: Mapping[str, str] | None = None,
) -> tuple[Table, Schema, str]:
    """Open a folder, a file or a bundled dataset.

    Args:
        source: a path or the name of a bundled dataset.
        types: the types of columns for which they are not inferred.
        split: the column that holds each row's split, or a file that does.
        test: another source, whose rows become the split "test".
        max_invalid_fraction: the largest fraction of rows that may be invalid.
        source_options: options of the reader.
        known_types: types of columns that the source may have, used where `types` has none.

    Returns:
        The table without its invalid rows, its schema, and the name of the dataset.

    Raises:
        SensoriumError: if the source cannot be read.
    """
    source_options = source_options or {}
    table, name = _read_source(source, source_options)
    table = group_captions(table)
    if test is not None:
        test_table, _ = _read_source(test, source_options)
        test_table = group_captions(test_table)
        table = concat_tables([(None, table), ("test", test_table)])
    if split is not None:
        if split not in table.columns:
            split_file = Path(split)
            split = "split" if "split" not in table.columns else f"split ({split_file.name})"
            table.columns[split] = read_splits(split_file, table)
        types = {**types, split: "split"}
    known = {name: kind for name, kind in (known_types or {}).items() if name in table.columns}
    schema = infer_schema(table, {**known, **types}, max_invalid_fraction)
    return validate_table(table, schema, max_invalid_fraction), schema, name


def open_table_with_schema(
    source: Path, schema: Schema, max_invalid_fraction: float, source_options: dict[str, Any]
) -> tuple[Table, Schema, str]:
    """Open a source whose columns have the types of a schema.

    Some of the schema's columns may be missing; other columns of the source are ignored.

    Returns:
        The table without its invalid rows, the part of the schema that it has, and the name of the
        dataset.

    Raises:
        SensoriumError: if the source has none of the columns.
    """
    table, name = _read_source(source, source_options)
    table = group_captions(table)
    columns = {n: column for n, column in schema.columns.items() if n in table.columns}
    if not columns:
        raise SensoriumError(
            f"{source} has none of the columns {', '.join(schema.columns)}. It has "
            f"{', '.join(table.columns)}."
        )
    present = replace(schema, columns=columns, roles={})
    return validate_table(table, present, max_invalid_fraction), present, name


def open_rows_to_predict(
    source: Path,
    schema: Schema | None,
    columns: Sequence[str],
    source_options: dict[str, Any] | None = None,
) -> OpenedRows:
    """Open a source of which every row is predicted, reading only the columns that a model reads.

    Args:
        source: a path or the name of a bundled dataset.
        schema: the schema of the model; None: the types are inferred.
        columns: the columns that the model reads; none: the only image column.
        source_options: options of the reader, such as the `encoding` of a text file.

    Raises:
        SensoriumError: if the source cannot be read.
    """
    if schema is None:
        return open_all_rows(
            source, lambda inferred: columns or [inferred.resolve_column("image")], source_options
        )
    table, name = _read_source(source, source_options or {})
    known = {n: schema.columns[n] for n in columns if n in table.columns}
    return OpenedRows(mask_invalid_values(table, known), Schema(known), name, dict(table.columns))


def open_all_rows(
    source: Path,
    choose: Callable[[Schema], Sequence[str]],
    source_options: dict[str, Any] | None = None,
) -> OpenedRows:
    """Open a source without leaving out any row; what is invalid in it is missing.

    Args:
        source: a path or the name of a bundled dataset.
        choose: returns the columns to read, given the inferred types of all.
        source_options: options of the reader.

    Raises:
        SensoriumError: if the source cannot be read or a chosen column does not exist.
    """
    table, name = _read_source(source, source_options or {})
    schema = infer_schema(table, {})
    known = {n: schema.get_column(n) for n in choose(schema)}
    return OpenedRows(mask_invalid_values(table, known), Schema(known), name, dict(table.columns))


def _read_source(source: Path, source_options: dict[str, Any]) -> tuple[Table, str]:
    """Return the raw table and its name; a path takes precedence over a bundled dataset."""
    path = source.expanduser()
    if not path.exists():
        if is_pattern(str(path)):
            table = _call_reader(_read_pattern, (path,), source_options)
            expand_file_lists(table)
            return table, path.name
        if str(source) not in BUNDLED_DATASETS:
            raise SensoriumError(
                f"There is no file or folder {str(source)!r}, and no bundled dataset of that name. "
                f"The bundled datasets are {', '.join(BUNDLED_DATASETS)}."
            )
        return _call_reader(BUNDLED_DATASETS[str(source)], (), source_options), str(source)
    reader: Callable[..., Table] = read_folder
    if not path.is_dir():
        reader = _read_file
    elif is_sheets_folder(path):
        reader = open_sheets
    table = _call_reader(reader, (path,), source_options)
    expand_file_lists(table)
    return table, path.resolve().name


def _read_file(path: Path, encoding: str = "utf-8", name: str = "", delimiter: str = "") -> Table:
    """Read a table, an archive or a JSON file of records."""
    lower = path.name.lower()
    name = name or path.name
    if lower.endswith((TAR_ENDING, *PACKED_TAR_ENDINGS)):
        return read_shards([path], encoding)
    is_json = lower.endswith(".json")
    table = read_json_file(path, encoding, name) if is_json else None
    table = read_table(path, encoding, name, delimiter) if table is None else table
    if lacks_files(table):
        resolve_files(table, list_subfolder_files(path.parent))
    return table


def _read_pattern(
    path: Path, encoding: str = "utf-8", name: str = "", delimiter: str = ""
) -> Table:
    """Read the files that a pattern names as one table."""
    paths = expand_pattern(str(path))
    if all(p.name.lower().endswith(TAR_ENDING) for p in paths):
        return read_shards(paths, encoding, name)
    return concat_shards([_read_file(p, encoding, f"{name}{p.name}", delimiter) for p in paths])


def _call_reader(
    reader: Callable[..., Table], arguments: tuple[Path, ...], source_options: dict[str, Any]
) -> Table:
    """Call a reader.

    Raises:
        SensoriumError: for an option that it does not have.
    """
    options = [name for name in signature(reader).parameters if name not in _READER_ARGUMENTS]
    for name in source_options:
        if name not in options:
            raise SensoriumError(
                f"unknown option {name!r} (--source-option). This source takes "
                f"{', '.join(options)}; every source takes split, group, types, test, "
                "max_invalid_fraction and synonyms."
            )
    return reader(*arguments, **source_options)


def source_arguments(
    source: str | os.PathLike[str], max_invalid_fraction: float, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments of `Dataset.open` as JSON values, without those that are not set."""
    path = Path(source)
    arguments: dict[str, Any] = {
        "path": _absolute_source(path),
        "max_invalid_fraction": max_invalid_fraction,
    }
    for name, value in options.items():
        if value not in (None, {}):
            plain = isinstance(value, dict | list | tuple | int | float)
            arguments[name] = value if plain else str(value)
    return arguments


def _absolute_source(path: Path) -> str:
    """Return a source that is found from another folder; the name of a bundled dataset stays."""
    if path.exists():
        return str(path.resolve())
    is_pattern = any(mark in str(path) for mark in "*?[{")
    return str(path.expanduser().absolute() if is_pattern else path)
