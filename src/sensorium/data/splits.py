"""Splits: read from the data, or made by a hash of what identifies a row.

The rule: u = the first 8 bytes of md5("sensorium:" + key) / 2^64; u < 0.8 is train, u < 0.9 is val,
the rest is test. The key is the value of the group column, or else the row's content, so that
duplicates stay in one split and new rows do not move the others. Folds are made of the training
split by a hash of the same keys (`assign_folds`).
"""

import csv
import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from sensorium.data.tables import IMAGE_EXTENSIONS, Table, open_text, parse_json
from sensorium.errors import SensoriumError

HASH_SALT = "sensorium"
SPLIT_FRACTIONS = {"train": 0.8, "val": 0.1, "test": 0.1}
_SPLIT_ALIASES = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "eval": "val",
    "testing": "test",
}
KNOWN_SPLITS = frozenset({"train", "val", "test", *_SPLIT_ALIASES})
_HEADER_NAMES = ("split", "set", "subset", "fold")  # of the last column of a file of splits


def normalize_split_name(value: str) -> str:
    """Return the canonical name: 'val' for 'Validation'; other names stay as they are."""
    lower = value.strip().lower()
    if lower in _SPLIT_ALIASES:
        return _SPLIT_ALIASES[lower]
    return lower if lower in KNOWN_SPLITS else value.strip()


def group_rows_by_split(values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Return the rows of each split.

    Args:
        values: the split of each row; None: in no split.
    """
    rows: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            rows.setdefault(normalize_split_name(str(value)), []).append(i)
    return sort_splits({name: np.array(members, np.int64) for name, members in rows.items()})


def sort_splits(splits: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the splits with train, val and test first, then the others in their order."""
    canonical = [name for name in ("train", "val", "test") if name in splits]
    return {name: splits[name] for name in dict.fromkeys([*canonical, *splits])}


def split_by_hash(keys: Iterable[str], fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """Return the rows of each split, by the hash of their key; rows of one key stay together.

    An empty split gets one key of the first split, the last by hash, as long as that has another:
    with ten images there is still one to evaluate on.

    Args:
        keys: the key of each row.
        fractions: the fraction of each split, summing to one.
    """
    keys = list(keys)
    position = {key: _hash_to_unit_interval(key) for key in keys}
    names = list(fractions)
    bounds = np.cumsum(list(fractions.values()))[:-1]
    split_of = {
        key: names[int(np.searchsorted(bounds, u, side="right"))] for key, u in position.items()
    }
    for name in names[1:]:
        first_keys = [key for key in position if split_of[key] == names[0]]
        if name not in split_of.values() and len(first_keys) > 1:
            split_of[max(first_keys, key=position.__getitem__)] = name
    splits = group_rows_by_split([split_of[key] for key in keys])
    return {name: splits.get(name, np.zeros(0, np.int64)) for name in names}


def assign_folds(keys: Sequence[str], num_folds: int) -> np.ndarray:
    """Return the fold of each row, int64 [N], from 0.

    The distinct keys, sorted by md5("sensorium:fold:" + key), are dealt to the folds in turn: rows
    of one key stay together, and the folds differ by at most one key.

    Raises:
        SensoriumError: if there are fewer distinct keys than folds.
    """
    order = sorted(dict.fromkeys(keys), key=lambda key: _hash_to_unit_interval(f"fold:{key}"))
    if not 2 <= num_folds <= len(order):
        remedy = f"Choose 2 to {len(order):,} folds" if len(order) > 1 else "Add training rows"
        raise SensoriumError(
            f"{num_folds} folds cannot be made of {len(keys):,} training rows in "
            f"{len(order):,} groups. {remedy}."
        )
    fold = {key: i % num_folds for i, key in enumerate(order)}
    return np.array([fold[key] for key in keys], np.int64)


def _hash_to_unit_interval(key: str) -> float:
    """Return a number in [0, 1) that depends on the key alone."""
    content = f"{HASH_SALT}:{key}".encode("utf-8", "surrogatepass")
    digest = hashlib.md5(content, usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_splits(path: Path, table: Table) -> list[str | None]:
    """Return the split of each row, None for rows in no split, from a file that names rows.

    The file is JSON, {"train": ["a.jpg", ...], ...} or {"a.jpg": "train", ...}, or lines of a row
    and its split separated by a comma, tab or space. A row is named by its location in messages, by
    the path of its image, or by its number from 0.

    Raises:
        SensoriumError: if the file cannot be read or names a row that does not exist.
    """
    if not path.is_file():
        raise SensoriumError(
            f"--split {path} is neither a column nor a file. Name a column of the data, or a file "
            "of lines like a.jpg,train."
        )
    is_json = path.suffix.lower() == ".json"
    assignments = _read_json_assignments(path) if is_json else _read_line_assignments(path)
    row_of = {name: i for i, name in enumerate(table.locations)}
    for values in table.columns.values():
        row_of |= {
            value: i
            for i, value in enumerate(values)
            if isinstance(value, str) and value.lower().endswith(IMAGE_EXTENSIONS)
        }
    splits: list[str | None] = [None] * len(table)
    for location, row_name, split in assignments:
        row = row_of.get(row_name, int(row_name) if row_name.isdecimal() else -1)
        if not 0 <= row < len(table):
            raise SensoriumError(
                f"{location} puts {row_name!r} into {split!r}, but the data has no such row. Rows "
                f"are named like {table.locations[0]!r}, or by number, 0 to {len(table) - 1}."
            )
        splits[row] = split
    return splits


def _read_json_assignments(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (location in messages, row, split)."""
    with open_text(path) as f:
        value = parse_json(f.read())
    if not isinstance(value, dict):
        raise SensoriumError(
            f'{path} is not a JSON object like {{"train": ["a.jpg", ...]}} or {{"a.jpg": "train"}}.'
        )
    for key, item in value.items():
        if isinstance(item, list):
            for row in item:
                yield path.name, str(row), str(key)
        else:
            yield path.name, str(key), str(item)


def _read_line_assignments(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (location in messages, row, split)."""
    with open_text(path) as f:
        lines = f.read().splitlines()
    delimiter = next((d for d in "\t," if lines and d in lines[0]), " ")
    for number, line in enumerate(csv.reader(lines, delimiter=delimiter), 1):
        cells = [cell.strip() for cell in line]
        if not any(cells) or (number == 1 and cells[-1].lower() in _HEADER_NAMES):
            continue
        if len(cells) < 2:
            raise SensoriumError(
                f"{path}:{number}: expected a row and its split (a.jpg,train), not {cells[0]!r}."
            )
        yield f"{path.name}:{number}", delimiter.join(cells[:-1]), cells[-1]


def sample_evenly(rows: Int[np.ndarray, "N"], max_rows: int) -> Int[np.ndarray, "M"]:
    """Return at most `max_rows` of the rows, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(max_rows, len(rows))).round().astype(int)]
