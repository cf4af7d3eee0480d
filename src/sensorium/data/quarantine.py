"""Every value is made what its column is taken for; a row where that fails is set aside by name, with the reason."""
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.bad import Bad, check_share
from sensorium.data.cell import NUMBERS, absent, as_list, as_number, is_address
from sensorium.data.schema import Schema, endings
from sensorium.data.sources import Table
from sensorium.modalities.dates import Date
from sensorium.modalities.tags import Tags


def settle(table: Table, schema: Schema, max_bad: float) -> Table:
    """The table with typed columns, its bad rows out of it and listed in `bad`; ignored columns are left as they are.

    After it an image column holds str (a path), bytes or arrays; a column of another kind that is read from files holds
    str (a path), lists or arrays; text holds str or list[str]; a number column is a
    float64 array, NaN where missing; category, split and group hold str. None is missing.
    Raises SensoriumError where more than the share `max_bad` of the rows is bad.
    """
    bad = list(table.bad)
    columns = dict(table.columns)
    unread = {b.row for b in bad}
    for name in [*schema.columns, *(r.name for r in schema.roles.values() if r.kind != "ignore")]:
        kind = schema.columns[name].kind if name in schema.columns else schema.roles[name].kind
        columns[name], faults = _typed(kind, table, table.columns[name])
        bad += [Bad(i, name, table.where[i], reason) for i, reason in faults if i not in unread]
    check_share(bad, len(table), max_bad)
    table = replace(table, columns=columns, bad=[replace(b, row=-1) for b in bad])
    gone = {b.row for b in bad}
    return table.take(np.array([i for i in range(len(table)) if i not in gone], np.int64)) if gone else table


def _typed(kind: str, table: Table, values: Any) -> tuple[Any, list[tuple[int, str]]]:
    """(the values as this kind has them, what is wrong with which row)."""
    if isinstance(values, np.ndarray) and values.ndim > 1:
        return values, []
    checks: dict[str, Callable[[Any], Any]] = {
        "text": _text, "number": _number, "image": _image, "date": _date, "set": _tags}
    check, faults, out = checks.get(kind, _name if endings(kind) is None else _held), [], []
    pool: dict[Any, Any] = {}
    for i, value in enumerate(values):
        try:
            value = None if absent(value) else check(value)
        except ValueError as e:
            faults.append((i, str(e)))
            value = None
        out.append(pool.setdefault(value, value) if isinstance(value, str) and kind not in ("text", "image") else value)
    if endings(kind) is not None:
        faults += _not_there(table, out)
    return (np.array(out, np.float64) if kind == "number" else out), faults


def _text(value: Any) -> str | list[str] | None:
    if isinstance(value, str):
        value = found if (found := as_list(value)) is not None else value
    elif isinstance(value, NUMBERS) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, str):
        return None if value.isspace() else value
    if not isinstance(value, list) or set(map(type, value)) - {str, type(None)}:
        raise ValueError(f"expected text, found {type(value).__name__} {str(value)[:40]!r}")
    return [v for v in value if v and not v.isspace()] or None


def _number(value: Any) -> float:
    number = as_number(value)
    if number is None or math.isinf(number):
        raise ValueError(f"expected a number, found {str(value)[:40]!r}")
    return number


def _date(value: Any) -> Any:
    Date().load(value)
    return value


def _tags(value: Any) -> list[str] | str | None:
    found = as_list(value)
    return (Tags().parted(value if found is None else found) and (value if found is None else found)) or None


def _name(value: Any) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, (list, dict, bytes, np.ndarray)):
        raise ValueError(f"expected one name, found {type(value).__name__} {str(value)[:40]!r}")
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value) if isinstance(value, float) and value.is_integer() else value).strip() or None


def _image(value: Any) -> str | bytes | np.ndarray:
    if is_address(value):
        raise ValueError(f"{value[:60]!r} is a web address and nothing is fetched: download the picture, give its path")
    if not isinstance(value, (str, bytes, np.ndarray)):
        raise ValueError(f"expected a picture or its path, found {type(value).__name__} {str(value)[:40]!r}")
    return _below(value) if isinstance(value, str) else value


def _held(value: Any) -> Any:
    """A path, or what a cell holds or spells in JSON: whether that can be read, its modality says."""
    if not isinstance(value, str):
        return value
    if is_address(value):
        raise ValueError(f"{value[:60]!r} is a web address and nothing is fetched: download the file, give its path")
    return _below(value) if (found := as_list(value)) is None else found


def _below(value: str) -> str:
    path = value.replace("\\", "/")
    if not path.startswith("/") and os.path.normpath(path).startswith(".."):
        raise ValueError(f"{value[:60]!r} leads out of the folder of the data; give such a file by its full path")
    return path


def _not_there(table: Table, paths: Sequence[Any]) -> Iterator[tuple[int, str]]:
    """Rows whose file is missing. Folders are listed, since asking for a million files one by one is slow."""
    listed: dict[tuple[Path, str], frozenset[str]] = {}
    for i, path in enumerate(paths):
        if isinstance(path, str):
            folder, slash, name = path.rpartition("/")
            place = (table.base(i), folder + slash)
            if place not in listed:
                listed[place] = _names(Path(*place))
            if name not in listed[place] and not os.path.isfile(place[0] / path):
                yield i, f"there is no file {place[0] / path}"


def _names(folder: Path) -> frozenset[str]:
    try:
        return frozenset(os.listdir(folder))
    except (OSError, ValueError):       # no such folder, or no right to list it: each file is then asked for
        return frozenset()
