"""Atomic file writes: temporary file, fsync, rename, fsync of the folder."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sensorium.errors import SensoriumError


def write_file(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file atomically: a reader, now or after a crash, finds the old file or the new one.

    Args:
        path: the file to write. It gets the permissions that the umask allows.
        content: the bytes, or a function that writes them to a temporary path.

    Raises:
        SensoriumError: the system refuses (disk full, no permission). The old file is unchanged.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        mode = _create_empty_file(temporary)
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        temporary.chmod(mode)
        _fsync_file(temporary)
        temporary.replace(path)
        fsync_dir(path.parent)
    except OSError as e:
        raise SensoriumError(
            f"{path} could not be written: {e.strerror or e}. The previous file is unchanged; "
            "free disk space or choose another location, then run the same command again."
        ) from e
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """Write indented UTF-8 JSON atomically.

    Raises:
        ValueError: the value holds NaN or infinity, which JSON cannot express.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    write_file(path, f"{text}\n".encode())


def fsync_dir(folder: str | Path) -> None:
    """Make names created, renamed or removed in `folder` survive a power cut.

    Windows cannot open a folder to sync it, so there this does nothing.
    """
    if sys.platform == "win32":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def full_fsync(fd: int) -> None:
    """Sync a file, and on macOS flush the cache of the drive as well."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def remove_temporary_files(folder: str | Path) -> list[Path]:
    """Remove and return the temporary files that killed processes left in `folder`.

    Only the single writer of the folder may call this.
    """
    leftovers = [path for path in Path(folder).glob(".*.tmp") if path.is_file()]
    for path in leftovers:
        path.unlink()
    return leftovers


def _create_empty_file(path: Path) -> int:
    """Create an empty file with the permissions of the umask; return its mode."""
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    mode = os.fstat(fd).st_mode & 0o777
    os.close(fd)
    return mode


def _fsync_file(path: Path) -> None:
    """Sync the content of a file."""
    fd = os.open(path, os.O_RDWR)
    try:
        full_fsync(fd)
    finally:
        os.close(fd)
