"""Pictures decoded once, in a file mapped into memory, found again by what went into it.

    N rows   H side as stored

A file's name is a hash of the settings and of what the pictures are (path, size, time of change; else the bytes).
Layout: N pictures of 3 x H x H bytes, then JSON (checksums, which rows are missing or bad and why), its length, MAGIC.
When the files of `folder()` together exceed SENSORIUM_CACHE_GB (20), those unused for longest are removed.
"""
from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sensorium import durable
from sensorium.data.ahead import ahead
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image

VERSION = 1                             # of what decoding gives: another version decodes anew
PIECE = 64                              # pictures decoded in one go
READ = 4096                             # raw values held at a time
PATIENCE = 2.0                          # seconds before a bar appears
MAGIC = b"sensorium pictures 1"
BLOCK = 1 << 20                         # bytes under one checksum
CHECKED = 1024                          # blocks verified as a file is opened: all of them up to a gigabyte, or a sample
ABANDONED = 24 * 3600                   # seconds after which a temporary file is nobody's


Part = tuple[UInt8[np.ndarray, "n 3 H H"], dict[int, str]]      # some pictures, and what was wrong with which row


@dataclass(frozen=True)
class Decoded:
    """Pictures as they are stored. wrong: row -> why it could not be read; "" where there was nothing to read.

    name: a hash of what they are and how they were read.
    """

    pixels: UInt8[np.ndarray, "N 3 H H"]
    wrong: dict[int, str]
    name: str


def decoded(image: Image, raw: Callable[[range], Sequence[Any]], rows: int, name: str, console: Console) -> Decoded:
    """The pictures of `rows` rows, from disk if they have been decoded before.

    raw: the values of some rows (path, bytes, array, None). name: what to call them while they are decoded.
    """
    chunks = [range(start, min(start + READ, rows)) for start in range(0, rows, READ)]
    path = folder() / key(image, (value for chunk in chunks for value in raw(chunk)))
    found = _find(path, rows, image.side, console)
    if found is not None:
        return found
    parts = _watched(_decode(image, raw, chunks), rows, f"decoding {name}", console)
    return keep(path, rows, image.side, parts)


def folder() -> Path:
    """Where decoded pictures are kept: below $SENSORIUM_HOME, else $XDG_CACHE_HOME, else ~/.cache."""
    if home := os.environ.get("SENSORIUM_HOME"):
        return Path(home) / "cache" / "pictures"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium" / "pictures"


def key(image: Image, values: Iterable[Any]) -> str:
    """The name of the file that holds these values decoded with these settings."""
    own = [image.resample, image.edge] if image.resample else []
    found = hashlib.sha256(json.dumps([VERSION, image.side, image.square, *own]).encode())
    for value in values:
        found.update(_identity(value))
    return found.hexdigest()[:32]


def _identity(value: Any) -> bytes:
    if isinstance(value, Path):
        try:
            about = value.stat()
        except OSError:
            return f"absent {value}\0".encode()
        return f"file {value.absolute()}\0{about.st_size} {about.st_mtime_ns}\0".encode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray):
        return f"array {value.dtype.str} {value.shape}\0".encode() + np.ascontiguousarray(value).tobytes()
    return f"bytes {len(value)}\0".encode() + value if isinstance(value, bytes) else f"{value!r}\0".encode()


def _decode(image: Image, raw: Callable[[range], Sequence[Any]], chunks: Iterable[range]) -> Iterator[Part]:
    """Piece by piece, in order."""
    pieces = ((values[at:at + PIECE], chunk.start + at)
              for chunk in chunks for values in [raw(chunk)] for at in range(0, len(values), PIECE))
    return ahead(lambda piece: _piece(image, *piece), pieces)


def _piece(image: Image, values: Sequence[Any], start: int) -> Part:
    pixels = np.zeros((len(values), image.side, image.side, 3), np.uint8)
    wrong: dict[int, str] = {}
    for i, value in enumerate(values):
        try:
            if value is None:
                wrong[start + i] = ""
            else:
                image.load(value, into=pixels[i])
        except ValueError as e:
            wrong[start + i], pixels[i] = str(e), 0
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), wrong


def _watched(parts: Iterable[Part], total: int, what: str, console: Console) -> Iterator[Part]:
    """The parts as they come; what takes longer than PATIENCE gets a bar with the time that is left."""
    bar = Progress(TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
                   disable=not console.is_terminal, transient=True)
    task, since, shown = bar.add_task(what, total=total), time.monotonic(), False
    try:
        for part in parts:
            yield part
            bar.advance(task, len(part[0]))
            if not shown and time.monotonic() - since > PATIENCE:
                bar.start()
                shown = True
    finally:
        bar.stop()


def _find(path: Path, rows: int, side: int, console: Console) -> Decoded | None:
    """The pictures stored at `path`; None where there are none, or (said, and removed) where they are damaged."""
    try:
        found = _opened(path, rows, side)
        os.utime(path)
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as e:
        raise refused(path, e) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        console.print(f"the decoded pictures in {path} are damaged ({e}): decoding them again", highlight=False,
                      markup=False, soft_wrap=True)
        path.unlink(missing_ok=True)
        return None


def keep(path: Path, rows: int, side: int, parts: Iterable[Part]) -> Decoded:
    """Store pictures that come in order, part by part, with what was wrong with some; then map them.

    Two processes that do this at once each write a file of their own; the last becomes the one that is there.
    Raises SensoriumError where the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise refused(path, e) from e
    durable.write(path, lambda temporary: _write(temporary, rows, side, parts))
    prune(path)
    return _opened(path, rows, side, check=False)


def refused(path: Path, error: OSError) -> SensoriumError:
    return SensoriumError(f"cannot keep decoded pictures in {path.parent}: {error.strerror}. "
                          "Set SENSORIUM_HOME to a folder that can be read and written.")


def prune(newest: Path) -> None:
    """Remove the files unused for longest until the rest fit the budget; not `newest`, nor what is being made."""
    given = os.environ.get("SENSORIUM_CACHE_GB", "20")
    try:
        budget = float(given) * 1e9
    except ValueError:
        raise SensoriumError(f"SENSORIUM_CACHE_GB={given!r} is not a number of gigabytes.") from None
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


def _write(path: Path, rows: int, side: int, parts: Iterable[Part]) -> None:
    sums, wrong = _Sums(), {}
    with path.open("wb") as f:
        for pixels, why in parts:
            wrong |= why
            data = np.ascontiguousarray(pixels).reshape(-1).data
            f.write(data)
            sums.add(data)
        if f.tell() != rows * 3 * side * side:
            raise ValueError(f"{f.tell()} bytes of pictures for {rows} rows of side {side}")
        notes = json.dumps({"rows": rows, "side": side, "sums": sums.of, "wrong": wrong}).encode()
        f.write(notes + len(notes).to_bytes(8, "little") + MAGIC)


class _Sums:
    """A CRC-32 of every BLOCK bytes of a stream; the last is of fewer, or of none."""

    def __init__(self) -> None:
        self.of, self.filled = [0], 0

    def add(self, data: memoryview) -> None:
        while len(data):
            if self.filled == BLOCK:
                self.of.append(0)
                self.filled = 0
            piece = data[:BLOCK - self.filled]
            self.of[-1] = zlib.crc32(piece, self.of[-1])
            self.filled += len(piece)
            data = data[len(piece):]


def _opened(path: Path, rows: int, side: int, check: bool = True) -> Decoded:
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
    shape = (rows, 3, side, side)
    pixels = np.memmap(path, np.uint8, "r", shape=shape) if size else np.zeros(shape, np.uint8)
    if check:
        _verify(pixels, notes["sums"])
    return Decoded(np.asarray(pixels), {int(row): str(why) for row, why in notes["wrong"].items()},
                   path.name)


def _verify(pixels: UInt8[np.ndarray, "N 3 H H"], sums: list[int]) -> None:
    flat = pixels.reshape(-1)
    if len(sums) != max(1, -(-len(flat) // BLOCK)):
        raise ValueError("it has too few checksums")
    for i in range(0, len(sums), -(-len(sums) // CHECKED)):
        if zlib.crc32(flat[i * BLOCK:(i + 1) * BLOCK].data) != sums[i]:
            raise ValueError(f"its bytes from {i * BLOCK:,} on have changed")
