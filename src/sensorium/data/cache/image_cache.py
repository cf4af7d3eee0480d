"""Images decoded once into a memory-mapped file, whose name is a hash of its content.

N rows   H side of an image as stored

The name of a file is a hash of the settings and of what the images are (path, size and modification
time, else the bytes). It holds N images of 3 x H x H bytes, then JSON metadata (checksums; which
rows are missing or bad, and why), the length of the JSON, and FILE_MAGIC. When the files of
`image_cache_folder()` together exceed SENSORIUM_CACHE_GB (20), the least recently used ones are
removed.
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
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prefetch import prefetch
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.terminal import SafeConsole
from sensorium.io.untrusted import EmbeddedFile
from sensorium.modalities.image import Image

CACHE_VERSION = 1  # of what decoding returns: another version is decoded again
CACHE_FOLDER = "images"
IMAGES_PER_CHUNK = 64  # images decoded by one thread at a time
ROWS_PER_READ = 4096  # raw values in memory at a time
PROGRESS_DELAY_SECONDS = 2.0  # before a progress bar appears
FILE_MAGIC = b"sensorium images 1"
CHECKSUM_BLOCK_BYTES = 1 << 20  # under one checksum
MAX_VERIFIED_BLOCKS = 1024  # when a file is opened: all of them up to a gigabyte, else a sample
STALE_TEMPORARY_SECONDS = 24 * 3600  # after which a temporary file belongs to no process


class ImageChunk(NamedTuple):
    """Some decoded images, and why those of some rows could not be read."""

    pixels: UInt8[np.ndarray, "n 3 H H"]
    errors: dict[int, str]


@dataclass(frozen=True)
class ImageCache:
    """Images as they are stored.

    Attributes:
        pixels: the images; zero where one is missing or bad.
        errors: row -> why its image could not be read, "" where it is missing.
        fingerprint: a hash of what the images are and how they were decoded.
    """

    pixels: UInt8[np.ndarray, "N 3 H H"]
    errors: dict[int, str]
    fingerprint: str


def cache_images(
    image: Image,
    raw: Callable[[range], Sequence[Any]],
    num_rows: int,
    name: str,
    console: SafeConsole,
) -> ImageCache:
    """Return the images of a column, from disk if they were decoded before.

    Args:
        image: the settings of the column.
        raw: returns the raw values of some rows (path, bytes, array, None).
        num_rows: N.
        name: what the progress bar calls the column.
        console: where it is shown.

    Raises:
        SensoriumError: if the cache folder cannot be read and written.
    """
    row_ranges = list(iter_batches(range(num_rows), ROWS_PER_READ))
    key = image_cache_key(image, (value for rows in row_ranges for value in raw(rows)))
    path = image_cache_folder() / key
    cached = _find_image_cache(path, num_rows, image.stored_size, console)
    if cached is not None:
        return cached
    chunks = _decode_chunks(image, raw, row_ranges)
    chunks = _show_progress(chunks, num_rows, f"decoding {name}", console)
    return write_image_cache(path, num_rows, image.stored_size, chunks)


def image_cache_folder() -> Path:
    """Return the folder of decoded images: in SENSORIUM_HOME, XDG_CACHE_HOME or ~/.cache."""
    if home := os.environ.get("SENSORIUM_HOME"):
        return Path(home) / "cache" / CACHE_FOLDER
    user_cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(user_cache) / "sensorium" / CACHE_FOLDER


def image_cache_key(image: Image, values: Iterable[Any]) -> str:
    """Return the name of the file that holds these raw values decoded with these settings."""
    settings: list[Any] = [CACHE_VERSION, image.stored_size, image.resize_mode]
    if image.resample:
        settings += [image.resample, image.shortest_edge]
    digest = hashlib.sha256(json.dumps(settings).encode())
    for value in values:
        digest.update(_identity_bytes(value))
    return digest.hexdigest()[:32]


def _identity_bytes(value: Any) -> bytes:
    """Return what identifies the content of a raw value."""
    if isinstance(value, Path):
        try:
            stat = value.stat()
        except OSError:
            return f"absent {value}\0".encode()
        identity = f"file {value.absolute()}\0{stat.st_size} {stat.st_mtime_ns}\0"
        return identity.encode("utf-8", "surrogateescape")
    if isinstance(value, EmbeddedFile):
        return f"embedded {value!r}\0".encode("utf-8", "surrogateescape")
    if isinstance(value, np.ndarray):
        content = np.ascontiguousarray(value).tobytes()
        return f"array {value.dtype.str} {value.shape}\0".encode() + content
    if isinstance(value, bytes):
        return f"bytes {len(value)}\0".encode() + value
    return f"{value!r}\0".encode()


def _decode_chunks(
    image: Image, raw: Callable[[range], Sequence[Any]], row_ranges: Iterable[range]
) -> Iterator[ImageChunk]:
    """Yield the decoded images in order."""

    def read_chunks() -> Iterator[tuple[Sequence[Any], int]]:
        for rows in row_ranges:
            values = iter_batches(raw(rows), IMAGES_PER_CHUNK)
            for chunk_values, chunk in zip(
                values, iter_batches(rows, IMAGES_PER_CHUNK), strict=True
            ):
                yield chunk_values, chunk.start

    return prefetch(lambda chunk: _decode_chunk(image, *chunk), read_chunks())


def _decode_chunk(image: Image, values: Sequence[Any], first_row: int) -> ImageChunk:
    """Decode some images; one that is bad becomes zero."""
    pixels = np.zeros((len(values), image.stored_size, image.stored_size, 3), np.uint8)
    errors: dict[int, str] = {}
    for i, value in enumerate(values):
        if value is None:
            errors[first_row + i] = ""
            continue
        try:
            image.load(value, out=pixels[i])
        except ValueError as e:
            errors[first_row + i] = str(e)
            pixels[i] = 0
    return ImageChunk(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)), errors)


def _show_progress(
    chunks: Iterable[ImageChunk], total: int, label: str, console: SafeConsole
) -> Iterator[ImageChunk]:
    """Yield the chunks, with a progress bar once they take longer than PROGRESS_DELAY_SECONDS."""
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    task = bar.add_task(label, total=total)
    start = time.monotonic()
    is_shown = False
    try:
        for chunk in chunks:
            yield chunk
            bar.advance(task, len(chunk.pixels))
            if not is_shown and time.monotonic() - start > PROGRESS_DELAY_SECONDS:
                bar.start()
                is_shown = True
    finally:
        bar.stop()


def _find_image_cache(
    path: Path, num_rows: int, stored_size: int, console: SafeConsole
) -> ImageCache | None:
    """Return the images stored at `path`; None if there are none or damaged ones."""
    try:
        cached = open_image_cache(path, num_rows, stored_size)
        os.utime(path)
        return cached
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as e:
        raise cache_access_error(path, e) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        console.print(
            f"The decoded images in {path} are damaged ({e}). They are decoded again.",
            soft_wrap=True,
        )
        path.unlink(missing_ok=True)
        return None


def write_image_cache(
    path: Path, num_rows: int, stored_size: int, chunks: Iterable[ImageChunk]
) -> ImageCache:
    """Store images that come in order, chunk by chunk; then map them into memory.

    Two processes that do this at once each write a file of their own; the last one replaces the
    other.

    Raises:
        SensoriumError: if the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise cache_access_error(path, e) from e
    atomic.write_file(
        path, lambda temporary: _write_chunks(temporary, num_rows, stored_size, chunks)
    )
    prune_cache(path)
    return open_image_cache(path, num_rows, stored_size, verify=False)


def cache_access_error(path: Path, error: OSError) -> SensoriumError:
    """Return the error for a cache folder that cannot be read or written."""
    return SensoriumError(
        f"cannot cache data in {path.parent}: {error.strerror}. "
        "Set SENSORIUM_HOME to a folder that can be read and written."
    )


def prune_cache(newest: Path) -> None:
    """Remove the least recently used files of a folder until the rest fit the budget.

    Temporary files go once they are stale.

    Args:
        newest: a file of the folder, which stays.

    Raises:
        SensoriumError: if SENSORIUM_CACHE_GB is not a number.
    """
    setting = os.environ.get("SENSORIUM_CACHE_GB", "20")
    try:
        budget = float(setting) * 1e9
    except ValueError:
        raise SensoriumError(
            f"SENSORIUM_CACHE_GB={setting!r} is not a number of gigabytes. "
            "Set it to one or unset it."
        ) from None
    now = time.time()
    files = _list_files(newest.parent)
    files.sort(key=lambda file: (file[0] != newest, -file[1].st_mtime))
    total_bytes = 0
    for path, stat in files:
        total_bytes += stat.st_size
        if path == newest:
            continue
        if path.suffix == ".tmp":  # another process may be writing it
            is_removed = now - stat.st_mtime > STALE_TEMPORARY_SECONDS
        else:
            is_removed = total_bytes > budget
        if is_removed:
            path.unlink(missing_ok=True)
            total_bytes -= stat.st_size


def _list_files(folder: Path) -> list[tuple[Path, os.stat_result]]:
    """Return the files of a folder with their sizes and times."""
    files: list[tuple[Path, os.stat_result]] = []
    for path in folder.iterdir():
        try:
            if path.is_file():
                files.append((path, path.stat()))
        except FileNotFoundError:  # removed by another process
            continue
    return files


def _write_chunks(
    path: Path, num_rows: int, stored_size: int, chunks: Iterable[ImageChunk]
) -> None:
    """Write the images and their metadata."""
    checksums = _Checksums()
    errors: dict[int, str] = {}
    with path.open("wb") as f:
        for chunk in chunks:
            errors |= chunk.errors
            data = np.ascontiguousarray(chunk.pixels).reshape(-1).data
            f.write(data)
            checksums.update(data)
        if f.tell() != num_rows * 3 * stored_size * stored_size:
            raise ValueError(
                f"{f.tell()} bytes of images for {num_rows} rows of side {stored_size}"
            )
        metadata = json.dumps(
            {
                "rows": num_rows,
                "size": stored_size,
                "checksums": checksums.values,
                "errors": errors,
            }
        ).encode()
        f.write(metadata + len(metadata).to_bytes(8, "little") + FILE_MAGIC)


class _Checksums:
    """The CRC-32 of each block of a stream; the last block may be shorter or empty."""

    def __init__(self) -> None:
        self.values = [0]
        self.block_bytes = 0

    def update(self, data: memoryview) -> None:
        """Append data to the stream."""
        while len(data):
            if self.block_bytes == CHECKSUM_BLOCK_BYTES:
                self.values.append(0)
                self.block_bytes = 0
            block_rest = data[: CHECKSUM_BLOCK_BYTES - self.block_bytes]
            self.values[-1] = zlib.crc32(block_rest, self.values[-1])
            self.block_bytes += len(block_rest)
            data = data[len(block_rest) :]


def open_image_cache(
    path: Path, num_rows: int, stored_size: int, verify: bool = True
) -> ImageCache:
    """Map a file into memory. Raises ValueError if it is damaged."""
    pixel_bytes = num_rows * 3 * stored_size * stored_size
    footer_bytes = 8 + len(FILE_MAGIC)
    with path.open("rb") as f:
        file_bytes = f.seek(0, os.SEEK_END)
        if file_bytes < pixel_bytes + footer_bytes:
            raise ValueError("it is too short")
        f.seek(file_bytes - footer_bytes)
        metadata_bytes = int.from_bytes(f.read(8), "little")
        magic = f.read()
        if magic != FILE_MAGIC or file_bytes != pixel_bytes + metadata_bytes + footer_bytes:
            raise ValueError("it does not end as expected")
        f.seek(pixel_bytes)
        metadata = json.loads(f.read(metadata_bytes))
    if (metadata["rows"], metadata["size"]) != (num_rows, stored_size):
        raise ValueError("it holds other images")
    shape = (num_rows, 3, stored_size, stored_size)
    if pixel_bytes:
        pixels = np.asarray(np.memmap(path, np.uint8, "r", shape=shape))
    else:
        pixels = np.zeros(shape, np.uint8)
    if verify:
        _verify_checksums(pixels, metadata["checksums"])
    errors = {int(row): str(error) for row, error in metadata["errors"].items()}
    return ImageCache(pixels, errors, path.name)


def _verify_checksums(pixels: UInt8[np.ndarray, "N 3 H H"], checksums: list[int]) -> None:
    """Raise ValueError if a checksum is wrong; of many blocks, evenly spaced ones are verified."""
    flat = pixels.reshape(-1)
    if len(checksums) != max(1, -(-len(flat) // CHECKSUM_BLOCK_BYTES)):
        raise ValueError("its number of checksums is wrong")
    step = -(-len(checksums) // MAX_VERIFIED_BLOCKS)
    for i in range(0, len(checksums), step):
        start = i * CHECKSUM_BLOCK_BYTES
        if zlib.crc32(flat[start : start + CHECKSUM_BLOCK_BYTES].data) != checksums[i]:
            raise ValueError(f"its bytes from {start:,} on have changed")
