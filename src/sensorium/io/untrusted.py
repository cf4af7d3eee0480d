"""Files and texts from outside: limits, regular files only, and texts that every tool takes.

The limits are far above what honest files need, and below what exhausts a machine. They are checked
in headers, before anything is decoded or unpacked.
"""

import io
import os
import re
import stat
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 40  # a larger file is sparse or a mistake

# Images
MAX_IMAGE_FILE_BYTES = 1 << 30
MAX_IMAGE_PIXELS = 89_000_000  # just below the size from which Pillow itself warns
MAX_IMAGE_SIDE = 65_535  # pixels, as in JPEG
MAX_JPEG_SCAN_PIXELS = 16 * MAX_IMAGE_PIXELS  # each scan of a progressive JPEG visits every pixel
MAX_IMAGE_SEGMENTS = 500_000  # of a file: JPEG segments, PNG chunks, TIFF strips

# Audio
MAX_AUDIO_CHANNELS = 64

# Tables
MAX_TABLE_COLUMNS = 16_384  # as in Excel
MAX_MISSING_CELLS = 100_000_000  # of rows that lack columns which others have
MAX_CELL_CHARACTERS = 64 << 20  # of CSV
MAX_LINE_CHARACTERS = 256 << 20  # of CSV and JSONL
MIN_UNPACKED_BYTES = 2 << 30  # any table may unpack to this size,
MAX_UNPACKED_RATIO = 100  # a larger one to this multiple of its file
MIN_GZIP_BYTES = 64 << 20  # the same for a packed text, whose rows are read one by one

# All threads together
MAX_BYTES_READ_AT_ONCE = MAX_IMAGE_FILE_BYTES
MAX_BYTES_DECODED_AT_ONCE = 3 << 29  # 1.5 GiB
# Open without waiting: a FIFO or a terminal must not block.
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY")
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character


class MemoryBudget:
    """Bytes that all threads together may hold; a thread that needs more than is left waits.

    Args:
        num_bytes: the budget. A thread that needs more than all of it has it to itself.
    """

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes
        self._free = num_bytes
        self._changed = threading.Condition()

    @contextmanager
    def reserve(self, num_bytes: int) -> Iterator[None]:
        """Hold a part of the budget meanwhile."""
        amount = min(num_bytes, self.num_bytes)
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        try:
            yield
        finally:
            with self._changed:
                self._free += amount
                self._changed.notify_all()


# Whoever holds decoded bytes does not wait for the bytes of a file, so that all threads go on.
READ_BUDGET = MemoryBudget(MAX_BYTES_READ_AT_ONCE)
DECODE_BUDGET = MemoryBudget(MAX_BYTES_DECODED_AT_ONCE)


def check_unpacked_size(num_bytes: int, file_bytes: int, min_bytes: int) -> str:
    """Return why a packed file is refused, "" if it is not.

    Args:
        num_bytes: what it unpacks to, as far as is known.
        file_bytes: its size.
        min_bytes: what any file may unpack to.
    """
    limit = max(min_bytes, MAX_UNPACKED_RATIO * file_bytes)
    if num_bytes <= limit:
        return ""
    return (
        f"its {file_bytes:,} bytes unpack to {num_bytes:,} or more; the limit is {limit:,}. Unpack "
        "it yourself if you trust it"
    )


class NotARegularFileError(OSError):
    """The path is a folder, a device, a FIFO or a socket, or the file is too large."""


class EmbeddedFile(ABC):
    """A file that is a range of bytes of another file, such as a member of a tar archive.

    Attributes:
        name: its name in that file.
        size: its size in bytes.
    """

    __slots__ = ()
    name: str
    size: int

    @abstractmethod
    def open(self) -> io.BufferedReader:
        """Open it for reading bytes.

        Raises:
            OSError: if the file that holds it cannot be opened or has changed.
        """


FilePath = str | os.PathLike[str] | EmbeddedFile


def open_regular(path: FilePath, max_bytes: int = MAX_FILE_BYTES) -> io.BufferedReader:
    """Open a regular file for reading bytes; links are followed.

    Args:
        path: the file, which may be inside another.
        max_bytes: the largest size.

    Raises:
        NotARegularFileError: if it is something else or larger, such as /dev/zero or a FIFO.
        OSError: if it cannot be opened.
    """
    if isinstance(path, EmbeddedFile):
        _check_size(path.size, max_bytes)
        return path.open()
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise NotARegularFileError(0, "not a regular file")
        _check_size(info.st_size, max_bytes)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise NotARegularFileError(0, f"{size:,} bytes, more than the limit of {max_bytes:,} bytes")


def check_regular(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> None:
    """Check that a file may be opened by a library that takes a path only.

    Raises:
        OSError: as `open_regular`.
    """
    open_regular(Path(path), max_bytes).close()


def replace_surrogates(value: Any) -> Any:
    """Return a value in whose texts, keys and lists each lone surrogate is replaced by U+FFFD.

    Half a character comes from JSON that was cut within an emoji, and from file names and
    arguments that are not UTF-8; no file, terminal or tokenizer takes it.
    """
    if isinstance(value, str):
        return _LONE_SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [replace_surrogates(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): replace_surrogates(item) for key, item in value.items()}
    return value
