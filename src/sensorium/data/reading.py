"""From whatever the user named to a table whose columns are understood and whose bad rows are set aside."""
from collections.abc import Callable
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import Any

from sensorium.data.examples import EXAMPLES, is_sheets, open_sheets
from sensorium.data.folders import read_folder
from sensorium.data.infer import infer
from sensorium.data.quarantine import settle
from sensorium.data.schema import Schema
from sensorium.data.sources import Table, join, read_file
from sensorium.data.splits import read_splits
from sensorium.errors import SensoriumError
from sensorium.modalities.modality import Modality


def read(source: Path, chosen: dict[str, str | Modality], split: str | None = None, test: Path | None = None,
         max_bad: float = 0.01, options: dict[str, Any] | None = None) -> tuple[Table, Schema, str]:
    """(table, schema, name) of a folder, a file or an embedded set: the arguments are those of `Dataset.open`."""
    options = options or {}
    table, name = _table(source, options)
    if test is not None:
        table = join([(None, table), ("test", _table(test, options)[0])])
    if split is not None and split not in table.columns:
        name = "split" if "split" not in table.columns else f"split ({Path(split).name})"
        table.columns[name], split = read_splits(Path(split), table), name
    schema = infer(table, {**chosen, **({split: "split"} if split is not None else {})}, max_bad)
    return settle(table, schema, max_bad), schema, name


def read_like(source: Path, schema: Schema, max_bad: float, options: dict[str, Any]) -> tuple[Table, Schema, str]:
    """The same, with what a run's schema says of its columns; other columns are left aside, and some may be missing.

    Raises SensoriumError where there is none of them.
    """
    table, name = _table(source, options)
    known = replace(schema, columns={n: c for n, c in schema.columns.items() if n in table.columns}, roles={})
    if not known.columns:
        raise SensoriumError(f"{source} has none of the columns {', '.join(schema.columns)}; it has "
                             f"{', '.join(table.columns)}.")
    return settle(table, known, max_bad), known, name


def _table(source: Path, options: dict[str, Any]) -> tuple[Table, str]:
    """(the raw table, what to call it). A path goes before an embedded set of the same name."""
    path = source.expanduser()
    if not path.exists():
        if str(source) not in EXAMPLES:
            raise SensoriumError(f"there is no file or folder {str(source)!r}, and no embedded set of that name "
                                 f"(there are: {', '.join(EXAMPLES)}).")
        return _call(EXAMPLES[str(source)], (), options), str(source)
    name = path.resolve().name
    if path.is_dir() and is_sheets(path):
        return _call(open_sheets, (path,), options), name
    return _call(read_folder if path.is_dir() else read_file, (path,), options), name


def _call(read: Callable[..., Table], arguments: tuple[Any, ...], options: dict[str, Any]) -> Table:
    """Call a reader; an option it does not have is the user's mistake, not the program's."""
    names = signature(read).parameters
    known = [n for n in names if n not in ("path", "folder", "name")]
    for name in options:
        if name not in known:
            raise SensoriumError(f"unknown option {name!r}; this source takes {', '.join(known)}, and every one takes "
                                 "split, group, columns, test, max_bad, synonyms.")
    return read(*arguments, **options)
