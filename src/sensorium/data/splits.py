"""Which rows train, which choose between models, which judge: as given, or by a stated hash of what a row shows.

The rule: u = the first 8 bytes of md5("sensorium:" + key) / 2^64; u < 0.8 train, u < 0.9 val, else test. The key is the
value of the group column, or else the row's content, so that copies of one thing never stand on both sides, and rows
added later leave the others where they are. Folds for comparing settings are dealt out of train by a hash of the same
keys (`in_folds`).
"""

import csv
import hashlib
from collections.abc import Iterable, Sequence
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


def normalize_split_name(value: str) -> str:
    """The name used here: 'Validation' is 'val'; a name that is not one of the usual ones is kept."""
    lower = value.strip().lower()
    return _SPLIT_ALIASES.get(lower, lower if lower in KNOWN_SPLITS else value.strip())


def group_rows_by_split(values: Sequence[Any]) -> dict[str, np.ndarray]:
    """Rows by the name in each row; a row with none (None) is in no split."""
    rows: dict[str, list[int]] = {}
    for i, value in enumerate(values):
        if value is not None:
            rows.setdefault(normalize_split_name(str(value)), []).append(i)
    return sort_splits({name: np.array(r, np.int64) for name, r in rows.items()})


def sort_splits(splits: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """train, val, test first, then the others as they came."""
    usual = [name for name in ("train", "val", "test") if name in splits]
    return {name: splits[name] for name in dict.fromkeys([*usual, *splits])}


def split_by_hash(keys: Iterable[str], fractions: dict[str, float]) -> dict[str, np.ndarray]:
    """Rows by the hash of their key, in the given shares. Rows of one key stay together.

    A share that happens to get nothing is given one key, the last by hash, of the first share, as long as that keeps
    one: with ten pictures there is still one to judge by.
    """
    keys = list(keys)
    place = {key: _hash_to_unit_interval(key) for key in keys}
    names, bounds = list(fractions), np.cumsum(list(fractions.values()))[:-1]
    name_of = {
        key: names[int(np.searchsorted(bounds, u, side="right"))] for key, u in place.items()
    }
    for name in names[1:]:
        first = [key for key in place if name_of[key] == names[0]]
        if name not in name_of.values() and len(first) > 1:
            name_of[max(first, key=place.__getitem__)] = name
    given = group_rows_by_split([name_of[key] for key in keys])
    return {name: given.get(name, np.zeros(0, np.int64)) for name in names}


def assign_folds(keys: Sequence[str], num_folds: int) -> np.ndarray:
    """int64 [N]: the fold, 0 to n - 1, of each row.

    The different keys, in the order of md5("sensorium:fold:" + key), are dealt out to the folds in turn: rows of one
    key stay together, and no fold has more than one key more than another.
    Raises SensoriumError where there are fewer different keys than folds.
    """
    order = sorted(dict.fromkeys(keys), key=lambda key: _hash_to_unit_interval(f"fold:{key}"))
    if not 2 <= num_folds <= len(order):
        most = f"choose from 2 to {len(order):,}" if len(order) > 1 else "at least 2 are needed"
        raise SensoriumError(
            f"{num_folds} folds cannot be made of {len(keys):,} training rows, of which {len(order):,} show "
            f"different things: {most}."
        )
    fold = {key: i % num_folds for i, key in enumerate(order)}
    return np.array([fold[key] for key in keys], np.int64)


def _hash_to_unit_interval(key: str) -> float:
    digest = hashlib.md5(
        f"{HASH_SALT}:{key}".encode("utf-8", "surrogatepass"), usedforsecurity=False
    ).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_splits(path: Path, table: Table) -> list[str | None]:
    """The split of each row, by a file that names rows.

    JSON: {"train": ["a.jpg", ...], ...} or {"a.jpg": "train", ...}; else lines of row and split with a comma, tab or
    space between. A row is named as messages name it, by its path, or by its number from 0; one that is not named is in
    no split. Raises SensoriumError for a row that is not there.
    """
    if not path.is_file():
        raise SensoriumError(
            f"there is no file {path} to read the splits from, and no column of that name."
        )
    pairs = (
        _read_json_assignments(path)
        if path.suffix.lower() == ".json"
        else _read_line_assignments(path)
    )
    rows = {name: i for i, name in enumerate(table.locations)}
    for values in table.columns.values():
        rows |= {
            v: i
            for i, v in enumerate(values)
            if isinstance(v, str) and v.lower().endswith(IMAGE_EXTENSIONS)
        }
    found: list[str | None] = [None] * len(table)
    for where, row, split in pairs:
        i = rows.get(row, int(row) if row.isdecimal() else -1)
        if not 0 <= i < len(table):
            raise SensoriumError(
                f"{where} puts {row!r} into {split!r}, but the data has no such row; rows are named "
                f"like {table.locations[0]!r}, or by number, 0 to {len(table) - 1}."
            )
        found[i] = split
    return found


def _read_json_assignments(path: Path) -> Iterable[tuple[str, str, str]]:
    with open_text(path) as f:
        value = parse_json(f.read())
    if not isinstance(value, dict):
        raise SensoriumError(
            f'{path} is not a JSON object like {{"train": ["a.jpg", ...]}} or {{"a.jpg": "train"}}.'
        )
    for key, named in value.items():
        for other in named if isinstance(named, list) else [named]:
            row, split = (other, key) if isinstance(named, list) else (key, other)
            yield path.name, str(row), str(split)


def _read_line_assignments(path: Path) -> Iterable[tuple[str, str, str]]:
    with open_text(path) as f:
        lines = f.read().splitlines()
    mark = next((m for m in "\t," if lines and m in lines[0]), " ")
    for number, cells in enumerate(csv.reader(lines, delimiter=mark), 1):
        cells = [cell.strip() for cell in cells]
        if not any(cells) or (
            number == 1 and cells[-1].lower() in ("split", "set", "subset", "fold")
        ):
            continue
        if len(cells) < 2:
            raise SensoriumError(
                f"{path}:{number}: expected a row and its split (a.jpg,train); found {cells[0]!r}."
            )
        yield f"{path.name}:{number}", mark.join(cells[:-1]), cells[-1]


def sample_evenly(rows: Int[np.ndarray, "N"], max_rows: int) -> Int[np.ndarray, "M"]:
    """At most so many, evenly spaced."""
    return rows[np.linspace(0, len(rows) - 1, min(max_rows, len(rows))).round().astype(int)]
