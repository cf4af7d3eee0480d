"""The files of an index folder: their names, the lock, and generations.

`index.json` names the current generation. A generation has one file of each part: `vectors.1.f32`,
`payload.1.bin`, `log.1.jsonl` and, derived from the payload, `words.1.safetensors`.
"""

import os
import re
from pathlib import Path
from typing import IO

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.file_lock import try_lock

HEADER_FILE = "index.json"
LOCK_FILE = "lock"
VECTORS_PART, PAYLOAD_PART, JOURNAL_PART, WORDS_PART = range(4)
DURABLE_PARTS = (VECTORS_PART, PAYLOAD_PART, JOURNAL_PART)
_PART_NAMES = ("vectors.{}.f32", "payload.{}.bin", "log.{}.jsonl", "words.{}.safetensors")


def part_path(folder: Path, part: int, generation: int) -> Path:
    """Return the path of a file of a generation."""
    return folder / _PART_NAMES[part].format(generation)


def open_parts(folder: Path, generation: int, flags: int) -> list[int]:
    """Return the descriptors of the durable parts of a generation.

    Raises:
        SensoriumError: one cannot be opened.
    """
    files: list[int] = []
    try:
        for part in DURABLE_PARTS:
            path = part_path(folder, part, generation)
            files.append(_open_file(path, flags))
    except SensoriumError:
        for fd in files:
            os.close(fd)
        raise
    return files


def newest_generation(folder: Path) -> int:
    """Return the largest generation of which there is a file, finished or not; 0 if none."""
    numbers = [_generation_of(path) for path in folder.iterdir()]
    return max(numbers, default=0)


def remove_other_generations(folder: Path, generation: int) -> None:
    """Remove the files of all other generations, and what killed writers left."""
    for path in folder.iterdir():
        if _generation_of(path) not in (0, generation):
            path.unlink()
    atomic.sweep(folder)


def create_folder(folder: Path) -> None:
    """Create an index folder.

    Raises:
        SensoriumError: the folder holds something else, or cannot be created.
    """
    if folder.exists() and not _may_hold_index(folder):
        raise SensoriumError(
            f"{folder} holds something other than an index. Choose a new or empty folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise SensoriumError(
            f"{folder} cannot be created: {e.strerror}. Choose another folder."
        ) from e


def acquire_lock(folder: Path) -> IO[bytes]:
    """Return the locked lock file; closing it releases the lock.

    Raises:
        SensoriumError: another process holds the lock, or the folder is not writable.
    """
    try:
        lock = (folder / LOCK_FILE).open("a+b")
    except OSError as e:
        raise SensoriumError(
            f"{folder} is not writable: {e.strerror}. Choose another folder."
        ) from e
    if not try_lock(lock.fileno()):
        lock.close()
        raise SensoriumError(
            f"{folder} is being changed by another process. Wait for it, or stop it; searching "
            "meanwhile is safe."
        )
    return lock


def corruption_error(path: Path, reason: str) -> SensoriumError:
    """Return the error for a damaged file of an index."""
    return SensoriumError(
        f"{path} is damaged: {reason}. Restore it from a copy, or build the index again."
    )


def _open_file(path: Path, flags: int) -> int:
    """Return the descriptor of a file."""
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        raise corruption_error(path, "it is missing") from None
    except OSError as e:
        raise SensoriumError(
            f"{path} cannot be opened: {e.strerror}. Check its permissions."
        ) from e


def _generation_of(path: Path) -> int:
    """Return the generation of a file of an index, 0 for another file."""
    for name in _PART_NAMES:
        match = re.fullmatch(re.escape(name).replace(r"\{\}", r"(\d{1,18})"), path.name)
        if match:
            return int(match[1])
    return 0


def _may_hold_index(folder: Path) -> bool:
    """Return whether a folder is empty or holds an index, perhaps an unfinished one."""
    if not folder.is_dir():
        return False
    return (folder / LOCK_FILE).exists() or not any(folder.iterdir())
