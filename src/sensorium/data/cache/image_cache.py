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

from sensorium.data.cache.prefetch import prefetch
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.modalities.image import Image

CACHE_VERSION = 1  # of what decoding gives: another version decodes anew
IMAGES_PER_CHUNK = 64  # pictures decoded in one go
ROWS_PER_READ = 4096  # raw values held at a time
PROGRESS_DELAY_SECONDS = 2.0  # seconds before a bar appears
FILE_MAGIC = b"sensorium pictures 1"
CHECKSUM_BLOCK_BYTES = 1 << 20  # bytes under one checksum
MAX_VERIFIED_BLOCKS = (
    1024  # blocks verified as a file is opened: all of them up to a gigabyte, or a sample
)
STALE_TEMPORARY_SECONDS = 24 * 3600  # seconds after which a temporary file is nobody's


ImageChunk = tuple[
    UInt8[np.ndarray, "n 3 H H"], dict[int, str]
]  # some pictures, and what was wrong with which row


@dataclass(frozen=True)
class ImageCache:
    """Pictures as they are stored. wrong: row -> why it could not be read; "" where there was nothing to read.

    name: a hash of what they are and how they were read.
    """

    pixels: UInt8[np.ndarray, "N 3 H H"]
    errors: dict[int, str]
    fingerprint: str


def cache_images(
    image: Image, raw: Callable[[range], Sequence[Any]], num_rows: int, name: str, console: Console
) -> ImageCache:
    """The pictures of `rows` rows, from disk if they have been decoded before.

    raw: the values of some rows (path, bytes, array, None). name: what to call them while they are decoded.
    """
    chunks = [
        range(start, min(start + ROWS_PER_READ, num_rows))
        for start in range(0, num_rows, ROWS_PER_READ)
    ]
    path = image_cache_folder() / image_cache_key(
        image, (value for chunk in chunks for value in raw(chunk))
    )
    found = _find_image_cache(path, num_rows, image.stored_size, console)
    if found is not None:
        return found
    parts = _show_progress(
        _decode_chunks(image, raw, chunks), num_rows, f"decoding {name}", console
    )
    return write_image_cache(path, num_rows, image.stored_size, parts)


def image_cache_folder() -> Path:
    """Where decoded pictures are kept: below $SENSORIUM_HOME, else $XDG_CACHE_HOME, else ~/.cache."""
    if home := os.environ.get("SENSORIUM_HOME"):
        return Path(home) / "cache" / "pictures"
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sensorium" / "pictures"
    )


def image_cache_key(image: Image, values: Iterable[Any]) -> str:
    """The name of the file that holds these values decoded with these settings."""
    own = [image.resample, image.shortest_edge] if image.resample else []
    found = hashlib.sha256(
        json.dumps([CACHE_VERSION, image.stored_size, image.resize_mode, *own]).encode()
    )
    for value in values:
        found.update(_identity_bytes(value))
    return found.hexdigest()[:32]


def _identity_bytes(value: Any) -> bytes:
    if isinstance(value, Path):
        try:
            about = value.stat()
        except OSError:
            return f"absent {value}\0".encode()
        return f"file {value.absolute()}\0{about.st_size} {about.st_mtime_ns}\0".encode(
            "utf-8", "surrogateescape"
        )
    if isinstance(value, np.ndarray):
        return (
            f"array {value.dtype.str} {value.shape}\0".encode()
            + np.ascontiguousarray(value).tobytes()
        )
    return (
        f"bytes {len(value)}\0".encode() + value
        if isinstance(value, bytes)
        else f"{value!r}\0".encode()
    )


def _decode_chunks(
    image: Image, raw: Callable[[range], Sequence[Any]], row_ranges: Iterable[range]
) -> Iterator[ImageChunk]:
    """Piece by piece, in order."""
    pieces = (
        (values[at : at + IMAGES_PER_CHUNK], chunk.start + at)
        for chunk in row_ranges
        for values in [raw(chunk)]
        for at in range(0, len(values), IMAGES_PER_CHUNK)
    )
    return prefetch(lambda piece: _decode_chunk(image, *piece), pieces)


def _decode_chunk(image: Image, values: Sequence[Any], start: int) -> ImageChunk:
    pixels = np.zeros((len(values), image.stored_size, image.stored_size, 3), np.uint8)
    wrong: dict[int, str] = {}
    for i, value in enumerate(values):
        try:
            if value is None:
                wrong[start + i] = ""
            else:
                image.load(value, out=pixels[i])
        except ValueError as e:
            wrong[start + i], pixels[i] = str(e), 0
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), wrong


def _show_progress(
    chunks: Iterable[ImageChunk], total: int, label: str, console: Console
) -> Iterator[ImageChunk]:
    """The parts as they come; what takes longer than PATIENCE gets a bar with the time that is left."""
    description = TextColumn("{task.description}", markup=False)
    bar = Progress(
        description,
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task, since, shown = bar.add_task(label, total=total), time.monotonic(), False
    try:
        for part in chunks:
            yield part
            bar.advance(task, len(part[0]))
            if not shown and time.monotonic() - since > PROGRESS_DELAY_SECONDS:
                bar.start()
                shown = True
    finally:
        bar.stop()


def _find_image_cache(
    path: Path, num_rows: int, stored_size: int, console: Console
) -> ImageCache | None:
    """The pictures stored at `path`; None where there are none, or (said, and removed) where they are damaged."""
    try:
        found = _open_image_cache(path, num_rows, stored_size)
        os.utime(path)
        return found
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as e:
        raise cache_access_error(path, e) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        console.print(
            f"the decoded pictures in {path} are damaged ({e}): decoding them again",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        path.unlink(missing_ok=True)
        return None


def write_image_cache(
    path: Path, num_rows: int, stored_size: int, chunks: Iterable[ImageChunk]
) -> ImageCache:
    """Store pictures that come in order, part by part, with what was wrong with some; then map them.

    Two processes that do this at once each write a file of their own; the last becomes the one that is there.
    Raises SensoriumError where the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cache_access_error(path, e) from e
    atomic.write_file(
        path, lambda temporary: _write_chunks(temporary, num_rows, stored_size, chunks)
    )
    prune_cache(path)
    return _open_image_cache(path, num_rows, stored_size, verify=False)


def cache_access_error(path: Path, error: OSError) -> SensoriumError:
    return SensoriumError(
        f"cannot keep decoded pictures in {path.parent}: {error.strerror}. "
        "Set SENSORIUM_HOME to a folder that can be read and written."
    )


def prune_cache(newest: Path) -> None:
    """Remove the files unused for longest until the rest fit the budget; not `newest`, nor what is being made."""
    given = os.environ.get("SENSORIUM_CACHE_GB", "20")
    try:
        budget = float(given) * 1e9
    except ValueError:
        raise SensoriumError(
            f"SENSORIUM_CACHE_GB={given!r} is not a number of gigabytes."
        ) from None
    kept, now = 0, time.time()
    for path, about in sorted(
        _list_files(newest.parent), key=lambda f: (f[0] != newest, -f[1].st_mtime)
    ):
        unfinished = path.suffix == ".tmp"
        kept += about.st_size
        if path != newest and (
            now - about.st_mtime > STALE_TEMPORARY_SECONDS if unfinished else kept > budget
        ):
            path.unlink(missing_ok=True)
            kept -= about.st_size


def _list_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    found = []
    for path in folder.iterdir():
        try:
            found.append((path, path.stat()))
        except FileNotFoundError:  # removed by another process just now
            continue
    return found


def _write_chunks(
    path: Path, num_rows: int, stored_size: int, chunks: Iterable[ImageChunk]
) -> None:
    sums, wrong = _Checksums(), {}
    with path.open("wb") as f:
        for pixels, why in chunks:
            wrong |= why
            data = np.ascontiguousarray(pixels).reshape(-1).data
            f.write(data)
            sums.update(data)
        if f.tell() != num_rows * 3 * stored_size * stored_size:
            raise ValueError(
                f"{f.tell()} bytes of pictures for {num_rows} rows of side {stored_size}"
            )
        notes = json.dumps(
            {"rows": num_rows, "side": stored_size, "sums": sums.values, "wrong": wrong}
        ).encode()
        f.write(notes + len(notes).to_bytes(8, "little") + FILE_MAGIC)


class _Checksums:
    """A CRC-32 of every BLOCK bytes of a stream; the last is of fewer, or of none."""

    def __init__(self) -> None:
        self.values, self.block_bytes = [0], 0

    def update(self, data: memoryview) -> None:
        while len(data):
            if self.block_bytes == CHECKSUM_BLOCK_BYTES:
                self.values.append(0)
                self.block_bytes = 0
            piece = data[: CHECKSUM_BLOCK_BYTES - self.block_bytes]
            self.values[-1] = zlib.crc32(piece, self.values[-1])
            self.block_bytes += len(piece)
            data = data[len(piece) :]


def _open_image_cache(
    path: Path, num_rows: int, stored_size: int, verify: bool = True
) -> ImageCache:
    size, tail = num_rows * 3 * stored_size * stored_size, 8 + len(FILE_MAGIC)
    with path.open("rb") as f:
        total = f.seek(0, os.SEEK_END)
        if total < size + tail:
            raise ValueError("it is too short")
        f.seek(total - tail)
        length, magic = int.from_bytes(f.read(8), "little"), f.read()
        if magic != FILE_MAGIC or total != size + length + tail:
            raise ValueError("it does not end as it should")
        f.seek(size)
        notes = json.loads(f.read(length))
    if (notes["rows"], notes["side"]) != (num_rows, stored_size):
        raise ValueError("it holds other pictures")
    shape = (num_rows, 3, stored_size, stored_size)
    pixels = np.memmap(path, np.uint8, "r", shape=shape) if size else np.zeros(shape, np.uint8)
    if verify:
        _verify_checksums(pixels, notes["sums"])
    return ImageCache(
        np.asarray(pixels), {int(row): str(why) for row, why in notes["wrong"].items()}, path.name
    )


def _verify_checksums(pixels: UInt8[np.ndarray, "N 3 H H"], checksums: list[int]) -> None:
    flat = pixels.reshape(-1)
    if len(checksums) != max(1, -(-len(flat) // CHECKSUM_BLOCK_BYTES)):
        raise ValueError("it has too few checksums")
    for i in range(0, len(checksums), -(-len(checksums) // MAX_VERIFIED_BLOCKS)):
        if (
            zlib.crc32(flat[i * CHECKSUM_BLOCK_BYTES : (i + 1) * CHECKSUM_BLOCK_BYTES].data)
            != checksums[i]
        ):
            raise ValueError(f"its bytes from {i * CHECKSUM_BLOCK_BYTES:,} on have changed")
