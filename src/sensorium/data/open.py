"""From whatever the user named to a table whose columns are understood and whose bad rows are set aside."""

from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from sensorium.data.bundled.registry import BUNDLED_DATASETS, is_sheets_folder, open_sheets
from sensorium.data.folders import read_folder
from sensorium.data.schema import Schema
from sensorium.data.splits import read_splits
from sensorium.data.tables import Table, concat_tables, read_table
from sensorium.data.type_inference import infer_schema
from sensorium.data.validation import validate_table
from sensorium.errors import SensoriumError
from sensorium.modalities.base import Modality


def open_table(
    source: Path,
    types: dict[str, str | Modality],
    split: str | None = None,
    test: Path | None = None,
    max_invalid_fraction: float = 0.01,
    source_options: dict[str, Any] | None = None,
) -> tuple[Table, Schema, str]:
    """(table, schema, name) of a folder, a file or an embedded set: the arguments are those of `Dataset.open`."""
    source_options = source_options or {}
    table, name = _read_source(source, source_options)
    if test is not None:
        table = concat_tables([(None, table), ("test", _read_source(test, source_options)[0])])
    if split is not None and split not in table.columns:
        name = "split" if "split" not in table.columns else f"split ({Path(split).name})"
        table.columns[name], split = read_splits(Path(split), table), name
    schema = infer_schema(
        table, {**types, **({split: "split"} if split is not None else {})}, max_invalid_fraction
    )
    return validate_table(table, schema, max_invalid_fraction), schema, name


def open_table_with_schema(
    source: Path, schema: Schema, max_invalid_fraction: float, source_options: dict[str, Any]
) -> tuple[Table, Schema, str]:
    """The same, with what a run's schema says of its columns; other columns are left aside, and some may be missing.

    Raises SensoriumError where there is none of them.
    """
    table, name = _read_source(source, source_options)
    known = replace(
        schema, columns={n: c for n, c in schema.columns.items() if n in table.columns}, roles={}
    )
    if not known.columns:
        raise SensoriumError(
            f"{source} has none of the columns {', '.join(schema.columns)}; it has "
            f"{', '.join(table.columns)}."
        )
    return validate_table(table, known, max_invalid_fraction), known, name


def _read_source(source: Path, source_options: dict[str, Any]) -> tuple[Table, str]:
    """(the raw table, what to call it). A path goes before an embedded set of the same name."""
    path = source.expanduser()
    if not path.exists():
        if str(source) not in BUNDLED_DATASETS:
            raise SensoriumError(
                f"there is no file or folder {str(source)!r}, and no embedded set of that name "
                f"(there are: {', '.join(BUNDLED_DATASETS)})."
            )
        return _call_reader(BUNDLED_DATASETS[str(source)], (), source_options), str(source)
    name = path.resolve().name
    if path.is_dir() and is_sheets_folder(path):
        return _call_reader(open_sheets, (path,), source_options), name
    return _call_reader(read_folder if path.is_dir() else read_table, (path,), source_options), name


def _call_reader(
    reader: Callable[..., Table], arguments: tuple[Any, ...], source_options: dict[str, Any]
) -> Table:
    """Call a reader; an option it does not have is the user's mistake, not the program's."""
    names = signature(reader).parameters
    known = [n for n in names if n not in ("path", "folder", "name")]
    for name in source_options:
        if name not in known:
            raise SensoriumError(
                f"unknown option {name!r}; this source takes {', '.join(known)}, and every one takes "
                "split, group, types, test, max_invalid_fraction, synonyms."
            )
    return reader(*arguments, **source_options)
