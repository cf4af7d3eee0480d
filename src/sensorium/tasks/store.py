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

from sensorium import durable
from sensorium.errors import SensoriumError
from sensorium.tasks.log import Log, append, damaged

FORMAT = 1
HEAD = "index.json"
VECTORS, PAYLOAD, LOG = range(3)
PARTS = ("vectors.{}.f32", "payload.{}.bin", "log.{}.jsonl")
CHUNK = 8 << 20                                     # bytes read at once to check them
COMPACT = 4096                                      # rows copied at once


@dataclass(frozen=True)
class Head:
    """What index.json says. fingerprint: of the model whose vectors these are; run: its folder, as seen from here."""

    dim: int
    fingerprint: str
    run: str = ""
    generation: int = 1
    first_id: int = 0
    format: int = FORMAT


class Store:
    """One index folder. Many may read it; who changes it holds its lock until `close`, or death."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder, self.head = folder, head
        self.ids = array("q")                       # row -> id, rising
        self.alive = bytearray()                    # row -> 1, or 0 once it is deleted
        self._ends = array("q")                     # row -> where its payload ends
        self._crcs = array("q")                     # row -> checksum of its payload
        self._next = head.first_id
        self._lock: IO[bytes] | None = None
        self._files: list[int] = []
        self._mapped: mmap.mmap | None = None
        self._log = Log(self._path(LOG))

    @classmethod
    def create(cls, folder: str | Path, head: Head) -> "Store":
        """A new, empty generation, locked; it becomes the index, in an older one's place, by `publish`."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / "lock").exists()):
            raise SensoriumError(f"{folder} holds something other than an index. Choose a new or empty folder.")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise SensoriumError(f"cannot make the folder {folder}: {e.strerror}. Choose another.") from e
        lock = _locked(folder)
        old = read_head(folder).generation if (folder / HEAD).exists() else 0
        store = cls(folder, replace(head, generation=old + 1))
        store._begin(lock)
        return store

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """The current generation; log and vectors are checked. Raises SensoriumError naming a damaged file."""
        store = cls(Path(folder), read_head(Path(folder)))
        store._open(os.O_RDONLY)
        store._take_in()
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
        lock = _locked(self.folder)
        if read_head(self.folder).generation != self.head.generation:
            lock.close()
            raise SensoriumError(f"{self.folder} was rebuilt since it was opened here. Open it again.")
        self._lock = lock
        self._open(os.O_RDWR)
        self._take_in()
        self._log.cut()

    @property
    def vectors(self) -> Float[np.ndarray, "N D"]:
        """Every row ever added, deleted ones too, mapped from the file."""
        if not len(self.ids):
            return np.zeros((0, self.head.dim), np.float32)
        size = len(self.ids) * self.head.dim * 4    # changes would stay private, so torch takes it as it is
        self._mapped = mmap.mmap(self._files[VECTORS], size, access=mmap.ACCESS_COPY)
        return np.frombuffer(self._mapped, "<f4").reshape(-1, self.head.dim)

    def rest(self) -> None:
        """Let the system have back the memory of vectors read so far; they are read again where they are needed."""
        if self._mapped is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mapped.madvise(mmap.MADV_DONTNEED)

    def add(self, vectors: Float[np.ndarray, "n D"], payloads: Sequence[bytes]) -> list[int]:
        """Append rows; when this returns, they outlive anything but the disk. Their ids, which are never used again."""
        self.lock()                                 # which may tell of rows that others added
        ids = list(range(self._next, self._next + len(payloads)))
        self._add(vectors, payloads, ids)
        return ids

    def delete(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Forget these ids, as durably; the rows they were. Raises SensoriumError for one that is not there."""
        self.lock()
        rows = self.rows(ids)
        self._write({"delete": [self.ids[row] for row in rows]})
        return rows

    def rows(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Where these ids are. Raises SensoriumError for one that is not there."""
        rows = np.array([bisect_left(self.ids, i) for i in ids], np.int64)
        for row, i in zip(rows, ids, strict=True):
            if row == len(self.ids) or self.ids[row] != i or not self.alive[row]:
                raise SensoriumError(f"{self.folder} has no row {i}: it was deleted, or never added.")
        return rows

    def payload(self, row: int) -> bytes:
        """What is stored beside a row's vector. Raises SensoriumError if it is damaged."""
        start, end = self._ends[row - 1] if row else 0, self._ends[row]
        data = os.pread(self._files[PAYLOAD], end - start, start)
        if len(data) < end - start or zlib.crc32(data) != self._crcs[row]:
            raise damaged(self._path(PAYLOAD), f"what belongs to row {self.ids[row]} does not match its checksum")
        return data

    def check(self) -> None:
        """Read everything once. Raises SensoriumError naming a damaged file."""
        Store.open(self.folder).close()
        for row in range(len(self.ids)):
            self.payload(row)

    def compact(self) -> "Store":
        """The same without the deleted rows, in this one's place by one rename; this one is closed."""
        self.lock()
        new = Store(self.folder, replace(self.head, generation=self.head.generation + 1, first_id=self._next))
        lock, self._lock = self._lock, None
        assert lock is not None
        new._begin(lock)
        living, vectors = np.flatnonzero(np.frombuffer(self.alive, bool)), self.vectors
        for start in range(0, len(living), COMPACT):
            rows = living[start:start + COMPACT].tolist()
            new._add(vectors[rows], [self.payload(row) for row in rows], [self.ids[row] for row in rows])
        new.publish()
        self.close()
        return new

    def publish(self) -> None:
        """Make this generation the index, and remove all others."""
        durable.write_json(self.folder / HEAD, asdict(self.head))
        mine = {self._path(i) for i in range(len(PARTS))}
        for path in (p for part in PARTS for p in self.folder.glob(part.format("*"))):
            if path not in mine:
                path.unlink()

    def _begin(self, lock: IO[bytes]) -> None:
        """Empty files of this generation, open to write."""
        self._lock = lock
        self._open(os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        durable.fsync_dir(self.folder)

    def _open(self, flags: int) -> None:
        for fd in self._files:
            os.close(fd)
        self._files = []
        for i in range(len(PARTS)):
            try:
                self._files.append(os.open(self._path(i), flags, 0o666))
            except FileNotFoundError:
                raise damaged(self._path(i), "it is missing") from None
            except OSError as e:
                raise SensoriumError(f"cannot open {self._path(i)}: {e.strerror}.") from e
        self._log.fd = self._files[LOG]

    def _path(self, part: int) -> Path:
        return self.folder / PARTS[part].format(self.head.generation)

    def _add(self, vectors: np.ndarray, payloads: Sequence[bytes], ids: list[int]) -> None:
        if vectors.shape != (len(payloads), self.head.dim):
            raise SensoriumError(f"{self.folder} takes {self.head.dim} numbers a row, and a payload each; it was given "
                                 f"vectors of shape {vectors.shape} and {len(payloads)} payloads.")
        data, shown = np.ascontiguousarray(vectors, "<f4").tobytes(), b"".join(payloads)
        self._append(VECTORS, len(self.ids) * self.head.dim * 4, data)
        self._append(PAYLOAD, self._ends[-1] if self._ends else 0, shown)
        self._write({"add": ids, "vectors": zlib.crc32(data), "lengths": [len(p) for p in payloads],
                     "payloads": [zlib.crc32(p) for p in payloads]})

    def _append(self, part: int, at: int, data: bytes) -> None:
        try:
            append(self._files[part], at, data)
        except OSError as e:
            raise self._refused(part, e) from e

    def _write(self, change: dict[str, Any]) -> None:
        try:
            self._log.append(change)
        except OSError as e:
            raise self._refused(LOG, e) from e
        self._apply(change)

    def _refused(self, part: int, e: OSError) -> SensoriumError:
        return SensoriumError(f"could not write {self._path(part)}: {e.strerror}. What was acknowledged before "
                              "is safe; make room, then do this again.")

    def _take_in(self) -> None:
        """Apply what the log has gained, and check that the vectors it speaks of are there as they were written."""
        for change in self._log.changes():
            at = len(self.ids)
            self._apply(change)
            if "add" in change and self._crc(at, len(self.ids)) != change["vectors"]:
                raise damaged(self._path(VECTORS), f"rows {at} to {len(self.ids) - 1} do not match their checksum")

    def _apply(self, change: dict[str, Any]) -> None:
        if set(change) == {"delete"}:
            for row in self.rows(change["delete"]):
                self.alive[row] = 0
        elif set(change) == {"add", "vectors", "lengths", "payloads"}:
            self.ids.extend(change["add"])
            self.alive.extend(b"\1" * len(change["add"]))
            for length in change["lengths"]:
                self._ends.append(length + (self._ends[-1] if self._ends else 0))
            self._crcs.extend(change["payloads"])
            self._next = max([self._next, *(i + 1 for i in change["add"][-1:])])
        else:
            raise damaged(self._path(LOG), f"a line has the unknown keys {', '.join(sorted(change))}")

    def _crc(self, start: int, end: int) -> int:
        crc, at, stop = 0, start * self.head.dim * 4, end * self.head.dim * 4
        while at < stop and (data := os.pread(self._files[VECTORS], min(CHUNK, stop - at), at)):
            crc, at = zlib.crc32(data, crc), at + len(data)
        return crc if at >= stop else -1


def read_head(folder: Path) -> Head:
    """What index.json says, every key checked. Raises SensoriumError where there is no index that can be read."""
    path = folder / HEAD
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SensoriumError(f"there is no index in {folder}. Build one: sensorium index RUN DATA.") from None
    except ValueError:
        raise damaged(path, "it is not JSON") from None
    types = {f.name: type(getattr(Head(1, ""), f.name)) for f in fields(Head)}
    if not isinstance(found, dict) or {k: type(v) for k, v in found.items()} != types:
        raise damaged(path, f"it must have exactly {', '.join(types)}")
    if found["format"] != FORMAT:
        raise SensoriumError(f"{path} is of format {found['format']}; this version reads {FORMAT}. Build it again.")
    return Head(**found)


def _locked(folder: Path) -> IO[bytes]:
    import fcntl
    try:
        lock = open(folder / "lock", "a+b")
    except OSError as e:
        raise SensoriumError(f"cannot write in {folder}: {e.strerror}. Choose a folder that can be written to.") from e
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise SensoriumError(f"{folder} is being changed by another process. Wait until it is done, or end it; "
                             "searching meanwhile is safe.") from None
    return lock
