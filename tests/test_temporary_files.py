"""Temporary files: swept after a killed process, taken away by a failed save."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fixtures import tiny_recipe

from sensorium.data.dataset import Dataset
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.snapshots import CheckpointStore
from sensorium.io.tensors import tensor_writer
from sensorium.recipes import RECIPES
from sensorium.training.loop import train

NO_PROCESS = 2**22 + 1  # above the largest number of a process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def run_python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python code in another process."""
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def leave_behind(folder: Path, process_id: int, host: str = atomic.HOST, age: float = 0) -> Path:
    path = folder / f".out.csv.x.sensorium-{process_id}-{host}.tmp"
    path.mkdir()
    file = path / "out.csv"
    file.write_bytes(b"half")
    for changed in (file, path):
        os.utime(changed, (time.time() - age, time.time() - age))
    return path


def test_only_what_no_live_process_writes_is_swept(tmp_path: Path) -> None:
    dead = leave_behind(tmp_path, NO_PROCESS)
    alive = leave_behind(tmp_path, os.getppid(), age=10**6)
    own = leave_behind(tmp_path, os.getpid())
    elsewhere = leave_behind(tmp_path, NO_PROCESS, "0" * 8, age=3600)
    (tmp_path / ".notes.1.tmp").write_text("of another program")
    assert atomic.sweep(tmp_path) == [dead]
    assert all(path.is_dir() for path in (alive, own, elsewhere))
    os.utime(own / "out.csv", (1, 1))
    os.utime(own, (1, 1))  # an earlier process with the number of this one, as in a container
    for path in (elsewhere, elsewhere / "out.csv"):
        os.utime(path, (1, 1))
    assert sorted(atomic.sweep(tmp_path)) == sorted([own, elsewhere])
    assert names(tmp_path) == sorted([".notes.1.tmp", alive.name])
    assert atomic.sweep(tmp_path / "missing") == []


KILLED_WRITER = """
import os, signal, sys
from pathlib import Path
from sensorium.io import atomic
def write(path):
    path.write_bytes(b"half")
    (path.parent / ".tmpABCDEF").write_bytes(b"as safetensors leaves it")
    os.kill(os.getpid(), signal.SIGKILL)
atomic.write_file(Path(sys.argv[1]), write)
"""


def test_next_write_sweeps_what_a_killed_one_left(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    assert run_python(KILLED_WRITER, out).returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1
    atomic.write_file(out, b"whole")
    assert names(tmp_path) == ["out.csv"]


KILLED_COMMAND = """
import os, signal, sys
from pathlib import Path
from sensorium.cli import app
from sensorium.io import atomic
sync, count = atomic._fsync_file, 0
def kill(path):
    global count
    count += 1
    if count == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    sync(path)
atomic._fsync_file = kill
sys.exit(app.run(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def fusion_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    lines = ["age,kind", *(f"{i % 17},{'ab'[i % 2]}" for i in range(60))]
    (folder / "data.csv").write_text("\n".join(lines), encoding="utf-8")
    data = Dataset.open(folder / "data.csv")
    train(
        RECIPES["fusion"],
        data,
        out=folder / "run",
        target="kind",
        epochs=1,
        dim=16,
        layers=1,
        head="network",
        quiet=True,
    )
    return folder / "run"


@pytest.mark.parametrize("output", ["predict", "export"])
def test_killed_command_leaves_nothing_after_the_next_one(
    output: str, fusion_run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    commands = {
        "predict": ["predict", fusion_run, fusion_run.parent / "data.csv", "-o", f"{out}.csv"],
        "export": ["export", fusion_run, "--format", "torch", "--out", out],
    }
    killed = run_python(KILLED_COMMAND, 1, *commands[output])
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    left = names(tmp_path)
    assert len(left) == 1
    assert left[0].endswith(".tmp")
    again = run_python(KILLED_COMMAND, 10**6, *commands[output])
    assert again.returncode == 0, again.stderr
    assert names(tmp_path) == ["out.csv" if output == "predict" else "out"]


FULL_DISK = """
import resource, sys
from sensorium.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.exit(app.run(sys.argv[2:]))
"""


@pytest.mark.parametrize("output", ["predict", "export", "train"])
def test_file_that_cannot_grow_is_one_clear_error(
    output: str, fusion_run: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for a full disk: the system refuses to write on."""
    data = fusion_run.parent / "data.csv"
    out = tmp_path / ("out.csv" if output == "predict" else "out")
    commands = {
        "predict": ["predict", fusion_run, data, "-o", out],
        "export": ["export", fusion_run, "--format", "torch", "--out", out],
        "train": ["train", "fusion", data, "--target", "kind", "--epochs", "1", "--out", out],
    }
    failed = run_python(FULL_DISK, 8000 if output == "train" else 500, *commands[output])
    assert failed.returncode == 1, failed.stderr
    assert "Traceback" not in failed.stderr
    assert "could not be written" in failed.stderr or "could not be saved" in failed.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    assert not list(tmp_path.rglob(".tmp*"))
    if output != "train":
        assert names(tmp_path) == []


def test_failed_checkpoint_takes_its_own_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = CheckpointStore(tmp_path / "state")
    store.save(1, {"a": b"one", "b": b"two"})
    write = Path.write_bytes

    def write_or_fail(path: Path, content: bytes) -> int:
        write(path, content[:1])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for content in (b"x", tensor_writer({"x": torch.zeros(4)})):
        with monkeypatch.context() as patch:
            if isinstance(content, bytes):
                patch.setattr(Path, "write_bytes", write_or_fail)
            else:
                patch.setattr("sensorium.io.tensors.save_file", _refuse)
            with pytest.raises(SensoriumError, match="No space left on device"):
                store.save(2, {"a": content})
    assert names(tmp_path / "state") == ["step-000001"]
    assert store.latest() == tmp_path / "state" / "step-000001"


def _refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    def fill(fail: bool) -> None:
        with atomic.new_folder(out) as folder:
            assert folder.name == "out"
            atomic.write_file(folder / "a", b"a")
            if fail:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(SensoriumError, match=r"out could not be written: No space left"):
        fill(True)
    assert names(out.parent) == []
    out.mkdir()
    fill(False)
    assert names(out) == ["a"]
    assert names(out.parent) == ["out"]


def test_run_that_is_resumed_sweeps_its_folder(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, epochs=1, quiet=True)
    leave_behind(run, NO_PROCESS)
    (run / "state" / "step-000099.tmp").mkdir()
    train(tiny_recipe.guess, tiny_recipe.rows(), out=run, epochs=2, resume=True, quiet=True)
    assert not list(run.rglob("*.tmp"))


def test_full_file_system(tmp_path: Path) -> None:
    """On a real full file system, where one can be mounted."""
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)],
        capture_output=True,
        check=False,
    )
    if mount.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        atomic.write_file(tmp_path / "a", b"old")
        for content in (bytes(10**6), tensor_writer({"x": torch.zeros(10**6)})):
            with pytest.raises(SensoriumError, match=r"could not be written: .*No space left"):
                atomic.write_file(tmp_path / "a", content)
            assert names(tmp_path) == ["a"]
            assert (tmp_path / "a").read_bytes() == b"old"
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
