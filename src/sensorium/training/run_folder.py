"""The folder of a run: where it is, and the lock that keeps it to one process."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io.file_lock import try_lock
from sensorium.io.run_config import CONFIG_FILE, INITIAL_WEIGHTS_FILE, TRAINED_ROWS_FILE

# Everything that a run killed before its first config.json may leave.
FILES_BEFORE_CONFIG = (
    "schema.json",
    "tokenizer.json",
    "quarantine.jsonl",
    TRAINED_ROWS_FILE,
    INITIAL_WEIGHTS_FILE,
)
MAX_NUMBERED_FOLDERS = 9_999


def resolve_folder(out: str | Path | None, name: str, resume: bool) -> tuple[Path, bool]:
    """Choose the folder of a run, and create it if needed.

    Args:
        out: the folder; None: the next free one of runs/NAME-0001, ... Unless a run is resumed it
            must be empty, apart from what a run leaves that is killed before its first config.json.
        name: name of the recipe.
        resume: whether a run in `out` is to be resumed.

    Returns:
        The folder, and whether it holds a run that has started.

    Raises:
        SensoriumError: there is nothing to resume, or the folder is occupied or not writable.
    """
    if resume and out is None:
        raise SensoriumError("Name the run to resume with --out FOLDER (out=...).")
    if resume and not Path(str(out)).is_dir():
        raise SensoriumError(f"{out} does not exist, so there is no run to resume. Check --out.")
    try:
        folder = next_numbered(Path("runs"), name) if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        has_run = (folder / CONFIG_FILE).exists()
        if has_run and not resume:
            raise SensoriumError(
                f"{folder} already holds a run. Resume it with --resume (resume=True), or choose "
                "another folder with --out."
            )
        unknown = [] if has_run else _unknown_files(folder, resume)
        if unknown:
            raise SensoriumError(
                f"{folder} is not empty ({unknown[0]}, ...). Choose a new folder with --out."
            )
        with tempfile.TemporaryFile(dir=folder):  # check that it is writable
            return folder, has_run
    except OSError as e:
        raise SensoriumError(
            f"{out or 'runs'} is not writable: {e.strerror or e}. Choose another folder with --out."
        ) from e


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes from training into a folder; released when the process ends.

    Raises:
        SensoriumError: another process holds the lock.
    """
    fd = os.open(folder, os.O_RDONLY)
    try:
        if not try_lock(fd):
            raise SensoriumError(
                f"{folder} is in use by another process that trains into it. Wait for it, or stop "
                "it."
            )
        yield
    finally:
        os.close(fd)


def next_numbered(parent: Path, name: str) -> Path:
    """Create and return the next free folder of NAME-0001, ...

    Raises:
        SensoriumError: all numbers are taken.
    """
    parent.mkdir(exist_ok=True)
    for number in range(1, MAX_NUMBERED_FOLDERS + 1):
        folder = parent / f"{name}-{number:04d}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise SensoriumError(
        f"{parent} holds {MAX_NUMBERED_FOLDERS:,} folders of {name}. Remove some, or choose a "
        "folder with --out."
    )


def _unknown_files(folder: Path, resume: bool) -> list[str]:
    """Return what a run killed before its first config.json cannot have left."""
    unknown = []
    for path in sorted(folder.iterdir()):
        left_by_run = path.name in FILES_BEFORE_CONFIG or path.name.endswith(".tmp")
        prerequisite = resume and path.is_dir()  # a run that this one builds on, trained first
        if not left_by_run and not prerequisite:
            unknown.append(path.name)
    return unknown
