"""Rows on disk that survive a crash: vectors, row infos, and a journal of additions and deletions.

    N rows   D width

The files of vectors and payload only grow; the journal has one line per change. An addition writes
vectors and payload and syncs them, then writes its journal line and syncs it, and only then is
acknowledged. A file that is shorter than the journal says was cut: that is an error, and nothing is
removed on its account.
"""

import mmap
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
from jaxtyping import Float, Int

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.search.folder import (
    HEADER_FILE,
    JOURNAL_PART,
    PAYLOAD_PART,
    VECTORS_PART,
    acquire_lock,
    corruption_error,
    create_folder,
    newest_generation,
    open_parts,
    part_path,
    remove_other_generations,
)
from sensorium.search.header import IndexHeader, read_header
from sensorium.search.journal import Journal, append_durably, check_size
from sensorium.search.rows import RowTable

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
        rows: ids, and which rows are deleted.
    """

    def __init__(self, folder: Path, header: IndexHeader) -> None:
        self.folder = folder
        self.header = header
        self.rows = RowTable(header.first_id)
        self._lock: IO[bytes] | None = None
        self._files: list[int] = []  # empty: closed
        self._mmap: mmap.mmap | None = None
        self._journal = Journal(self.part_path(JOURNAL_PART))

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
        create_folder(folder)
        lock = acquire_lock(folder)
        store = cls(folder, replace(header, generation=newest_generation(folder) + 1))
        store._lock = lock
        store._create_files()
        return store

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Open the current generation and check its journal and vectors.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
        folder = Path(folder)
        header = read_header(folder)
        while True:
            store = cls(folder, header)
            try:
                store._open_files(os.O_RDONLY)
                store._replay()
            except SensoriumError:
                store.close()
                current = read_header(folder)
                if current.generation == header.generation:
                    raise
                header = current  # the index was rebuilt meanwhile, and its old files removed
            else:
                return store

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self.rows.alive.count(1)

    def close(self) -> None:
        """Close the files and release the lock."""
        for fd in self._files:
            os.close(fd)
        self._files = []
        if self._lock:
            self._lock.close()
            self._lock = None

    def check_open(self) -> None:
        """Check that the index was not closed.

        Raises:
            SensoriumError: it was.
        """
        if not self._files:
            raise SensoriumError(f"The index {self.folder} is closed. Open it again.")

    @property
    def is_writer(self) -> bool:
        """Whether this store holds the lock."""
        return self._lock is not None

    def lock(self) -> None:
        """Become the writer, and read what others have changed.

        Raises:
            SensoriumError: another process is the writer, or has rebuilt the index; or this one is
                closed.
        """
        self.check_open()
        if self._lock:
            return
        lock = acquire_lock(self.folder)
        try:
            if read_header(self.folder).generation != self.header.generation:
                raise SensoriumError(
                    f"{self.folder} was rebuilt since it was opened. Open it again."
                )
            self._open_files(os.O_RDWR)
            self._replay()
            self._journal.recover()
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    @property
    def vectors(self) -> Float[np.ndarray, "N D"]:
        """Every row ever added, including deleted ones, mapped from the file."""
        self.check_open()
        if not len(self.rows):
            return np.zeros((0, self.header.dim), np.float32)
        size = self._vectors_offset(len(self.rows))
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
        ids = list(range(self.rows.next_id, self.rows.next_id + len(payloads)))
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
        self._commit({"delete": [self.rows.ids[row] for row in rows]})
        return rows

    def find_rows(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Return the row numbers of ids.

        Raises:
            SensoriumError: an id does not exist.
        """
        try:
            return self.rows.find(ids)
        except KeyError as e:
            raise SensoriumError(
                f"{self.folder} has no row {e.args[0]}: it was deleted, or never added. Use an id "
                "of a search result."
            ) from None

    def read_payload(self, row: int) -> bytes:
        """Return the packed row info of a row.

        Raises:
            SensoriumError: it is damaged, or the index closed.
        """
        self.check_open()
        start, size, crc = self.rows.payload(row)
        data = os.pread(self._files[PAYLOAD_PART], size, start)
        if len(data) < size or zlib.crc32(data) != crc:
            raise corruption_error(
                self.part_path(PAYLOAD_PART),
                f"the payload of row {self.rows.ids[row]} does not match its checksum",
            )
        return data

    def verify(self) -> None:
        """Read the whole index and check it.

        Raises:
            SensoriumError: a file is damaged; the message names it.
        """
        self.check_open()
        with Store.open(self.folder) as store:
            store._journal.verify()
        for row in range(len(self.rows)):
            self.read_payload(row)

    def compact(self) -> "Store":
        """Return a new generation without deleted rows, which holds the lock.

        `publish` makes it the index.
        """
        self.lock()
        header = replace(
            self.header, generation=self.header.generation + 1, first_id=self.rows.next_id
        )
        new = Store(self.folder, header)
        try:
            new._create_files()
            alive_rows = np.flatnonzero(np.frombuffer(self.rows.alive, bool))
            vectors = self.vectors
            for rows in iter_batches(alive_rows, COMPACT_BATCH_ROWS):
                payloads = [self.read_payload(row) for row in rows.tolist()]
                new._append_rows(
                    vectors[rows], payloads, [self.rows.ids[row] for row in rows.tolist()]
                )
        except SensoriumError:
            new.close()
            raise
        new._lock, self._lock = self._lock, None  # hand the lock over
        return new

    def publish(self) -> None:
        """Make this generation the index, and remove the files of all others."""
        atomic.write_json(self.folder / HEADER_FILE, asdict(self.header))
        remove_other_generations(self.folder, self.header.generation)

    def _create_files(self) -> None:
        """Create the empty files of this generation, open for writing."""
        self._open_files(os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        self._journal.create()
        atomic.fsync_dir(self.folder)

    def _open_files(self, flags: int) -> None:
        """Open the files of this generation again, with other flags."""
        for fd in self._files:
            os.close(fd)
        self._files = []  # closed, if they cannot be opened
        self._files = open_parts(self.folder, self.header.generation, flags)
        self._journal.fd = self._files[JOURNAL_PART]

    def part_path(self, part: int) -> Path:
        """Return the path of a file of this generation."""
        return part_path(self.folder, part, self.header.generation)

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
        self._append_bytes(VECTORS_PART, self._vectors_offset(len(self.rows)), vector_bytes)
        self._append_bytes(PAYLOAD_PART, self.rows.payload_size, payload_bytes)
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
            append_durably(self.part_path(part), self._files[part], offset, data)
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
            f"{self.part_path(part)} could not be written: {error.strerror}. Earlier changes are "
            "safe; free disk space, then try again."
        )

    def _replay(self) -> None:
        """Apply new journal lines, and check the vectors that they add."""
        for change in self._journal.read_changes():
            first_row = len(self.rows)
            self._apply_change(change)
            end_row = len(self.rows)
            if "add" in change:
                self._check_sizes()
                if self._vectors_crc(first_row, end_row) != change["vectors"]:
                    raise corruption_error(
                        self.part_path(VECTORS_PART),
                        f"rows {first_row} to {end_row - 1} do not match their checksum",
                    )

    def _check_sizes(self) -> None:
        """Check that vectors and payload are as long as the journal says.

        Raises:
            SensoriumError: one is shorter.
        """
        vectors_size = self._vectors_offset(len(self.rows))
        for part, size in ((VECTORS_PART, vectors_size), (PAYLOAD_PART, self.rows.payload_size)):
            check_size(self.part_path(part), self._files[part], size)

    def _apply_change(self, change: dict[str, Any]) -> None:
        """Update the rows in memory by one journal line."""
        try:
            self.rows.apply(change)
        except (KeyError, ValueError) as e:
            raise corruption_error(
                self.part_path(JOURNAL_PART), f"a line has an invalid change ({e})"
            ) from e

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
