"""Tests of atomic file writes and file locks."""

import os
import stat
import sys
from pathlib import Path

import pytest

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.file_lock import try_lock


def test_write_replaces_content_from_bytes_json_and_functions(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", b"one")
    atomic.write_file(tmp_path / "a", b"two")
    atomic.write_json(tmp_path / "b.json", {"ü": [1, 2.5, None]})
    atomic.write_file(tmp_path / "c", lambda path: path.write_text("three"))
    assert (tmp_path / "a").read_bytes() == b"two"
    assert (tmp_path / "b.json").read_text(encoding="utf-8").startswith('{\n  "ü"')
    assert (tmp_path / "c").read_text() == "three"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b.json", "c"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    def write_private(path: Path) -> None:  # as safetensors writes
        path.write_bytes(b"x")
        path.chmod(0o600)

    before = os.umask(0o027)
    try:
        atomic.write_file(tmp_path / "a", write_private)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o640


def test_failed_write_keeps_the_previous_file(tmp_path: Path) -> None:
    atomic.write_file(tmp_path / "a", b"old")

    def write_to_full_disk(path: Path) -> None:
        path.write_bytes(b"half of")
        raise OSError(28, "No space left on device")

    with pytest.raises(SensoriumError, match=r"a could not be written: No space left on device"):
        atomic.write_file(tmp_path / "a", write_to_full_disk)
    with pytest.raises(ZeroDivisionError):
        atomic.write_file(tmp_path / "a", lambda _: 1 // 0)
    assert (tmp_path / "a").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_write_into_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SensoriumError, match="nowhere"):
        atomic.write_file(tmp_path / "nowhere" / "a", b"x")


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        atomic.write_json(tmp_path / "a", float("nan"))
    assert not list(tmp_path.iterdir())


def test_content_is_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def record(name: str, target: object, attribute: str) -> None:
        function = getattr(target, attribute)

        def recorded(*arguments: object) -> object:
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(target, attribute, recorded)

    record("file", atomic, "full_fsync")
    record("rename", os, "replace")
    record("folder", atomic, "fsync_dir")
    atomic.write_file(tmp_path / "a", b"x")
    assert calls == ["file", "rename", "folder"]


def test_lock_is_exclusive_until_closed(tmp_path: Path) -> None:
    first, second = (os.open(tmp_path, os.O_RDONLY) for _ in range(2))
    try:
        assert try_lock(first)
        assert not try_lock(second)
        os.close(first)
        assert try_lock(second)
    finally:
        os.close(second)


def test_lock_on_windows_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SensoriumError, match="Use Linux, macOS or WSL"):
        try_lock(0)
