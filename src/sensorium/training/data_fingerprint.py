"""What a run records of its data: enough to notice that they differ, and to recognise rows.

N rows
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt64

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prefetch import prefetch
from sensorium.data.dataset import Dataset
from sensorium.data.row_keys import content_digest
from sensorium.io import atomic
from sensorium.io.run_config import TRAINED_ROWS_FILE
from sensorium.io.tensors import read_tensors, tensor_writer
from sensorium.io.untrusted import EmbeddedFile
from sensorium.nn.tokens import ColumnKey, column_names

ROWS_PER_READ = 4096  # rows whose raw values are in memory at a time
FILES_PER_BATCH = 256  # files hashed by one thread at a time
MISSING = 0  # hash of a missing value
CellHashes = UInt64[np.ndarray, "N"]


def hash_columns(dataset: Dataset, columns: Sequence[ColumnKey]) -> dict[str, CellHashes]:
    """Return the hashes of the values of the columns that a model reads."""
    names = dict.fromkeys(name for key in columns for name in column_names(key))
    present = [name for name in names if name in dataset.table.columns]
    return {name: hash_column(dataset, name) for name in present}


def fingerprint(dataset: Dataset, hashes: Mapping[str, CellHashes] | None = None) -> dict[str, Any]:
    """Return what config.json records of a dataset, enough to notice that it differs.

    Args:
        dataset: the data.
        hashes: the hashes of the columns that the model reads; by default of all columns.
    """
    if hashes is None:
        hashes = hash_columns(dataset, list(dataset.schema.columns))
    digest = hashlib.sha256(f"{len(dataset)} {sorted(dataset.schema.columns)}".encode())
    for name, rows in dataset.splits.items():
        digest.update(name.encode() + np.ascontiguousarray(rows, dtype=np.int64).tobytes())
    facts: dict[str, Any] = {
        "name": dataset.name,
        "rows": len(dataset),
        "columns": sorted(dataset.schema.columns),
        "splits": {name: len(rows) for name, rows in dataset.splits.items()},
        "sha256": digest.hexdigest(),
        "values": {name: summarize_hashes(cells) for name, cells in hashes.items()},
    }
    if hashes:
        facts["rows_any_order"] = summarize_hashes(hash_rows(hashes))["any_order"]
    if dataset.synonyms:
        facts["synonyms"] = {name: table.fingerprint for name, table in dataset.synonyms.items()}
    return facts


def describe_difference(recorded: Mapping[str, Any], dataset: Dataset) -> str:
    """Return in words how a dataset differs from the one that a run recorded, "" if it does not.

    Where the files are does not matter.
    """
    if recorded["name"] != dataset.name:
        return f"it was called {recorded['name']}, now {dataset.name}"
    columns = recorded.get("columns", sorted(dataset.schema.columns))
    missing = [name for name in columns if name not in dataset.schema.columns]
    added = [name for name in dataset.schema.columns if name not in columns]
    if missing or added:
        changes = [("it has no column", missing), ("it has the new column", added)]
        return " and ".join(f"{text} {', '.join(names)}" for text, names in changes if names)
    if recorded["rows"] != len(dataset):
        return f"it had {recorded['rows']:,} rows, now {len(dataset):,}"
    values = recorded.get("values", {})
    current = fingerprint(dataset, hash_columns(dataset, list(values)))
    changed = [name for name in values if current["values"].get(name) != values[name]]
    if changed:
        if recorded["rows_any_order"] == current.get("rows_any_order"):
            return "its rows are in another order"
        return f"it has other values in the column {', '.join(changed)}"
    if recorded["splits"] != current["splits"]:
        return f"its splits were {_counts(recorded['splits'])}, now {_counts(current['splits'])}"
    if recorded["sha256"] != current["sha256"]:
        return "its rows are in other splits"
    if recorded.get("synonyms") != current.get("synonyms"):
        return "its synonym lists (--synonyms) are others"
    return ""


def describe_lost_rows(folder: Path, dataset: Dataset, columns: Sequence[str]) -> str:
    """Return in words which rows that a run was trained on are not training rows of other data.

    Args:
        folder: the run folder.
        dataset: the data.
        columns: the columns that the run reads.

    Returns:
        "" where the training rows contain all rows that the run was trained on.
    """
    path = folder / TRAINED_ROWS_FILE
    if not path.is_file():
        return f"{path.name}, the record of the rows that it was trained on, is missing"
    missing = [name for name in columns if name not in dataset.table.columns]
    if missing:
        return f"it has no column {', '.join(missing)}"
    trained = read_tensors(path)["read"].numpy().view(np.uint64)
    rows = dataset.splits.get("train", np.zeros(0, np.int64))
    current = hash_rows(hash_columns(dataset, columns))[rows]
    num_lost = int((~np.isin(trained, current)).sum())
    if not num_lost:
        return ""
    return (
        f"{num_lost:,} of the {len(trained):,} rows that were trained on have changed, are gone, "
        "or are in another split"
    )


def save_trained_rows(
    folder: Path, dataset: Dataset, hashes: Mapping[str, CellHashes], rows: np.ndarray
) -> None:
    """Write hashes of each training row into a run folder.

    There are two of each row: of the columns that the model reads, and of all columns.

    Args:
        folder: the run folder.
        dataset: the data.
        hashes: the hashes of the columns that the model reads.
        rows: the training rows.
    """
    if not hashes:
        return
    names = sorted(dataset.table.columns)
    others = {name: hash_column(dataset, name) for name in names if name not in hashes}
    read, whole = hash_rows(hashes)[rows], hash_rows({**hashes, **others})[rows]
    tensors = {
        "read": torch.from_numpy(np.sort(read).view(np.int64)),
        "whole": torch.from_numpy(np.sort(whole).view(np.int64)),
        "columns": torch.tensor(list(json.dumps(names).encode()), dtype=torch.uint8),
    }
    atomic.write_file(folder / TRAINED_ROWS_FILE, tensor_writer(tensors))


def find_trained_rows(
    folder: Path, recorded: Mapping[str, Any], dataset: Dataset, columns: Sequence[ColumnKey]
) -> np.ndarray:
    """Return which rows of other data a run was trained on, bool [N].

    A row is recognised by the values of all columns, or else of those that the model reads. In the
    data of the run itself, the training rows are those of its split train.

    Args:
        folder: the run folder.
        recorded: what the run recorded of its data.
        dataset: the data.
        columns: the columns that the model reads.
    """
    path = folder / TRAINED_ROWS_FILE
    read = [name for key in columns for name in column_names(key)]
    lacks_column = any(name not in dataset.table.columns for name in read)
    if not path.is_file() or lacks_column or not describe_difference(recorded, dataset):
        return np.zeros(len(dataset), bool)
    tensors = read_tensors(path)
    names = json.loads(bytes(tensors["columns"].tolist()))
    is_whole = all(name in dataset.table.columns for name in names)
    trained = tensors["whole" if is_whole else "read"].numpy().view(np.uint64)
    return np.isin(hash_rows(hash_columns(dataset, names if is_whole else read)), trained)


def _counts(splits: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in splits.items())


def hash_column(dataset: Dataset, column: str) -> CellHashes:
    """Return a hash of each value of a column: of the content, where it is in a file."""
    known: dict[str, int] = {}
    parts: list[np.ndarray] = []
    for rows in iter_batches(range(len(dataset)), ROWS_PER_READ):
        values = dataset.raw(column, rows)
        if any(isinstance(value, Path | EmbeddedFile) for value in values):
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
            if not isinstance(value, Path | EmbeddedFile)
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
