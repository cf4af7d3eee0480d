"""Checkpoints that consist of several files: current by one rename, verified by SHA-256."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import file_sha256

MANIFEST_FILE = "manifest.json"
FileContent = bytes | Callable[[Path], object]  # what `atomic.write_file` takes


class CheckpointStore:
    """The checkpoints step-000123 of one folder; the two newest are kept.

    Only one process may write to a folder.

    Args:
        folder: where the checkpoints are stored; created by the first `save`.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._last_verified: Path | None = None

    def save(self, step: int, files: Mapping[str, FileContent]) -> Path:
        """Write a checkpoint, read it back, and only then delete older ones.

        Args:
            step: number of the checkpoint.
            files: file name to content.

        Raises:
            SensoriumError: the disk refuses. Existing checkpoints are unchanged.
        """
        path = self.folder / f"step-{step:06d}"
        if path == self._last_verified:
            return path
        self._write_checkpoint(path, files)
        fault = verify(path)
        if fault is not None:
            raise SensoriumError(
                f"{path} was written, but reading it back failed: {fault}. Check the disk; the "
                "previous checkpoint is kept."
            )
        self._prune(keep={path, self._last_verified})
        self._last_verified = path
        return path

    def latest(self, log: Callable[[str], object] = print) -> Path | None:
        """Return the newest intact checkpoint, or None if there are no checkpoints.

        Args:
            log: called with a message about damaged checkpoints that are skipped.

        Raises:
            SensoriumError: there are checkpoints, and all are damaged.
        """
        faults: list[str] = []
        for path in sorted(self._list_checkpoints(), key=_step_number, reverse=True):
            fault = verify(path)
            if fault is None:
                if faults:
                    log(f"{'; '.join(faults)}. Resuming from the previous one, {path.name}.")
                self._last_verified = path
                return path
            faults.append(f"{path} is damaged: {fault}")
        if faults:
            raise SensoriumError(
                f"{'; '.join(faults)}. No intact checkpoint is left: train into a new folder."
            )
        return None

    def _write_checkpoint(self, path: Path, files: Mapping[str, FileContent]) -> None:
        """Write all files and their manifest to a staging folder, then rename it."""
        staging = path.with_suffix(".tmp")
        is_complete = False
        try:
            self.folder.mkdir(exist_ok=True)
            atomic.fsync_dir(self.folder.parent)
            _remove_tree(staging)
            staging.mkdir()
            for name, content in files.items():
                atomic.write_file(staging / name, content)
            manifest = {name: _checksums(staging / name) for name in files}
            atomic.write_json(staging / MANIFEST_FILE, manifest)
            if path.exists():  # a damaged checkpoint of the same step, skipped by `latest`
                _delete(path)
            staging.rename(path)
            is_complete = True
            atomic.fsync_dir(self.folder)
        except OSError as e:
            raise SensoriumError(
                f"{path} could not be saved: {e.strerror or e}. Older checkpoints are unchanged; "
                "free disk space, then resume with --resume (resume=True)."
            ) from e
        finally:
            if not is_complete:
                shutil.rmtree(staging, ignore_errors=True)

    def _prune(self, keep: set[Path | None]) -> None:
        """Delete all checkpoints except those in `keep`."""
        for path in self.folder.glob("step-*"):
            if path not in keep:
                _delete(path)

    def _list_checkpoints(self) -> list[Path]:
        """Return the complete checkpoints, without staging folders."""
        return [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]


def verify(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None if every file has its recorded hash."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text(encoding="utf-8"))
        for name, recorded in manifest.items():
            if _checksums(path / name) != recorded:
                return f"{name} does not match its checksum"
    except FileNotFoundError as e:
        return f"{Path(e.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as e:
        return f"{MANIFEST_FILE} cannot be read: {e}"
    return None


def _checksums(path: Path) -> dict[str, str | int]:
    """Return what the manifest records of a file."""
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _step_number(path: Path) -> int:
    """Return the step of a checkpoint folder."""
    return int(path.name.removeprefix("step-"))


def _delete(path: Path) -> None:
    """Delete a checkpoint so that an interrupted deletion leaves no partial checkpoint."""
    trash = path.with_suffix(".old")
    if trash != path:
        _remove_tree(trash)
        path.rename(trash)
    _remove_tree(trash)


def _remove_tree(folder: Path) -> None:
    """Remove a folder, if it exists."""
    if folder.exists():
        shutil.rmtree(folder)
