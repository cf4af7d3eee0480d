"""Where a run lives: its folder, its lock, its number."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.training.run import FILES_BEFORE_CONFIG


def resolve_folder(out: str | Path | None, name: str, resume: bool) -> tuple[Path, bool]:
    """The run's folder, and whether a run that has begun lies in it.

    A new one is `out` or else the next free of runs/NAME-0001, ...; it must be empty, but for what a run leaves that
    died before its first config.json. Raises SensoriumError where nothing is there to resume, or one cannot write.
    """
    if resume and (out is None or not Path(out).is_dir()):
        raise SensoriumError(
            "which run is to be resumed? Name its folder with out= (--out)"
            if out is None
            else f"there is no run to resume in {out}: the folder does not exist"
        )
    try:
        folder = next_numbered(Path("runs"), name) if out is None else Path(out)
        folder.mkdir(parents=True, exist_ok=True)
        begun = (folder / "config.json").exists()
        if begun and not resume:
            raise SensoriumError(
                f"{folder} holds a run: go on with it by resume=True (--resume), or choose another"
            )
        foreign = [
            p
            for p in sorted(os.listdir(folder))
            if p not in FILES_BEFORE_CONFIG
            and not p.endswith(".tmp")
            and not (resume and (folder / p).is_dir())
        ]  # a stage that was trained first
        if foreign and not begun:
            raise SensoriumError(
                f"{folder} is not empty ({foreign[0]}, ...): choose a new folder for the run"
            )
        with tempfile.TemporaryFile(dir=folder):
            return folder, begun
    except OSError as e:
        raise SensoriumError(
            f"cannot write to {out or 'runs'}: {e.strerror or e}. Choose another folder with out= "
            "(--out)"
        ) from e


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """No other process trains into the folder meanwhile. However this one ends, the system lets go of the lock."""
    import fcntl

    fd = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise SensoriumError(
                f"another process is training into {folder}: wait for it, or stop it"
            ) from e
        yield
    finally:
        os.close(fd)


def next_numbered(parent: Path, name: str) -> Path:
    """The next free of NAME-0001, ..., made now."""
    parent.mkdir(exist_ok=True)
    for i in range(1, 10_000):
        try:
            (folder := parent / f"{name}-{i:04d}").mkdir()
            return folder
        except FileExistsError:
            continue
    raise SensoriumError(
        f"{parent} holds 9,999 runs of {name}: remove some, or name a folder with out= (--out)"
    )
