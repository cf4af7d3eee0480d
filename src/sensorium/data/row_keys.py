"""Keys that identify rows: rows with equal keys belong to one group and stay in one split.

The key of a row is its value in the group column or, without one, a digest of its content.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prefetch import prefetch
from sensorium.data.schema import Schema, extensions, unknown_column_error
from sensorium.data.tables import Table
from sensorium.io.untrusted import EmbeddedFile, open_regular

HASH_BATCH_SIZE = 256  # rows hashed at a time
_CONTENT_TYPES = ("image", "text", "audio", "series")  # whose content identifies a row, best first


def raw_values(
    table: Table, schema: Schema, column: str, rows: Sequence[int] | np.ndarray
) -> list[Any]:
    """Return the raw values of some rows, None where missing; paths are joined to their folder.

    Raises:
        SensoriumError: if there is no such column.
    """
    if column not in table.columns:
        raise unknown_column_error(column, table.columns, f"Columns: {', '.join(table.columns)}.")
    values = table.columns[column]
    rows = np.asarray(rows, np.int64)
    kind = schema.columns[column].kind if column in schema.columns else ""
    if kind == "numeric":
        return [None if np.isnan(v) else v for v in values[rows].tolist()]
    if extensions(kind) is None:
        return [values[i] for i in rows.tolist()]
    return [
        table.base_folder(i) / values[i] if isinstance(values[i], str) else values[i]
        for i in rows.tolist()
    ]


def row_keys(table: Table, schema: Schema, rows: np.ndarray) -> Iterator[str]:
    """Yield the key of each of `rows`."""
    group_column = schema.find_role("group")
    if group_column is None:
        return _content_keys(table, schema, rows.tolist())
    groups = raw_values(table, schema, group_column, rows)
    ungrouped = [int(row) for row, group in zip(rows, groups, strict=True) if group is None]
    content = _content_keys(table, schema, ungrouped)
    return (next(content) if group is None else f"group:{group}" for group in groups)


def describe_row_key(schema: Schema) -> str:
    """Return what the keys are made of, as text."""
    group_column = schema.find_role("group")
    if group_column is not None:
        return f"the column {group_column!r}"
    column = _content_column(schema)
    return f"the content of {column!r}" if column else "all values"


def _content_column(schema: Schema) -> str | None:
    """Return the column whose content identifies a row."""
    for kind in _CONTENT_TYPES:
        for column in schema.columns.values():
            if column.kind == kind:
                return column.name
    return None


def _content_keys(table: Table, schema: Schema, rows: Sequence[int]) -> Iterator[str]:
    """Yield a key of each row's content."""
    if not rows:
        return iter(())
    column = _content_column(schema)
    if column is None:
        typed = [name for name in table.columns if name in schema.columns]
        names = typed or list(table.columns)
        return (repr([table.columns[name][i] for name in names]) for i in rows)

    def digests(batch: Sequence[int]) -> list[str]:
        values = raw_values(table, schema, column, batch)
        return [
            content_digest(value, table.locations[i])
            for i, value in zip(batch, values, strict=True)
        ]

    return chain.from_iterable(
        prefetch(digests, iter_batches(rows, HASH_BATCH_SIZE), io_bound=True)
    )


def content_digest(raw: Any, location: str) -> str:
    """Return the MD5 of a raw value's content as hex.

    A value that is missing or unreadable is identified by its location.
    """
    if isinstance(raw, Path | EmbeddedFile):
        try:
            return _file_digest(raw)
        except OSError:
            return location
    if isinstance(raw, np.ndarray):
        return _digest(raw.tobytes() + str(raw.shape).encode())
    if isinstance(raw, bytes):
        return _digest(raw)
    if isinstance(raw, list):
        text = "\n".join(map(str, raw))
    else:
        text = raw if isinstance(raw, str) else location
    return _digest(text.encode("utf-8", "surrogatepass"))


def _digest(content: bytes) -> str:
    """Return the MD5 of some bytes, as hex."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _file_digest(path: Path | EmbeddedFile) -> str:
    """Return the MD5 of a file, as hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
