"""Tests of the index on disk: no acknowledged change is ever lost."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.search import store as store_module
from sensorium.search.header import IndexHeader
from sensorium.search.index import Index
from sensorium.search.results import RowInfo
from sensorium.search.store import Store

KILLS = 24
DIM = 16


def fill_store(path: Path, n: int = 40) -> tuple[np.ndarray, list[bytes]]:
    x = np.random.default_rng(1).standard_normal((n, DIM), dtype=np.float32)
    payloads = [RowInfo(f"row {i}", "text", [f"caption {i}"]).pack(b"") for i in range(n)]
    with Store.create(path, IndexHeader(DIM, "f" * 64)) as store:
        store.publish()
        for start in range(0, n, 10):
            store.add(x[start : start + 10], payloads[start : start + 10])
    return x, payloads


def test_store_round_trip_delete_and_compact(tmp_path: Path) -> None:
    x, payloads = fill_store(tmp_path / "i")
    with Store.open(tmp_path / "i") as store:
        assert np.array_equal(store.vectors, x)
        assert [store.read_payload(r) for r in range(40)] == payloads
        store.delete([3, 39])
        with pytest.raises(SensoriumError, match="no row 3"):
            store.delete([2, 3])
        assert store.add(x[:1], payloads[:1]) == [40]
        assert len(store) == 39
    with compact(tmp_path / "i") as small:
        assert len(small.rows) == len(small) == 39
        assert 3 not in small.rows.ids
        small.delete([40])
    with compact(tmp_path / "i") as again:
        assert again.add(x[:1], payloads[:1]) == [41]  # ids are never reused
        again.verify()
    assert sorted(p.name for p in (tmp_path / "i").iterdir()) == [
        "index.json",
        "lock",
        "log.3.jsonl",
        "payload.3.bin",
        "vectors.3.f32",
    ]


def compact(path: Path) -> Store:
    with Store.open(path) as store:
        small = store.compact()
    small.publish()
    return small


def test_one_writer_and_many_readers(tmp_path: Path) -> None:
    x, payloads = fill_store(tmp_path / "i")
    with Store.open(tmp_path / "i") as first, Store.open(tmp_path / "i") as second:
        first.add(x[:1], payloads[:1])
        with pytest.raises(SensoriumError, match="being changed by another process"):
            second.add(x[:1], payloads[:1])
        assert len(Store.open(tmp_path / "i")) == 41
        first.close()
        assert second.add(x[:1], payloads[:1]) == [41]  # it has read what the first one wrote


WRITER_SCRIPT = """
import sys, numpy as np
from sensorium.search.store import Store
{definitions}
with {store}.open(sys.argv[1]) as s:
    while True:
        n = len(s.rows)
        ids = s.add(np.full((2, {dim}), n, np.float32), [b"%d" % n] * 2)
        print("added", ids[0], flush=True)
        if n % 6 == 0:
            s.delete(ids[1:])
            print("deleted", ids[1], flush=True)
"""
HASTY_STORE = """
class HastyStore(Store):
    pending = []
    def add(self, vectors, payloads):                               # acknowledges before it writes
        self.pending.append((vectors, payloads))
        if len(self.pending) > 50:
            for v, p in self.pending:
                super().add(v, p)
            self.pending.clear()
        self.next = getattr(self, "next", len(self.rows)) + len(payloads)
        return [self.next - 2, self.next - 1]
    def delete(self, ids): ...
"""


def create_empty_store(path: Path) -> None:
    with Store.create(path, IndexHeader(DIM, "")) as store:
        store.publish()


def run_and_kill(path: Path, seconds: float, code: str) -> list[tuple[str, int]]:
    """Return what a process had acknowledged when it was killed: (operation, id)."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    first = process.stdout.readline()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    os.kill(process.pid, signal.SIGKILL)
    lines = (first + process.stdout.read()).splitlines(keepends=True)
    process.stdout.close()
    process.wait()
    acknowledged = [line.split() for line in lines if line.endswith("\n")]
    return [(operation, int(row_id)) for operation, row_id in acknowledged]


def find_lost(path: Path, acknowledged: list[tuple[str, int]]) -> list[tuple[str, int]]:
    """Return the acknowledged operations whose result is not in the store."""
    with Store.open(path) as store:
        store.verify()
        vectors, rows = store.vectors, {row_id: row for row, row_id in enumerate(store.rows.ids)}

        def is_stored(operation: str, row_id: int) -> bool:
            if row_id not in rows:
                return False
            row, expected = rows[row_id], row_id - row_id % 2
            if bool(store.rows.alive[row]) == (operation == "deleted"):
                return False
            return store.read_payload(row) == b"%d" % expected and vectors[row, 0] == expected

        return [entry for entry in acknowledged if not is_stored(*entry)]


def test_acknowledged_changes_survive_sigkill(tmp_path: Path) -> None:
    create_empty_store(tmp_path / "i")
    code = WRITER_SCRIPT.format(definitions="", store="Store", dim=DIM)
    acknowledged: list[tuple[str, int]] = []
    rng = np.random.default_rng(0)
    for _ in range(KILLS):
        acknowledged += run_and_kill(tmp_path / "i", rng.uniform(0, 0.06), code)
        with Store.open(tmp_path / "i") as store:
            assert len(store.rows) % 2 == 0, "half of an addition was stored"
        assert not find_lost(tmp_path / "i", acknowledged)
    assert len(acknowledged) >= KILLS


def test_acknowledging_before_writing_is_detected(tmp_path: Path) -> None:
    """The control of the test above."""
    create_empty_store(tmp_path / "i")
    code = WRITER_SCRIPT.format(definitions=HASTY_STORE, store="HastyStore", dim=DIM)
    acknowledged = run_and_kill(tmp_path / "i", 0.05, code)
    assert acknowledged
    assert find_lost(tmp_path / "i", acknowledged)


@pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="names of open files are read from /proc"
)
@pytest.mark.parametrize("journal_is_synced", [True, False])
def test_power_cut_after_any_acknowledgement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, journal_is_synced: bool
) -> None:
    """Only synced content survives. Without the sync of the journal rows are lost: the control."""
    synced: dict[str, bytes] = {}

    def record_sync(fd: int) -> None:
        path = Path(f"/proc/self/fd/{fd}").readlink()
        if journal_is_synced or not path.name.startswith("log"):
            synced[path.name] = path.read_bytes()

    monkeypatch.setattr(atomic, "full_fsync", record_sync)
    fill_store(tmp_path / "i", 0)
    num_lost = 0
    with Store.open(tmp_path / "i") as store:
        for i in range(6):
            store.add(np.full((1, DIM), i, np.float32), [b"p"])
            after_cut = tmp_path / f"cut{i}"
            after_cut.mkdir()
            for name in ("vectors.1.f32", "payload.1.bin", "log.1.jsonl"):
                (after_cut / name).write_bytes(synced.get(name, b""))
            shutil.copy(tmp_path / "i" / "index.json", after_cut)
            try:
                num_lost += len(Store.open(after_cut)) < i + 1
            except SensoriumError:
                num_lost += 1
    assert (num_lost == 0) == journal_is_synced


def test_incomplete_journal_line_is_cut_off_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What was written of a change that was never acknowledged is no damage."""
    x, payloads = fill_store(tmp_path / "i", 30)
    log, vectors = tmp_path / "i" / "log.1.jsonl", tmp_path / "i" / "vectors.1.f32"
    whole = log.read_bytes()
    with Store.open(tmp_path / "i") as store:
        store.add(x[:10], payloads[:10])
    line = log.read_bytes()[len(whole) :]
    for size in (1, 9, 30, len(line) - 1):
        log.write_bytes(whole + line[:size])
        with Store.open(tmp_path / "i") as store:
            assert len(store) == 30  # a reader skips it: it may be in the middle of a write
            caplog.clear()
            store.lock()
            assert "log.1.jsonl: the last change was never completed" in caplog.text
        assert log.read_bytes() == whole
    log.write_bytes(whole + line[:20] + bytes(50) + b"\n")  # blocks that a power cut left empty
    assert len(Store.open(tmp_path / "i")) == 30
    log.write_bytes(whole + line)  # killed between the change and the record of its length
    assert len(Store.open(tmp_path / "i")) == 40
    with Store.open(tmp_path / "i") as store:
        store.lock()
    log.write_bytes(log.read_bytes()[: len(whole)])
    with pytest.raises(SensoriumError, match=r"log.1.jsonl is damaged: \d+ bytes at its end"):
        Store.open(tmp_path / "i")
    log.write_bytes(whole)
    with vectors.open("ab") as file:
        file.write(b"half of a row")
    with Store.open(tmp_path / "i") as store:
        store.add(x[:1], payloads[:1])
    with Store.open(tmp_path / "i") as store:
        store.verify()
        assert np.array_equal(store.vectors[-1], x[0])


def test_half_written_length_leaves_the_other(tmp_path: Path) -> None:
    """Of the two records of the committed length one may be torn, and the next change mends it."""
    x, payloads = fill_store(tmp_path / "i")
    log = tmp_path / "i" / "log.1.jsonl"
    whole = log.read_bytes()
    for start in (0, 64):
        log.write_bytes(whole[:start] + bytes(64) + whole[start + 64 :])
        with Store.open(tmp_path / "i") as store:
            assert len(store) == 40
            with pytest.raises(SensoriumError, match="one of its first lines"):
                store.verify()
            store.add(x[:1], payloads[:1])
            store.verify()
    log.write_bytes(bytes(128) + whole[128:])
    with pytest.raises(SensoriumError, match=r"log.1.jsonl is damaged: its first lines"):
        Store.open(tmp_path / "i")


@pytest.mark.parametrize("name", ["log.1.jsonl", "vectors.1.f32", "payload.1.bin"])
@pytest.mark.parametrize("missing", [1, 100, 1000, None])
def test_cut_file_is_an_error_and_nothing_is_removed(
    tmp_path: Path, name: str, missing: int | None
) -> None:
    fill_store(tmp_path / "i")
    path = tmp_path / "i" / name
    path.write_bytes(path.read_bytes()[: -missing if missing else 0])
    before = {p.name: p.read_bytes() for p in (tmp_path / "i").iterdir()}
    message = f"{name} is damaged: .*(missing|first lines)"
    with pytest.raises(SensoriumError, match=message):
        Store.open(tmp_path / "i")
    assert {p.name: p.read_bytes() for p in (tmp_path / "i").iterdir()} == before


@pytest.mark.parametrize("name", ["log.1.jsonl", "vectors.1.f32", "payload.1.bin"])
def test_file_cut_under_an_open_index_is_an_error(tmp_path: Path, name: str) -> None:
    x, payloads = fill_store(tmp_path / "i")
    path = tmp_path / "i" / name
    with Store.open(tmp_path / "i") as reader:
        os.truncate(path, path.stat().st_size - 10)
        for _ in range(2):  # the second try is no more dangerous than the first
            before = path.read_bytes()
            with pytest.raises(SensoriumError, match=f"{name} is damaged"):
                reader.add(x[:1], payloads[:1])
            assert path.read_bytes() == before


def test_closed_store_says_so(tmp_path: Path) -> None:
    x, payloads = fill_store(tmp_path / "i")
    store = Store.open(tmp_path / "i")
    store.close()
    store.close()
    uses = [
        lambda: store.add(x[:1], payloads[:1]),
        lambda: store.delete([0]),
        lambda: store.read_payload(0),
        lambda: store.vectors,
        store.lock,
        store.verify,
        store.compact,
    ]
    for use in uses:
        with pytest.raises(SensoriumError, match="is closed"):
            use()


REBUILDER_SCRIPT = """
import sys, numpy as np
from sensorium.search import store as store_module
from sensorium.search.header import IndexHeader
from sensorium.search.store import Store
while True:
    with Store.create(sys.argv[1], IndexHeader({dim}, "")) as store:
        store.add(np.ones((8, {dim}), np.float32), [b"p"] * 8)
        store.publish()
    print("built", 0, flush=True)
"""


def test_opening_while_the_index_is_rebuilt(tmp_path: Path) -> None:
    create_empty_store(tmp_path / "i")
    code = REBUILDER_SCRIPT.format(dim=DIM)
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "i")], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline()
        try:
            for _ in range(200):
                with Store.open(tmp_path / "i") as store:
                    assert len(store) == 8
        finally:
            process.kill()
        generations = len(process.stdout.read().splitlines())
    assert generations


def test_missing_file_is_damage_only_if_the_generation_is_current(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_store(tmp_path / "i")
    real = store_module.open_parts

    def rebuild_first(folder: Path, generation: int, flags: int) -> list[int]:
        monkeypatch.undo()
        fill_store(tmp_path / "i", 3)
        return real(folder, generation, flags)

    monkeypatch.setattr(store_module, "open_parts", rebuild_first)
    with Store.open(tmp_path / "i") as store:
        assert len(store) == 3
        assert store.header.generation == 2
    (tmp_path / "i" / "payload.2.bin").unlink()
    with pytest.raises(SensoriumError, match=r"payload.2.bin is damaged: it is missing"):
        Store.open(tmp_path / "i")


@pytest.mark.parametrize("name", ["log.1.jsonl", "vectors.1.f32", "payload.1.bin"])
def test_damage_is_reported_with_the_file(tmp_path: Path, name: str) -> None:
    fill_store(tmp_path / "i")
    path = tmp_path / "i" / name
    whole = path.read_bytes()
    for at in (0, 70, len(whole) // 3, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(SensoriumError, match=f"{name} is damaged"):
            Store.open(tmp_path / "i").verify()
    path.write_bytes(whole)
    Store.open(tmp_path / "i").verify()
    path.unlink()
    with pytest.raises(SensoriumError, match=f"{name} is damaged: it is missing"):
        Store.open(tmp_path / "i")


def test_header_with_other_keys_is_refused(tmp_path: Path) -> None:
    fill_store(tmp_path / "i")
    header = tmp_path / "i" / "index.json"
    good = json.loads(header.read_text())
    less = {k: v for k, v in good.items() if k != "dim"}
    for bad in (good | {"more": 1}, less, good | {"dim": "16"}, [], good | {"format": 1}):
        header.write_text(json.dumps(bad))
        with pytest.raises(SensoriumError, match=r"index.json"):
            Store.open(tmp_path / "i")
    with pytest.raises(SensoriumError, match="format 1; this version reads format 2"):
        Store.open(tmp_path / "i")
    with Store.create(tmp_path / "i", IndexHeader(DIM, "")) as store:  # built again in its place
        store.publish()
    assert store.header.generation == 2
    with pytest.raises(SensoriumError, match="holds no index"):
        Index.open(tmp_path)


def test_full_disk_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, payloads = fill_store(tmp_path / "i")
    real = os.pwrite
    with Store.open(tmp_path / "i") as store:
        for part in range(3):
            calls: list[int] = []

            def write_half(
                fd: int, data: bytes, at: int, part: int = part, calls: list[int] = calls
            ) -> int:
                calls.append(1)
                if len(calls) > part:
                    real(fd, data[: len(data) // 2], at)
                    raise OSError(28, "No space left on device")
                return real(fd, data, at)

            with monkeypatch.context() as patched:
                patched.setattr(os, "pwrite", write_half)
                with pytest.raises(SensoriumError, match="No space left"):
                    store.add(x[:1], payloads[:1])
        assert store.add(x[:1], payloads[:1]) == [40]
    Store.open(tmp_path / "i").verify()
