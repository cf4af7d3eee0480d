"""The file of decoded pictures: made once, mapped into memory, found again by what is in it.

    N rows   H side as stored

Layout: N pictures of 3 x H x H bytes, then JSON (checksums, and which rows are missing or bad and why), its length, MAGIC.
Files lie in `folder()`. When together they exceed SENSORIUM_CACHE_GB (20), those unused for longest are removed.
"""
from __future__ import annotations

import json
import os
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from sensorium import durable
from sensorium.errors import SensoriumError

MAGIC = b"sensorium pictures 1"
BLOCK = 1 << 20                         # bytes under one checksum
CHECKED = 1024                          # blocks verified when a file is opened: every one up to a gigabyte, then a sample
ABANDONED = 24 * 3600                   # seconds after which a temporary file is nobody's


@dataclass(frozen=True)
class Pictures:
    """Decoded pictures [N, 3, H, H], and what was wrong: row -> reason; "" where the row has no picture."""

    pixels: UInt8[np.ndarray, "N 3 H H"]
    wrong: dict[int, str]


def folder() -> Path:
    """Where decoded pictures are kept: below $SENSORIUM_HOME, else $XDG_CACHE_HOME, else ~/.cache."""
    if home := os.environ.get("SENSORIUM_HOME"):
        return Path(home) / "cache" / "pictures"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium" / "pictures"


def find(key: str, rows: int, side: int, say: Callable[[str], object]) -> Pictures | None:
    """The pictures stored under `key`; None where there are none, or (said, and removed) where they are damaged."""
    path = folder() / key
    try:
        found = _opened(path, rows, side)
        os.utime(path)
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        say(f"the decoded pictures in {path} are damaged ({e}); decoding them again")
        path.unlink(missing_ok=True)
        return None


def keep(key: str, rows: int, side: int, parts: Iterable[tuple[UInt8[np.ndarray, "n 3 H H"], dict[int, str]]]) -> Pictures:
    """Store pictures that come in order, part by part, with what was wrong with some; then map them.

    Two processes that do this at once each write a file of their own; the last becomes the one that is there.
    Raises SensoriumError where the folder cannot be written to.
    """
    path = folder() / key
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SensoriumError(f"cannot keep decoded pictures in {path.parent}: {e.strerror}. "
                             "Set SENSORIUM_HOME to a folder that can be written to.") from e
    durable.write(path, lambda temporary: _write(temporary, rows, side, parts))
    prune(path)
    return _opened(path, rows, side, check=False)


def prune(newest: Path) -> None:
    """Remove the files unused for longest until those left fit the budget; `newest` stays, and so do files in the making."""
    try:
        budget = float(os.environ.get("SENSORIUM_CACHE_GB", 20)) * 1e9
    except ValueError:
        raise SensoriumError(f"SENSORIUM_CACHE_GB={os.environ['SENSORIUM_CACHE_GB']!r} is not a number of gigabytes.") from None
    kept, now = 0, time.time()
    for path, about in sorted(_files(newest.parent), key=lambda f: (f[0] != newest, -f[1].st_mtime)):
        unfinished = path.suffix == ".tmp"
        kept += about.st_size
        if path != newest and (now - about.st_mtime > ABANDONED if unfinished else kept > budget):
            path.unlink(missing_ok=True)
            kept -= about.st_size


def _files(place: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in place.iterdir():
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:       # removed by another process just now
            continue
    return found


def _write(path: Path, rows: int, side: int, parts: Iterable[tuple[np.ndarray, dict[int, str]]]) -> None:
    sums, wrong, open_block, written = [], {}, b"", 0
    with path.open("wb") as f:
        for pixels, why in parts:
            wrong |= why
            data = np.ascontiguousarray(pixels).reshape(-1).data.cast("B")
            f.write(data)
            written += len(data)
            open_block += data
            while len(open_block) >= BLOCK:
                sums.append(zlib.crc32(open_block[:BLOCK]))
                open_block = open_block[BLOCK:]
        sums.append(zlib.crc32(open_block))
        if written != rows * 3 * side * side:
            raise ValueError(f"{written} bytes of pictures for {rows} rows")
        notes = json.dumps({"rows": rows, "side": side, "sums": sums, "wrong": wrong}).encode()
        f.write(notes + len(notes).to_bytes(8, "little") + MAGIC)


def _opened(path: Path, rows: int, side: int, check: bool = True) -> Pictures:
    size, tail = rows * 3 * side * side, 8 + len(MAGIC)
    with path.open("rb") as f:
        total = f.seek(0, os.SEEK_END)
        if total < size + tail:
            raise ValueError("it is too short")
        f.seek(total - tail)
        length, magic = int.from_bytes(f.read(8), "little"), f.read()
        if magic != MAGIC or total != size + length + tail:
            raise ValueError("it does not end as it should")
        f.seek(size)
        notes = json.loads(f.read(length))
    if (notes["rows"], notes["side"]) != (rows, side):
        raise ValueError("it holds other pictures")
    pixels = np.memmap(path, np.uint8, "r", shape=(rows, 3, side, side)) if size else np.zeros((0, 3, side, side), np.uint8)
    if check:
        _verify(pixels, notes["sums"])
    return Pictures(pixels, {int(row): str(why) for row, why in notes["wrong"].items()})


def _verify(pixels: UInt8[np.ndarray, "N 3 H H"], sums: list[int]) -> None:
    flat = pixels.reshape(-1)
    if len(sums) != len(flat) // BLOCK + 1:
        raise ValueError("it has too few checksums")
    for i in range(0, len(sums), -(-len(sums) // CHECKED)):
        if zlib.crc32(flat[i * BLOCK:(i + 1) * BLOCK]) != sums[i]:
            raise ValueError(f"its bytes from {i * BLOCK:,} on have changed")
