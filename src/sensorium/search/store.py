"""Rows on disk that survive a crash: vectors, row infos, and a journal of additions and deletions.

    N rows   D width

A folder holds `index.json`, which names the current generation, and three files per generation:
`vectors.1.f32` and `payload.1.bin` only grow, `log.1.jsonl` has one line per change. An addition
writes vectors and payload and syncs them, then writes its journal line and syncs it, and only then
is acknowledged.
"""

import mmap
import os
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Int

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.file_lock import try_lock
from sensorium.search.header import HEADER_FILE, IndexHeader, read_header
from sensorium.search.journal import Journal, append_durably, corruption_error

LOCK_FILE = "lock"
VECTORS_PART, PAYLOAD_PART, JOURNAL_PART = range(3)
PART_FILE_NAMES = ("vectors.{}.f32", "payload.{}.bin", "log.{}.jsonl")
BYTES_PER_VALUE = 4
CHECKSUM_CHUNK_BYTES = 8 << 20
COMPACT_BATCH_ROWS = 4096


class Store:
    """One index folder, with many readers and one writer.

    The writer holds the lock until `close`, or until its process ends.

    Args:
        folder: the index folder.
        header: its index.json.

    Attributes:
        ids: id of each row, ascending.
        alive: for each row 1, or 0 once it is deleted.
    """

    def __init__(self, folder: Path, header: IndexHeader) -> None:
        self.folder = folder
        self.header = header
        self.ids = array("q")
        self.alive = bytearray()
        self._payload_ends = array("q")  # offset of the end of each row's payload
        self._payload_crcs = array("q")
        self._next_id = header.first_id
        self._lock: IO[bytes] | None = None
        self._files: list[int] = []
        self._mmap: mmap.mmap | None = None
        self._journal = Journal(self._part_path(JOURNAL_PART))

    @classmethod
    def create(cls, folder: str | Path, header: IndexHeader) -> "Store":
        """Create a new, empty generation and lock it; `publish` makes it the index.

        Args:
            folder: a new or empty folder, or an index.
            header: the content of index.json.

        Raises:
            SensoriumError: the folder holds something else, or another process changes the index.
        """
        folder = Path(folder)
        if folder.exists() and not _may_hold_index(folder):
            raise SensoriumError(
                f"{folder} holds something other than an index. Choose a new or empty folder."
            )
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise SensoriumError(
                f"{folder} cannot be created: {e.strerror}. Choose another folder."
            ) from e
        lock = _acquire_lock(folder)
        generation = 1
        if (folder / HEADER_FILE).exists():
            generation = read_header(folder).generation + 1
        store = cls(folder, replace(header, generation=generation))
        store._lock = lock
        store._create_files()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Open the current generation and check its journal and vectors.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
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
        """Close the files and release the lock."""
        for fd in self._files:
            os.close(fd)
        self._files = []
        if self._lock:
            self._lock.close()
            self._lock = None

    def lock(self) -> None:
        """Become the writer, and read what others have changed.

        Raises:
            SensoriumError: another process is the writer, or has rebuilt the index.
        """
        if self._lock:
            return
        lock = _acquire_lock(self.folder)
        if read_header(self.folder).generation != self.header.generation:
            lock.close()
            raise SensoriumError(f"{self.folder} was rebuilt since it was opened. Open it again.")
        self._lock = lock
        self._open_files(os.O_RDWR)
        self._replay()
        self._journal.truncate_incomplete()

    @property
    def vectors(self) -> Float[np.ndarray, "N D"]:
        """Every row ever added, including deleted ones, mapped from the file."""
        if not len(self.ids):
            return np.zeros((0, self.header.dim), np.float32)
        size = self._vectors_offset(len(self.ids))
        # Copy on write: torch takes only writable arrays without a warning.
        self._mmap = mmap.mmap(self._files[VECTORS_PART], size, access=mmap.ACCESS_COPY)
        return np.frombuffer(self._mmap, "<f4").reshape(-1, self.header.dim)

    def release_memory(self) -> None:
        """Free the memory of the vectors read so far; they are read again when needed."""
        if self._mmap is not None and hasattr(mmap, "MADV_DONTNEED"):
            self._mmap.madvise(mmap.MADV_DONTNEED)

    def add(self, vectors: Float[np.ndarray, "n D"], payloads: Sequence[bytes]) -> list[int]:
        """Append rows; they survive a crash once this returns.

        Args:
            vectors: the vectors.
            payloads: packed row info of each.

        Returns:
            Their ids, which are never reused.
        """
        self.lock()  # reads rows that others have added
        ids = list(range(self._next_id, self._next_id + len(payloads)))
        self._append_rows(vectors, payloads, ids)
        return ids

    def delete(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Delete rows by id; they stay deleted after a crash once this returns.

        Returns:
            The row numbers.

        Raises:
            SensoriumError: an id does not exist.
        """
        self.lock()
        rows = self.find_rows(ids)
        self._commit({"delete": [self.ids[row] for row in rows]})
        return rows

    def find_rows(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Return the row numbers of ids.

        Raises:
            SensoriumError: an id does not exist.
        """
        rows = np.array([bisect_left(self.ids, i) for i in ids], np.int64)
        for row, row_id in zip(rows, ids, strict=True):
            if row == len(self.ids) or self.ids[row] != row_id or not self.alive[row]:
                raise SensoriumError(
                    f"{self.folder} has no row {row_id}: it was deleted, or never added. Use an id "
                    "of a search result."
                )
        return rows

    def read_payload(self, row: int) -> bytes:
        """Return the packed row info of a row.

        Raises:
            SensoriumError: it is damaged.
        """
        start = self._payload_ends[row - 1] if row else 0
        end = self._payload_ends[row]
        data = os.pread(self._files[PAYLOAD_PART], end - start, start)
        if len(data) < end - start or zlib.crc32(data) != self._payload_crcs[row]:
            raise corruption_error(
                self._part_path(PAYLOAD_PART),
                f"the payload of row {self.ids[row]} does not match its checksum",
            )
        return data

    def verify(self) -> None:
        """Read the whole index and check it.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
        Store.open(self.folder).close()
        for row in range(len(self.ids)):
            self.read_payload(row)

    def compact(self) -> "Store":
        """Replace the index by one without deleted rows, in one rename, and close this one."""
        self.lock()
        header = replace(self.header, generation=self.header.generation + 1, first_id=self._next_id)
        new = Store(self.folder, header)
        new._lock = self._lock  # hand the lock over
        self._lock = None
        new._create_files()
        alive_rows = np.flatnonzero(np.frombuffer(self.alive, bool))
        vectors = self.vectors
        for rows in iter_batches(alive_rows, COMPACT_BATCH_ROWS):
            payloads = [self.read_payload(row) for row in rows.tolist()]
            new._append_rows(vectors[rows], payloads, [self.ids[row] for row in rows.tolist()])
        new.publish()
        self.close()
        return new

    def publish(self) -> None:
        """Make this generation the index, and remove the files of all others."""
        atomic.write_json(self.folder / HEADER_FILE, asdict(self.header))
        own_files = {self._part_path(i) for i in range(len(PART_FILE_NAMES))}
        for pattern in PART_FILE_NAMES:
            for path in self.folder.glob(pattern.format("*")):
                if path not in own_files:
                    path.unlink()

    def _create_files(self) -> None:
        """Create the empty files of this generation, open for writing."""
        self._open_files(os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        atomic.fsync_dir(self.folder)

    def _open_files(self, flags: int) -> None:
        """Open the files of this generation again, with other flags."""
        for fd in self._files:
            os.close(fd)
        self._files = []
        for i in range(len(PART_FILE_NAMES)):
            try:
                self._files.append(os.open(self._part_path(i), flags, 0o666))
            except FileNotFoundError:
                raise corruption_error(self._part_path(i), "it is missing") from None
            except OSError as e:
                raise SensoriumError(
                    f"{self._part_path(i)} cannot be opened: {e.strerror}. Check its permissions."
                ) from e
        self._journal.fd = self._files[JOURNAL_PART]

    def _part_path(self, part: int) -> Path:
        """Return the path of a file of this generation."""
        return self.folder / PART_FILE_NAMES[part].format(self.header.generation)

    def _vectors_offset(self, row: int) -> int:
        """Return the offset of a row in the file of vectors."""
        return row * self.header.dim * BYTES_PER_VALUE

    def _append_rows(self, vectors: np.ndarray, payloads: Sequence[bytes], ids: list[int]) -> None:
        """Write vectors and payloads, then the journal line that makes them count."""
        if vectors.shape != (len(payloads), self.header.dim):
            raise SensoriumError(
                f"{self.folder} takes {self.header.dim} numbers and one payload per row; it was "
                f"given vectors of shape {vectors.shape} and {len(payloads)} payloads."
            )
        vector_bytes = np.ascontiguousarray(vectors, "<f4").tobytes()
        payload_bytes = b"".join(payloads)
        payload_offset = self._payload_ends[-1] if self._payload_ends else 0
        self._append_bytes(VECTORS_PART, self._vectors_offset(len(self.ids)), vector_bytes)
        self._append_bytes(PAYLOAD_PART, payload_offset, payload_bytes)
        self._commit(
            {
                "add": ids,
                "vectors": zlib.crc32(vector_bytes),
                "lengths": [len(payload) for payload in payloads],
                "payloads": [zlib.crc32(payload) for payload in payloads],
            }
        )

    def _append_bytes(self, part: int, offset: int, data: bytes) -> None:
        """Write and sync bytes at the end of a file."""
        try:
            append_durably(self._files[part], offset, data)
        except OSError as e:
            raise self._write_error(part, e) from e

    def _commit(self, change: dict[str, Any]) -> None:
        """Write a change to the journal, then apply it."""
        try:
            self._journal.append(change)
        except OSError as e:
            raise self._write_error(JOURNAL_PART, e) from e
        self._apply_change(change)

    def _write_error(self, part: int, error: OSError) -> SensoriumError:
        """Return the error of a failed write."""
        return SensoriumError(
            f"{self._part_path(part)} could not be written: {error.strerror}. Earlier changes are "
            "safe; free disk space, then try again."
        )

    def _replay(self) -> None:
        """Apply new journal lines, and check the vectors that they add."""
        for change in self._journal.read_changes():
            first_row = len(self.ids)
            self._apply_change(change)
            end_row = len(self.ids)
            if "add" in change and self._vectors_crc(first_row, end_row) != change["vectors"]:
                raise corruption_error(
                    self._part_path(VECTORS_PART),
                    f"rows {first_row} to {end_row - 1} do not match their checksum",
                )

    def _apply_change(self, change: dict[str, Any]) -> None:
        """Update the rows in memory by one journal line."""
        if set(change) == {"delete"}:
            for row in self.find_rows(change["delete"]):
                self.alive[row] = 0
        elif set(change) == {"add", "vectors", "lengths", "payloads"}:
            new_ids = change["add"]
            self.ids.extend(new_ids)
            self.alive.extend(b"\1" * len(new_ids))
            end = self._payload_ends[-1] if self._payload_ends else 0
            for length in change["lengths"]:
                end += length
                self._payload_ends.append(end)
            self._payload_crcs.extend(change["payloads"])
            if new_ids:
                self._next_id = max(self._next_id, new_ids[-1] + 1)
        else:
            raise corruption_error(
                self._part_path(JOURNAL_PART),
                f"a line has unknown keys: {', '.join(sorted(change))}",
            )

    def _vectors_crc(self, start_row: int, end_row: int) -> int:
        """Return the CRC-32 of the vectors of some rows; -1 if the file is too short."""
        crc = 0
        offset, end = self._vectors_offset(start_row), self._vectors_offset(end_row)
        while offset < end:
            size = min(CHECKSUM_CHUNK_BYTES, end - offset)
            data = os.pread(self._files[VECTORS_PART], size, offset)
            if not data:
                return -1
            crc = zlib.crc32(data, crc)
            offset += len(data)
        return crc


def _may_hold_index(folder: Path) -> bool:
    """Return whether a folder is empty or holds an index, perhaps an unfinished one."""
    if not folder.is_dir():
        return False
    return (folder / LOCK_FILE).exists() or not any(folder.iterdir())


def _acquire_lock(folder: Path) -> IO[bytes]:
    """Return the locked lock file; closing it releases the lock."""
    try:
        lock = (folder / LOCK_FILE).open("a+b")
    except OSError as e:
        raise SensoriumError(
            f"{folder} is not writable: {e.strerror}. Choose another folder."
        ) from e
    if not try_lock(lock.fileno()):
        lock.close()
        raise SensoriumError(
            f"{folder} is being changed by another process. Wait for it, or stop it; searching "
            "meanwhile is safe."
        )
    return lock
