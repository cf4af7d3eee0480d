"""Durable writes are whole or not there."""

import os
import stat
from pathlib import Path

import pytest

from sensorium.errors import SensoriumError
from sensorium.io import atomic


def test_bytes_json_and_functions(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", b"one")
    atomic.write_file(tmp_path / "a", b"two")
    atomic.write_json(tmp_path / "b.json", {"ü": [1, 2.5, None]})
    atomic.write_file(tmp_path / "c", lambda path: path.write_text("made"))
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "b.json").read_text(encoding="utf-8").startswith('{\n  "ü"')
    assert (tmp_path / "c").read_text() == "made"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.json", "c"]


def test_rights_are_those_of_the_umask(tmp_path: Path) -> None:
    def secretive(path: Path) -> None:  # as safetensors writes
        path.write_bytes(b"x")
        path.chmod(0o600)

    before = os.umask(0o027)
    try:
        atomic.write_file(tmp_path / "a", secretive)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_a_failed_write_leaves_what_was_there(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", b"old")

    def full(path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(SensoriumError, match=r"could not write .*a: No space left on device"):
        atomic.write_file(tmp_path / "a", full)
    with pytest.raises(ZeroDivisionError):
        atomic.write_file(tmp_path / "a", lambda path: 1 // 0)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="nowhere"):
        atomic.write_file(tmp_path / "nowhere" / "a", b"x")


def test_nan_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        atomic.write_json(tmp_path / "a", float("nan"))
    assert not list(tmp_path.iterdir())


def test_everything_is_on_the_disk_before_the_name_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    sync, rename, folder = atomic.full_fsync, os.replace, atomic.fsync_dir
    monkeypatch.setattr(atomic, "sync", lambda fd: (seen.append("file"), sync(fd))[1])
    monkeypatch.setattr(os, "replace", lambda a, b: (seen.append("rename"), rename(a, b))[1])
    monkeypatch.setattr(atomic, "fsync_dir", lambda p: (seen.append("folder"), folder(p))[1])
    atomic.write_file(tmp_path / "a", b"x")
    assert seen == ["file", "rename", "folder"]


def test_sweep_removes_what_the_killed_left(tmp_path: Path) -> None:
    (tmp_path / ".model.safetensors.123.tmp").write_bytes(b"half")
    atomic.write_file(tmp_path / "kept", b"x")
    assert [p.name for p in atomic.remove_temporary_files(tmp_path)] == [
        ".model.safetensors.123.tmp"
    ]
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]
