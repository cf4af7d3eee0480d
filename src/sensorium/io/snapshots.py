"""Sets of files that belong together: each becomes current by one rename, and its hashes say that it is whole."""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.tensors import file_sha256

MANIFEST_FILE = "manifest.json"
FileContent = bytes | Callable[[Path], object]  # what `durable.write` takes


class CheckpointStore:
    """The sets step-000123 of one folder, of which the two newest are kept. One process writes to a folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._last_verified: Path | None = None  # the last one that was seen to be whole

    def save(self, step: int, files: Mapping[str, FileContent]) -> Path:
        """Write the files as the set of `step`; only when it is back from the disk whole is an older one let go.

        Raises SensoriumError where the disk refuses; the sets that were there are then untouched.
        """
        final = self.folder / f"step-{step:06d}"
        if final != self._last_verified:
            self._write_checkpoint(final, files)
            if fault := verify(final):
                raise SensoriumError(
                    f"{final} was written but did not come back whole ({fault}): check the disk. "
                    f"The set before it is kept."
                )
            self._prune(keep={final, self._last_verified})
            self._last_verified = final
        return final

    def latest(self, log: Callable[[str], object] = print) -> Path | None:
        """The newest whole set, None where there is none at all; `say` is told of damaged ones that were passed over.

        Raises SensoriumError where there are sets and all are damaged.
        """
        faults = []
        for path in sorted(self._list_checkpoints(), key=_step_number, reverse=True):
            fault = verify(path)
            if fault is None:
                if faults:
                    log(f"{'; '.join(faults)}. Continuing from the one before, {path.name}.")
                self._last_verified = path
                return path
            faults.append(f"{path} is damaged ({fault})")
        if faults:
            raise SensoriumError(
                f"{'; '.join(faults)}: nothing whole is left. Train into a new folder."
            )
        return None

    def _write_checkpoint(self, path: Path, files: Mapping[str, FileContent]) -> None:
        staging = path.with_suffix(".tmp")
        try:
            self.folder.mkdir(exist_ok=True)
            atomic.fsync_dir(self.folder.parent)
            _remove_tree(staging)
            staging.mkdir()
            for name, content in files.items():
                atomic.write_file(staging / name, content)
            atomic.write_json(
                staging / MANIFEST_FILE, {name: _checksums(staging / name) for name in files}
            )
            if path.exists():  # a damaged one of the same step, passed over by `latest`
                _delete(path)
            os.rename(staging, path)
            atomic.fsync_dir(self.folder)
        except OSError as e:
            raise SensoriumError(
                f"could not save {path}: {e.strerror or e}. Older checkpoints are untouched."
            ) from e

    def _prune(self, keep: set[Path | None]) -> None:
        for path in self.folder.glob("step-*"):
            if path not in keep:
                _delete(path)

    def _list_checkpoints(self) -> list[Path]:
        return [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]


def verify(path: Path) -> str | None:
    """What is wrong with a set, None if it is what was written: every file there, every hash right."""
    try:
        manifest = json.loads((path / MANIFEST_FILE).read_text())
        for name, facts in manifest.items():
            if _checksums(path / name) != facts:
                return f"{name} is not what was written"
    except FileNotFoundError as e:
        return f"{Path(e.filename).name} is missing"
    except (OSError, ValueError, AttributeError) as e:
        return f"{MANIFEST_FILE} cannot be read: {e}"
    return None


def _checksums(path: Path) -> dict[str, str | int]:
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _step_number(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _delete(path: Path) -> None:
    """Remove a set so that, however far this gets, nobody takes the rest of it for one."""
    trash = path.with_suffix(".old")
    if trash != path:
        _remove_tree(trash)
        os.rename(path, trash)
    _remove_tree(trash)


def _remove_tree(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
