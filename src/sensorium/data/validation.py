"""Every value is made what its column is taken for; a row where that fails is set aside by name, with the reason."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.bad_samples import BadSample, check_invalid_fraction
from sensorium.data.cell_parsing import NUMBER_TYPES, is_missing, is_url, parse_list, parse_number
from sensorium.data.schema import Schema, extensions
from sensorium.data.tables import Table
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.multilabel import Multilabel


def validate_table(table: Table, schema: Schema, max_invalid_fraction: float) -> Table:
    """The table with typed columns, its bad rows out of it and listed in `bad`; ignored columns are left as they are.

    After it an image column holds str (a path), bytes or arrays; a column of another kind that is read from files holds
    str (a path), lists or arrays; text holds str or list[str]; a number column is a
    float64 array, NaN where missing; category, split and group hold str. None is missing.
    Raises SensoriumError where more than the share `max_invalid_fraction` of the rows is bad.
    """
    bad = list(table.bad_samples)
    columns = dict(table.columns)
    unread = {b.row for b in bad}
    for name in [*schema.columns, *(r.name for r in schema.roles.values() if r.kind != "ignore")]:
        kind = schema.columns[name].kind if name in schema.columns else schema.roles[name].kind
        columns[name], faults = _convert_column(kind, table, table.columns[name])
        bad += [
            BadSample(i, name, table.locations[i], reason)
            for i, reason in faults
            if i not in unread
        ]
    check_invalid_fraction(bad, len(table), max_invalid_fraction)
    table = replace(table, columns=columns, bad_samples=[replace(b, row=-1) for b in bad])
    gone = {b.row for b in bad}
    return (
        table.take(np.array([i for i in range(len(table)) if i not in gone], np.int64))
        if gone
        else table
    )


def _convert_column(kind: str, table: Table, values: Any) -> tuple[Any, list[tuple[int, str]]]:
    """(the values as this kind has them, what is wrong with which row)."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return values, []
    checks: dict[str, Callable[[Any], Any]] = {
        "text": _convert_text,
        "numeric": _convert_number,
        "image": _convert_image,
        "datetime": _check_datetime,
        "multilabel": _convert_tags,
    }
    check, faults, out = (
        checks.get(kind, _convert_name if extensions(kind) is None else _convert_file_value),
        [],
        [],
    )
    pool: dict[Any, Any] = {}
    for i, value in enumerate(values):
        try:
            value = None if is_missing(value) else check(value)
        except ValueError as e:
            faults.append((i, str(e)))
            value = None
        out.append(
            pool.setdefault(value, value)
            if isinstance(value, str) and kind not in ("text", "image")
            else value
        )
    if extensions(kind) is not None:
        faults += _find_missing_files(table, out)
    return (np.array(out, np.float64) if kind == "numeric" else out), faults


def _convert_text(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        value = found if (found := parse_list(value)) is not None else value
    elif isinstance(value, NUMBER_TYPES) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return None if value.isspace() else value
    if not isinstance(value, list) or set(map(type, value)) - {str, type(None)}:
        raise ValueError(f"expected text, found {type(value).__name__} {str(value)[:40]!r}")
    return [v for v in value if v and not v.isspace()] or None


def _convert_number(value: Any) -> float:
    number = parse_number(value)
    if number is None or math.isinf(number):
        raise ValueError(f"expected a number, found {str(value)[:40]!r}")
    return number


def _check_datetime(value: Any) -> Any:
    Datetime().load(value)
    return value


def _convert_tags(value: Any) -> list[str] | str | None:
    found = parse_list(value)
    return (
        Multilabel().split_tags(value if found is None else found)
        and (value if found is None else found)
    ) or None


def _convert_name(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, dict, bytes, np.ndarray)):
        raise ValueError(f"expected one name, found {type(value).__name__} {str(value)[:40]!r}")
    if isinstance(value, bool):
        return str(value).lower()
    return (
        str(int(value) if isinstance(value, float) and value.is_integer() else value).strip()
        or None
    )


def _convert_image(value: Any) -> str | bytes | np.ndarray:
    if is_url(value):
        raise ValueError(
            f"{value[:60]!r} is a web address and nothing is fetched: download the picture, give its path"
        )
    if not isinstance(value, (str, bytes, np.ndarray)):
        raise ValueError(
            f"expected a picture or its path, found {type(value).__name__} {str(value)[:40]!r}"
        )
    return _check_path(value) if isinstance(value, str) else value


def _convert_file_value(value: Any) -> Any:
    """A path, or what a cell holds or spells in JSON: whether that can be read, its modality says."""
    if not isinstance(value, str):
        return value
    if is_url(value):
        raise ValueError(
            f"{value[:60]!r} is a web address and nothing is fetched: download the file, give its path"
        )
    return _check_path(value) if (found := parse_list(value)) is None else found


def _check_path(value: str) -> str:
    path = value.replace("\\", "/")
    if not path.startswith("/") and os.path.normpath(path).startswith(".."):
        raise ValueError(
            f"{value[:60]!r} leads out of the folder of the data; give such a file by its full path"
        )
    return path


def _find_missing_files(table: Table, paths: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Rows whose file is missing. Folders are listed, since asking for a million files one by one is slow."""
    listed: dict[tuple[Path, str], frozenset[str]] = {}
    for i, path in enumerate(paths):
        if isinstance(path, str):
            folder, slash, name = path.rpartition("/")
            place = (table.base_folder(i), folder + slash)
            if place not in listed:
                listed[place] = _list_names(Path(*place))
            if name not in listed[place] and not os.path.isfile(place[0] / path):
                yield i, f"there is no file {place[0] / path}"


def _list_names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (
        OSError,
        ValueError,
    ):  # no such folder, or no right to list it: each file is then asked for
        return frozenset()
