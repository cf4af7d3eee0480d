"""Files and texts from outside: regular files only, and texts that every tool takes."""

import io
import os
import re
import stat
from pathlib import Path
from typing import Any

MAX_FILE_BYTES = 1 << 40  # a larger file is sparse or a mistake
# Open without waiting: a FIFO or a terminal must not block.
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY")
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character


class NotARegularFileError(OSError):
    """The path is a folder, a device, a FIFO or a socket, or the file is too large."""


class EmbeddedFile:
    """A file that is a range of bytes of another file, such as a member of a tar archive.

    Attributes:
        name: its name in that file.
        size: its size in bytes.
    """

    __slots__ = ()
    name: str
    size: int

    def open(self) -> io.BufferedReader:
        """Open it for reading bytes.

        Raises:
            OSError: if the file that holds it cannot be opened or has changed.
        """
        raise NotImplementedError


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
