"""Convert every value to its column's type, and set aside by location the rows where that fails."""

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from sensorium.data.bad_samples import BadSample, check_invalid_fraction
from sensorium.data.base64_cells import decode_base64_file
from sensorium.data.cell_parsing import NUMBER_TYPES, is_missing, is_url, parse_list, parse_number
from sensorium.data.file_names import FileFinder
from sensorium.data.number_format import NumberFormat
from sensorium.data.schema import Column, Schema, extensions
from sensorium.data.tables import UNSUPPORTED_IMAGE_EXTENSIONS, Table
from sensorium.io.untrusted import EmbeddedFile, replace_surrogates
from sensorium.modalities.base import Modality, is_missing_marker
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series_io import MAX_NUMBER
from sensorium.modalities.tabular import Numeric, spell_class

Faults = list[tuple[int, str]]  # (row, why it is invalid)


def validate_table(table: Table, schema: Schema, max_invalid_fraction: float) -> Table:
    """Return the table with typed columns and without its invalid rows, which are in `bad_samples`.

    An image column then holds str (a path), bytes or arrays; another column read from files str (a
    path), lists or arrays; text str or list[str]; a numeric column is a float64 array, NaN where
    missing; category, split and group hold str. None is missing. Ignored columns stay as they are.

    Raises:
        SensoriumError: if more than the fraction `max_invalid_fraction` of the rows is invalid.
    """
    bad_samples = list(table.bad_samples)
    columns = dict(table.columns)
    unreadable_rows = {sample.row for sample in bad_samples}
    kinds = {c.name: c.kind for c in schema.columns.values()}
    kinds |= {r.name: r.kind for r in schema.roles.values() if r.kind != "ignore"}
    for name, kind in kinds.items():
        settings = schema.columns[name].modality if name in schema.columns else None
        columns[name], faults = _convert_column(kind, settings, table, table.columns[name])
        bad_samples += [
            BadSample(row, name, table.locations[row], reason)
            for row, reason in faults
            if row not in unreadable_rows
        ]
    check_invalid_fraction(bad_samples, len(table), max_invalid_fraction)
    invalid_rows = {sample.row for sample in bad_samples}
    validated = replace(
        table,
        columns=columns,
        bad_samples=[replace(sample, row=-1) for sample in bad_samples],
    )
    if not invalid_rows:
        return validated
    valid_rows = [row for row in range(len(table)) if row not in invalid_rows]
    return validated.take(np.array(valid_rows, np.int64))


def mask_invalid_values(table: Table, columns_read: Mapping[str, Column]) -> Table:
    """Return the table with typed columns, in which what is invalid is missing.

    No row is left out: `bad_samples` has the row of each invalid value, and of each row that could
    not be read.

    Args:
        table: the raw values.
        columns_read: the columns that are read; the others stay as they are.
    """
    columns = dict(table.columns)
    bad_samples = list(table.bad_samples)
    unreadable_rows = {sample.row for sample in bad_samples}
    for name, column in columns_read.items():
        values, faults = _convert_column(column.kind, column.modality, table, table.columns[name])
        invalid = [fault for fault in faults if fault[0] not in unreadable_rows]
        for row, reason in invalid:
            values[row] = math.nan if column.kind == "numeric" else None
            bad_samples.append(BadSample(row, name, table.locations[row], reason))
        columns[name] = values
    return replace(table, columns=columns, bad_samples=bad_samples)


def _convert_column(
    kind: str, settings: Modality | None, table: Table, values: Any
) -> tuple[Any, Faults]:
    """Return the values converted to a type, None where that fails, and the rows where it does."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return values, []
    from_files = extensions(kind) is not None
    convert = _CONVERTERS.get(kind, _convert_file_value if from_files else _convert_name)
    if isinstance(settings, Numeric):
        convert = partial(_convert_number, NumberFormat(settings.decimal, settings.unit))
    elif isinstance(settings, Datetime):
        convert = partial(_check_datetime, settings)
    is_interned = kind not in ("text", "image")  # their strings repeat, so each is stored once
    interned: dict[str, str] = {}
    converted: list[Any] = []
    faults: Faults = []
    for row, value in enumerate(values):
        try:
            result = None if is_missing(value) else convert(value)
        except ValueError as e:
            faults.append((row, str(e)))
            result = None
        if is_interned and isinstance(result, str):
            result = interned.setdefault(result, result)
        converted.append(result)
    if from_files:
        faults += _find_files(table, converted)
    if kind == "numeric":
        return np.array(converted, np.float64), faults
    return converted, faults


def _convert_text(value: Any) -> str | list[str] | None:
    """Return one text or several; white space alone is missing."""
    if isinstance(value, str):
        captions = parse_list(value)
        is_list = captions is not None and set(map(type, captions)) <= {str, type(None)}
        value = captions if is_list else value
    elif isinstance(value, NUMBER_TYPES) and not isinstance(value, bool):
        value = str(value)
    value = replace_surrogates(value)
    if isinstance(value, str):
        return None if value.isspace() else value
    if not isinstance(value, list) or set(map(type, value)) - {str, type(None)}:
        raise ValueError(f"expected text, not {type(value).__name__} {str(value)[:40]!r}")
    return [caption for caption in value if caption and not caption.isspace()] or None


def _convert_number(number_format: NumberFormat, value: Any) -> float:
    """Return a finite number, or NaN for a missing one."""
    number = parse_number(value, number_format)
    if number is None or math.isinf(number):
        raise ValueError(f"expected a number, not {str(value)[:40]!r}")
    if abs(number) > MAX_NUMBER:
        raise ValueError(f"{number:g} is beyond the limit of {MAX_NUMBER:g}")
    return number


def _check_datetime(settings: Datetime, value: Any) -> Any:
    """Return the value if it is a date, None for a missing marker."""
    if isinstance(value, str) and is_missing_marker(value):
        return None
    settings.load(value)
    return value


def _convert_tags(value: Any) -> list[str] | str | None:
    """Return the tags as a list or one text; without any they are missing."""
    tags = parse_list(value)
    if tags is None:
        tags = value
    if isinstance(tags, list):  # numbers are names of tags, too
        tags = [spell_class(tag) if isinstance(tag, NUMBER_TYPES) else tag for tag in tags]
    return tags if Multilabel().split_tags(tags) else None


def _convert_name(value: Any) -> str | None:
    """Return the name of a class, a split or a group."""
    if isinstance(value, (list, dict, bytes, np.ndarray)):
        raise ValueError(f"expected one name, not {type(value).__name__} {str(value)[:40]!r}")
    return spell_class(replace_surrogates(value)) or None


def _convert_image(value: Any) -> str | bytes | np.ndarray | EmbeddedFile:
    """Return a path, an encoded image or an array of pixels."""
    if isinstance(value, str):
        content = decode_base64_file(value)
        if content is not None:
            return content
        if value.lower().endswith(UNSUPPORTED_IMAGE_EXTENSIONS):
            suffix = value[value.rindex(".") :].lower()
            raise ValueError(f"{suffix} files are not supported: save it as JPEG or PNG")
        return _check_path(value)
    if not isinstance(value, (bytes, np.ndarray, EmbeddedFile)):
        raise ValueError(
            f"expected an image or its path, not {type(value).__name__} {str(value)[:40]!r}"
        )
    return value


def _convert_file_value(value: Any) -> Any:
    """Return a path, or the value in a cell, which may be JSON; its modality validates it later."""
    if not isinstance(value, str):
        return value
    content = decode_base64_file(value)
    if content is not None:
        return content
    items = None if is_url(value) else parse_list(value)
    return _check_path(value) if items is None else items


def _check_path(value: str) -> str:
    """Return a path with '/' if it is absolute or below the data folder."""
    if is_url(value):
        raise ValueError(
            f"{value[:60]!r} is a web address and nothing is fetched: download the file and "
            "give its path"
        )
    path = value.replace("\\", "/")
    if not path.startswith("/") and os.path.normpath(path).startswith(".."):
        raise ValueError(
            f"{value[:60]!r} leads out of the data folder: give the full path of such a file"
        )
    return path


def _find_files(table: Table, paths: list[Any]) -> Iterator[tuple[int, str]]:
    """Spell the paths as on the disk, in place, and yield the rows whose file is missing."""
    finder = FileFinder()
    for row, path in enumerate(paths):
        if not isinstance(path, str):
            continue
        base = table.base_folder(row)
        paths[row] = finder.find(base, path)
        if paths[row] is None:
            yield row, finder.explain(base, path)


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "text": _convert_text,
    "image": _convert_image,
    "multilabel": _convert_tags,
}
