"""Hashes of the values of a dataset: to notice that data changed, and to recognise rows.

N rows
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt64

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prefetch import prefetch
from sensorium.data.row_keys import content_digest

ROWS_PER_READ = 4096  # rows whose raw values are in memory at a time
FILES_PER_BATCH = 256  # files hashed by one thread at a time
MISSING = 0  # hash of a missing value
CellHashes = UInt64[np.ndarray, "N"]


@runtime_checkable
class HashSource(Protocol):
    """A dataset, as far as its values are hashed."""

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw values of some rows, None where missing."""
        ...

    def location(self, row: int) -> str:
        """Return what messages call a row."""
        ...


def hash_column(dataset: HashSource, column: str) -> CellHashes:
    """Return a hash of each value of a column: of the content, where it is in a file."""
    known: dict[str, int] = {}
    parts: list[np.ndarray] = []
    for rows in iter_batches(range(len(dataset)), ROWS_PER_READ):
        values = dataset.raw(column, rows)
        if any(isinstance(value, Path) for value in values):
            named = list(zip(values, map(dataset.location, rows), strict=True))
            hashes = [h for part in _hash_files(named) for h in part]
        else:
            hashes = [_hash_value(value, known) for value in values]
        parts.append(np.array(hashes, np.uint64))
    return np.concatenate(parts) if parts else np.zeros(0, np.uint64)


def hash_rows(columns: Mapping[str, CellHashes]) -> CellHashes:
    """Return a hash of each row, which depends on the names of the columns, not on their order."""
    first = next(iter(columns.values()))
    total = np.zeros(len(first), np.uint64)
    for name, cells in columns.items():
        factor = np.uint64(_digest(f"column {name}".encode()) | 1)
        total += _mix(cells * factor)
    return _mix(total)


def summarize_hashes(cells: CellHashes) -> dict[str, str]:
    """Return a hash of values in their order, and one that does not depend on the order."""
    ordered = hashlib.sha256(np.ascontiguousarray(cells, np.uint64).tobytes()).hexdigest()[:32]
    return {"sha256": ordered, "any_order": f"{int(_mix(cells).sum(dtype=np.uint64)):016x}"}


def _hash_files(named: Sequence[tuple[Any, str]]) -> Any:
    """Yield the hashes of files, some at a time, read by several threads."""

    def hash_batch(batch: Sequence[tuple[Any, str]]) -> list[int]:
        return [
            _hash_value(value, {})
            if not isinstance(value, Path)
            else _digest(f"file {content_digest(value, location)}".encode())
            for value, location in batch
        ]

    return prefetch(hash_batch, iter_batches(named, FILES_PER_BATCH), io_bound=True)


def _hash_value(value: Any, known: dict[str, int]) -> int:
    if value is None:
        return MISSING
    if isinstance(value, float):  # as the class that it may be in another file
        value = str(int(value)) if value.is_integer() else repr(value)
    elif isinstance(value, int | np.integer):
        value = str(value).lower()
    if isinstance(value, str):
        if value not in known:
            known[value] = _digest(f"str {value}".encode("utf-8", "surrogatepass"))
        return known[value]
    if isinstance(value, np.ndarray):
        return _digest(f"array {value.shape} {value.dtype} ".encode() + value.tobytes())
    if isinstance(value, bytes):
        return _digest(b"bytes " + value)
    return _digest(f"{type(value).__name__} {value!r}".encode("utf-8", "surrogatepass"))


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


def _mix(x: CellHashes) -> CellHashes:
    """Scramble the bits of each number (the finalizer of SplitMix64)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
