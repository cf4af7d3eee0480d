"""Open files that someone else named: regular files only, up to a limit, without waiting."""

import io
import os
import stat
from pathlib import Path

MAX_FILE_BYTES = 1 << 40  # a larger file is sparse or a mistake
# Open without waiting: a FIFO or a terminal must not block.
OPEN_FLAGS = os.O_RDONLY | sum(
    getattr(os, flag, 0) for flag in ("O_BINARY", "O_NONBLOCK", "O_NOCTTY")
)


class NotARegularFileError(OSError):
    """The path is a folder, a device, a FIFO or a socket, or the file is too large."""


def open_regular(
    path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES
) -> io.BufferedReader:
    """Open a regular file for reading bytes; links are followed.

    Args:
        path: the file.
        max_bytes: the largest size.

    Raises:
        NotARegularFileError: if it is something else or larger, such as /dev/zero or a FIFO.
        OSError: if it cannot be opened.
    """
    descriptor = os.open(path, OPEN_FLAGS)
    try:
        info = os.fstat(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise NotARegularFileError(0, "not a regular file")
        if info.st_size > max_bytes:
            raise NotARegularFileError(
                0, f"{info.st_size:,} bytes, more than the limit of {max_bytes:,} bytes"
            )
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_regular(path: str | os.PathLike[str], max_bytes: int = MAX_FILE_BYTES) -> None:
    """Check that a file may be opened by a library that takes a path only.

    Raises:
        OSError: as `open_regular`.
    """
    open_regular(Path(path), max_bytes).close()
