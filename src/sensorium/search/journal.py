"""An append-only file of changes, and how much of it is committed.

The file starts with two records of the committed length, of which the larger one counts; a change
writes them alternately, so that one is always whole. Then there is one JSON line for each change.
Every line begins with a CRC-32 of its text; that of a change is seeded with the CRC of the change
before, so that a changed, lost or moved line is noticed.

A change is synced before the record that commits it is written. So a process that is killed may
leave whole or incomplete lines behind the committed length (whole ones count, an incomplete one was
never acknowledged and is ignored), but a file that is shorter than its committed length was cut.
The record reaches the disk with the next sync at the latest: after a power cut the last change may
lack this protection, but it is there.
"""

import contextlib
import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sensorium.io import atomic
from sensorium.search.folder import corruption_error

CRC_PREFIX_BYTES = 9  # eight hex digits and a space
RECORD_BYTES = 64
HEAD_BYTES = 2 * RECORD_BYTES


def append_durably(path: Path, fd: int, offset: int, data: bytes) -> None:
    """Write and sync data at `offset`, the end of the valid content; cut off what follows.

    Raises:
        SensoriumError: the file is shorter than its valid content.
    """
    check_size(path, fd, offset)
    os.ftruncate(fd, offset)
    _write_at(fd, offset, data)
    atomic.full_fsync(fd)


def check_size(path: Path, fd: int, min_size: int) -> int:
    """Return the size of a file.

    Raises:
        SensoriumError: it is smaller than `min_size`.
    """
    size = os.fstat(fd).st_size
    if size < min_size:
        raise corruption_error(path, f"{min_size - size} bytes at its end are missing")
    return size


class Journal:
    """One journal file.

    Args:
        path: the file.
        fd: its open descriptor; for writing too, in its only writer.
    """

    def __init__(self, path: Path, fd: int = -1) -> None:
        self.path = path
        self.fd = fd
        self._end = HEAD_BYTES  # of the changes that were read or written
        self._crc = 0  # of the last change

    def create(self) -> None:
        """Write the head of a new file."""
        append_durably(self.path, self.fd, 0, _pack_record(HEAD_BYTES) * 2)

    def append(self, change: Mapping[str, Any]) -> None:
        """Write one change; it is on the disk when this returns."""
        text = json.dumps(change, separators=(",", ":")).encode()
        crc = zlib.crc32(text, self._crc)
        line = b"%08x %s\n" % (crc, text)
        append_durably(self.path, self.fd, self._end, line)
        self._end += len(line)
        self._crc = crc
        self._commit()

    def read_changes(self) -> Iterator[dict[str, Any]]:
        """Yield the changes written since the last call.

        Raises:
            SensoriumError: the file is shorter than it was, or a line is damaged.
        """
        committed = self._committed_length()  # before the size: a writer may be at work
        size = check_size(self.path, self.fd, max(committed, self._end))
        *lines, _ = os.pread(self.fd, size - self._end, self._end).split(b"\n")
        for line in lines:
            text = line[CRC_PREFIX_BYTES:]
            crc = zlib.crc32(text, self._crc)
            if line[:CRC_PREFIX_BYTES] != b"%08x " % crc:
                break
            self._end += len(line) + 1
            self._crc = crc
            yield json.loads(text)
        if self._end < committed:
            raise corruption_error(
                self.path, f"the line at byte {self._end} does not match its checksum"
            )

    def recover(self) -> None:
        """Commit all whole lines and cut off an incomplete one, with a warning; for the writer."""
        incomplete = os.fstat(self.fd).st_size - self._end
        if incomplete > 0:
            append_durably(self.path, self.fd, self._end, b"")
            logging.getLogger("sensorium").warning(
                "%s: the last change was never completed or acknowledged; %d bytes were cut off",
                self.path,
                incomplete,
            )
        records = self._read_records()
        if None in records or self._end not in records:
            self._commit()

    def verify(self) -> None:
        """Check that both records of the committed length are whole.

        Raises:
            SensoriumError: one is not.
        """
        if None in self._read_records():
            raise corruption_error(self.path, "one of its first lines does not match its checksum")

    def _commit(self) -> None:
        """Record the current length, in the place of the smaller record."""
        lengths = [-1 if length is None else length for length in self._read_records()]
        smaller = lengths.index(min(lengths))
        with contextlib.suppress(
            OSError
        ):  # the change itself is safe, and the next one tries again
            _write_at(self.fd, smaller * RECORD_BYTES, _pack_record(self._end))

    def _committed_length(self) -> int:
        """Return the committed length.

        Raises:
            SensoriumError: no record of it is whole.
        """
        lengths = [length for length in self._read_records() if length is not None]
        if not lengths:
            raise corruption_error(self.path, "its first lines do not match their checksums")
        return max(lengths)

    def _read_records(self) -> list[int | None]:
        """Return the lengths in both records, None for one that is not whole."""
        head = os.pread(self.fd, HEAD_BYTES, 0)
        return [_unpack_record(head[:RECORD_BYTES]), _unpack_record(head[RECORD_BYTES:])]


def _write_at(fd: int, offset: int, data: bytes) -> None:
    """Write all of the data."""
    while data:
        num_written = os.pwrite(fd, data, offset)
        offset += num_written
        data = data[num_written:]


def _pack_record(length: int) -> bytes:
    """Return a line that says how many bytes are committed, of a fixed size."""
    text = b'{"committed":%d}' % length
    line = b"%08x %s" % (zlib.crc32(text), text)
    return line.ljust(RECORD_BYTES - 1) + b"\n"


def _unpack_record(record: bytes) -> int | None:
    """Return the committed length; None if the record is not whole."""
    text = record[CRC_PREFIX_BYTES:].rstrip(b" \n")
    if len(record) < RECORD_BYTES or record[:CRC_PREFIX_BYTES] != b"%08x " % zlib.crc32(text):
        return None
    return json.loads(text)["committed"]
