"""Writes that are there whole or not at all, whenever the machine stops: temporary file, fsync, rename, fsync again."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from sensorium.errors import SensoriumError


def write_file(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """Put `content` at `path` so that a reader, now or after a crash, finds the old file or the new one, never a half.

    content: the bytes, or a function that writes them to the path it is given (which lies in the same folder).
    The file gets the rights that the umask allows, whatever the function gave it.
    Raises SensoriumError where the system refuses (disk full, no rights); what was at `path` is then untouched.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        mode = _create_empty_file(temporary)
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        os.chmod(temporary, mode)
        _fsync_file(temporary)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    except OSError as e:
        raise SensoriumError(
            f"could not write {path}: {e.strerror or e}. What was there before is untouched; "
            "free space or choose another place, then run the same command again."
        ) from e
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value: object) -> None:
    """`write` for JSON that a person can read: indented, UTF-8, and no NaN, which is not JSON (ValueError)."""
    write_file(
        path, (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    )


def fsync_dir(folder: str | Path) -> None:
    """Make names created, renamed or removed in `folder` survive a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def full_fsync(fd: int) -> None:
    """fsync that also empties the drive's own cache where the system (macOS) otherwise would not."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
    else:
        os.fsync(fd)


def remove_temporary_files(folder: str | Path) -> list[Path]:
    """Remove the temporary files that killed processes left in `folder`; only its one writer may call this."""
    left = [p for p in Path(folder).glob(".*.tmp") if p.is_file()]
    for path in left:
        path.unlink()
    return left


def _create_empty_file(path: Path) -> int:
    """Make an empty file as the umask allows; its mode."""
    fd = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o666)
    mode = os.fstat(fd).st_mode & 0o777
    os.close(fd)
    return mode


def _fsync_file(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        full_fsync(fd)
    finally:
        os.close(fd)
