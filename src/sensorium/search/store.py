"""Rows on disk that outlive a crash: vectors, what to show for each, and a log that says which of them count.

    N rows   D width

A folder holds `index.json` (which generation is current) and three files a generation: `vectors.1.f32` and
`payload.1.bin` only ever grow, `log.1.jsonl` has a line for each change. An add writes vectors and payload, waits until
they are on the disk, then writes its line, waits again, and only then is acknowledged.
"""

import json
import mmap
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Int

from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.search.journal import Journal, append_durably, corruption_error

FORMAT_VERSION = 1
HEADER_FILE = "index.json"
VECTORS_PART, PAYLOAD_PART, JOURNAL_PART = range(3)
PART_FILE_NAMES = ("vectors.{}.f32", "payload.{}.bin", "log.{}.jsonl")
CHECKSUM_CHUNK_BYTES = 8 << 20  # bytes read at once to check them
COMPACT_BATCH_ROWS = 4096  # rows copied at once


@dataclass(frozen=True)
class IndexHeader:
    """What index.json says. fingerprint: of the model whose vectors these are; run: its folder, as seen from here."""

    dim: int
    fingerprint: str
    run: str = ""
    generation: int = 1
    first_id: int = 0
    format: int = FORMAT_VERSION


class Store:
    """One index folder. Many may read it; who changes it holds its lock until `close`, or death."""

    def __init__(self, folder: Path, header: IndexHeader) -> None:
        self.folder, self.header = folder, header
        self.ids = array("q")  # row -> id, rising
        self.alive = bytearray()  # row -> 1, or 0 once it is deleted
        self._payload_ends = array("q")  # row -> where its payload ends
        self._payload_crcs = array("q")  # row -> checksum of its payload
        self._next_id = header.first_id
        self._lock: IO[bytes] | None = None
        self._files: list[int] = []
        self._mmap: mmap.mmap | None = None
        self._journal = Journal(self._part_path(JOURNAL_PART))

    @classmethod
    def create(cls, folder: str | Path, header: IndexHeader) -> "Store":
        """A new, empty generation, locked; it becomes the index, in an older one's place, by `publish`."""
        folder = Path(folder)
        if folder.exists() and (
            not folder.is_dir() or (any(folder.iterdir()) and not (folder / "lock").exists())
        ):
            raise SensoriumError(
                f"{folder} holds something other than an index. Choose a new or empty folder."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise SensoriumError(
                f"cannot make the folder {folder}: {e.strerror}. Choose another."
            ) from e
        lock = _acquire_lock(folder)
        old = read_header(folder).generation if (folder / HEADER_FILE).exists() else 0
        store = cls(folder, replace(header, generation=old + 1))
        store._create_files(lock)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """The current generation; log and vectors are checked. Raises SensoriumError naming a damaged file."""
        store = cls(Path(folder), read_header(Path(folder)))
        store._open_files(os.O_RDONLY)
        store._replay()
        return store

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return sum(self.alive)

    def close(self) -> None:
        """Let go of the files and the lock."""
        for fd in self._files:
            os.close(fd)
        self._files = []
        if self._lock:
            self._lock.close()
            self._lock = None

    def lock(self) -> None:
        """Become the one that may change this index, and see what others did. Raises SensoriumError if it is taken."""
        if self._lock:
            return
        lock = _acquire_lock(self.folder)
        if read_header(self.folder).generation != self.header.generation:
            lock.close()
            raise SensoriumError(
                f"{self.folder} was rebuilt since it was opened here. Open it again."
            )
        self._lock = lock
        self._open_files(os.O_RDWR)
        self._replay()
        self._journal.truncate_incomplete()

    @property
    def vectors(self) -> Float[np.ndarray, "N D"]:
        """Every row ever added, deleted ones too, mapped from the file."""
        if not len(self.ids):
            return np.zeros((0, self.header.dim), np.float32)
        size = (
            len(self.ids) * self.header.dim * 4
        )  # changes would stay private, so torch takes it as it is
        self._mmap = mmap.mmap(self._files[VECTORS_PART], size, access=mmap.ACCESS_COPY)
        return np.frombuffer(self._mmap, "<f4").reshape(-1, self.header.dim)

    def release_memory(self) -> None:
        """Let the system have back the memory of vectors read so far; they are read again where they are needed."""
        if self._mmap is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mmap.madvise(mmap.MADV_DONTNEED)

    def add(self, vectors: Float[np.ndarray, "n D"], payloads: Sequence[bytes]) -> list[int]:
        """Append rows; when this returns, they outlive anything but the disk. Their ids, which are never used again."""
        self.lock()  # which may tell of rows that others added
        ids = list(range(self._next_id, self._next_id + len(payloads)))
        self._append_rows(vectors, payloads, ids)
        return ids

    def delete(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Forget these ids, as durably; the rows they were. Raises SensoriumError for one that is not there."""
        self.lock()
        rows = self.find_rows(ids)
        self._commit({"delete": [self.ids[row] for row in rows]})
        return rows

    def find_rows(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Where these ids are. Raises SensoriumError for one that is not there."""
        rows = np.array([bisect_left(self.ids, i) for i in ids], np.int64)
        for row, i in zip(rows, ids, strict=True):
            if row == len(self.ids) or self.ids[row] != i or not self.alive[row]:
                raise SensoriumError(
                    f"{self.folder} has no row {i}: it was deleted, or never added."
                )
        return rows

    def read_payload(self, row: int) -> bytes:
        """What is stored beside a row's vector. Raises SensoriumError if it is damaged."""
        start, end = self._payload_ends[row - 1] if row else 0, self._payload_ends[row]
        data = os.pread(self._files[PAYLOAD_PART], end - start, start)
        if len(data) < end - start or zlib.crc32(data) != self._payload_crcs[row]:
            raise corruption_error(
                self._part_path(PAYLOAD_PART),
                f"what belongs to row {self.ids[row]} does not match its checksum",
            )
        return data

    def verify(self) -> None:
        """Read everything once. Raises SensoriumError naming a damaged file."""
        Store.open(self.folder).close()
        for row in range(len(self.ids)):
            self.read_payload(row)

    def compact(self) -> "Store":
        """The same without the deleted rows, in this one's place by one rename; this one is closed."""
        self.lock()
        new = Store(
            self.folder,
            replace(self.header, generation=self.header.generation + 1, first_id=self._next_id),
        )
        lock, self._lock = self._lock, None
        assert lock is not None
        new._create_files(lock)
        living, vectors = np.flatnonzero(np.frombuffer(self.alive, bool)), self.vectors
        for start in range(0, len(living), COMPACT_BATCH_ROWS):
            rows = living[start : start + COMPACT_BATCH_ROWS].tolist()
            new._append_rows(
                vectors[rows],
                [self.read_payload(row) for row in rows],
                [self.ids[row] for row in rows],
            )
        new.publish()
        self.close()
        return new

    def publish(self) -> None:
        """Make this generation the index, and remove all others."""
        atomic.write_json(self.folder / HEADER_FILE, asdict(self.header))
        mine = {self._part_path(i) for i in range(len(PART_FILE_NAMES))}
        for path in (p for part in PART_FILE_NAMES for p in self.folder.glob(part.format("*"))):
            if path not in mine:
                path.unlink()

    def _create_files(self, lock: IO[bytes]) -> None:
        """Empty files of this generation, open to write."""
        self._lock = lock
        self._open_files(os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        atomic.fsync_dir(self.folder)

    def _open_files(self, flags: int) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []
        for i in range(len(PART_FILE_NAMES)):
            try:
                self._files.append(os.open(self._part_path(i), flags, 0o666))
            except FileNotFoundError:
                raise corruption_error(self._part_path(i), "it is missing") from None
            except OSError as e:
                raise SensoriumError(f"cannot open {self._part_path(i)}: {e.strerror}.") from e
        self._journal.fd = self._files[JOURNAL_PART]

    def _part_path(self, part: int) -> Path:
        return self.folder / PART_FILE_NAMES[part].format(self.header.generation)

    def _append_rows(self, vectors: np.ndarray, payloads: Sequence[bytes], ids: list[int]) -> None:
        if vectors.shape != (len(payloads), self.header.dim):
            raise SensoriumError(
                f"{self.folder} takes {self.header.dim} numbers a row, and a payload each; it was given "
                f"vectors of shape {vectors.shape} and {len(payloads)} payloads."
            )
        data, shown = np.ascontiguousarray(vectors, "<f4").tobytes(), b"".join(payloads)
        self._append_bytes(VECTORS_PART, len(self.ids) * self.header.dim * 4, data)
        self._append_bytes(PAYLOAD_PART, self._payload_ends[-1] if self._payload_ends else 0, shown)
        self._commit(
            {
                "add": ids,
                "vectors": zlib.crc32(data),
                "lengths": [len(p) for p in payloads],
                "payloads": [zlib.crc32(p) for p in payloads],
            }
        )

    def _append_bytes(self, part: int, offset: int, data: bytes) -> None:
        try:
            append_durably(self._files[part], offset, data)
        except OSError as e:
            raise self._write_error(part, e) from e

    def _commit(self, change: dict[str, Any]) -> None:
        try:
            self._journal.append(change)
        except OSError as e:
            raise self._write_error(JOURNAL_PART, e) from e
        self._apply_change(change)

    def _write_error(self, part: int, error: OSError) -> SensoriumError:
        return SensoriumError(
            f"could not write {self._part_path(part)}: {error.strerror}. What was acknowledged before "
            "is safe; make room, then do this again."
        )

    def _replay(self) -> None:
        """Apply what the log has gained, and check that the vectors it speaks of are there as they were written."""
        for change in self._journal.read_changes():
            at = len(self.ids)
            self._apply_change(change)
            if "add" in change and self._vectors_crc(at, len(self.ids)) != change["vectors"]:
                raise corruption_error(
                    self._part_path(VECTORS_PART),
                    f"rows {at} to {len(self.ids) - 1} do not match their checksum",
                )

    def _apply_change(self, change: dict[str, Any]) -> None:
        if set(change) == {"delete"}:
            for row in self.find_rows(change["delete"]):
                self.alive[row] = 0
        elif set(change) == {"add", "vectors", "lengths", "payloads"}:
            self.ids.extend(change["add"])
            self.alive.extend(b"\1" * len(change["add"]))
            for length in change["lengths"]:
                self._payload_ends.append(
                    length + (self._payload_ends[-1] if self._payload_ends else 0)
                )
            self._payload_crcs.extend(change["payloads"])
            self._next_id = max([self._next_id, *(i + 1 for i in change["add"][-1:])])
        else:
            raise corruption_error(
                self._part_path(JOURNAL_PART),
                f"a line has the unknown keys {', '.join(sorted(change))}",
            )

    def _vectors_crc(self, start_row: int, end_row: int) -> int:
        crc, at, stop = 0, start_row * self.header.dim * 4, end_row * self.header.dim * 4
        while at < stop and (
            data := os.pread(self._files[VECTORS_PART], min(CHECKSUM_CHUNK_BYTES, stop - at), at)
        ):
            crc, at = zlib.crc32(data, crc), at + len(data)
        return crc if at >= stop else -1


def read_header(folder: Path) -> IndexHeader:
    """What index.json says, every key checked. Raises SensoriumError where there is no index that can be read."""
    path = folder / HEADER_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SensoriumError(
            f"there is no index in {folder}. Build one: sensorium index RUN DATA."
        ) from None
    except ValueError:
        raise corruption_error(path, "it is not JSON") from None
    types = {f.name: type(getattr(IndexHeader(1, ""), f.name)) for f in fields(IndexHeader)}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != types:
        raise corruption_error(path, f"it must have exactly {', '.join(types)}")
    if found["format"] != FORMAT_VERSION:
        raise SensoriumError(
            f"{path} is of format {found['format']}; this version reads {FORMAT_VERSION}. Build it again."
        )
    return IndexHeader(**found)


def _acquire_lock(folder: Path) -> IO[bytes]:
    import fcntl

    try:
        lock = open(folder / "lock", "a+b")
    except OSError as e:
        raise SensoriumError(
            f"cannot write in {folder}: {e.strerror}. Choose a folder that can be written to."
        ) from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SensoriumError(
            f"{folder} is being changed by another process. Wait until it is done, or end it; "
            "searching meanwhile is safe."
        ) from None
    return lock
