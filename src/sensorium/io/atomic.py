"""Atomic file writes: temporary file, fsync, rename, fsync of the folder.

Temporary files and folders are called .NAME.sensorium-PID-HOST.tmp. Those of killed processes are
removed when the next process writes into the same folder.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sensorium.errors import SensoriumError

HOST = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
TEMPORARY_NAME = re.compile(r"\..+\.sensorium-(\d+)-([0-9a-f]{8})\.tmp", re.DOTALL)
STALE_SECONDS = 24 * 3600.0  # age of a temporary file of which nobody can tell who writes it
MAX_NAME_CHARS = 40  # of the target's name in a temporary name; file systems allow 255 bytes
_IMPORT_TIME = time.time()
_swept: set[Path] = set()  # folders that this process has swept


def write_file(path: str | Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file atomically: a reader, now or after a crash, finds the old file or the new one.

    Args:
        path: the file to write. It gets the permissions that the umask allows.
        content: the bytes, or a function that writes them to a temporary path.

    Raises:
        SensoriumError: the system refuses (disk full, no permission). The old file is unchanged.
    """
    path = Path(path)
    try:
        with staging_folder(path) as folder:  # a library may leave files of its own beside the file
            temporary = folder / path.name
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


@contextmanager
def staging_folder(path: str | Path) -> Iterator[Path]:
    """Give a new temporary folder beside `path` for a `with` block, and remove it afterwards.

    What killed processes left beside `path` is removed first.
    """
    path = Path(path)
    parent = path.parent.resolve()
    if parent not in _swept:
        sweep(parent)
        _swept.add(parent)
    prefix = f".{path.name[:MAX_NAME_CHARS]}."
    suffix = f".sensorium-{os.getpid()}-{HOST}.tmp"
    folder = Path(tempfile.mkdtemp(suffix, prefix, parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def working_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder beside a new folder, whose missing parents are created.

    Raises:
        SensoriumError: the system refuses (disk full, no permission).
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(path) as folder:
            yield folder
    except OSError as e:
        raise SensoriumError(
            f"{path} could not be written: {e.strerror or e}. Free disk space or choose another "
            "location, then run the same command again."
        ) from e


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """Give a folder to fill in a `with` block; it becomes `path` at the end, or not at all.

    Args:
        path: the new folder, which may exist if it is empty. Missing parents are created.

    Raises:
        SensoriumError: the system refuses (disk full, no permission). `path` is as it was.
    """
    target = Path(path).resolve()
    with working_folder(target) as staging:
        folder = staging / target.name  # so texts that name the folder are right
        folder.mkdir()
        yield folder
        if target.exists():
            target.rmdir()
        folder.rename(target)
        fsync_dir(target.parent)


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


def sweep(folder: str | Path) -> list[Path]:
    """Remove and return the temporary files and folders that killed processes left in a folder.

    What a live process may still be writing stays: on this machine by the number of the process in
    its name, on others for a day after its last change.
    """
    removed: list[Path] = []
    with suppress(OSError):  # a folder that cannot be listed cannot be written to either
        for path in sorted(Path(folder).glob(".*.tmp")):
            name = TEMPORARY_NAME.fullmatch(path.name)
            if name and _is_abandoned(path, int(name[1]), name[2]):
                with suppress(OSError):  # another process may be sweeping, too
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed.append(path)
    return removed


def _is_abandoned(path: Path, process_id: int, host: str) -> bool:
    """Return whether the process that writes a temporary file has ended."""
    changed = max(p.stat().st_mtime for p in (path, *path.rglob("*")))
    if host != HOST or sys.platform == "win32":  # whose processes cannot be asked
        return time.time() - changed > STALE_SECONDS
    if process_id == os.getpid():  # of an earlier process with the same number, as in containers
        return changed < _IMPORT_TIME - 1
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


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
