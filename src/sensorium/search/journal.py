"""An append-only file of changes, one JSON line each; an incomplete last line is ignored.

Each line begins with a CRC-32 of its text, seeded with the CRC of the line before, so that a
changed, lost or moved line is noticed.
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sensorium.errors import SensoriumError
from sensorium.io import atomic

CRC_PREFIX_BYTES = 9  # eight hex digits and a space


def append_durably(fd: int, offset: int, data: bytes) -> None:
    """Write and sync data at `offset`, the end of the valid content; cut off what follows."""
    os.ftruncate(fd, offset)
    while data:
        num_written = os.pwrite(fd, data, offset)
        offset += num_written
        data = data[num_written:]
    atomic.full_fsync(fd)


class Journal:
    """One journal file.

    Args:
        path: the file.
        fd: its open descriptor; for writing too, in its only writer.
    """

    def __init__(self, path: Path, fd: int = -1) -> None:
        self.path = path
        self.fd = fd
        self._end = 0  # of the valid content
        self._crc = 0  # of the last line

    def append(self, change: Mapping[str, Any]) -> None:
        """Write one change; it is on the disk when this returns."""
        text = json.dumps(change, separators=(",", ":")).encode()
        crc = zlib.crc32(text, self._crc)
        line = b"%08x %s\n" % (crc, text)
        append_durably(self.fd, self._end, line)
        self._end += len(line)
        self._crc = crc

    def read_changes(self) -> Iterator[dict[str, Any]]:
        """Yield the changes written since the last call.

        Raises:
            SensoriumError: a complete line is damaged.
        """
        size = os.fstat(self.fd).st_size
        if size < self._end:
            raise corruption_error(self.path, f"{self._end - size} bytes at its end are missing")
        for line in os.pread(self.fd, size - self._end, self._end).splitlines(keepends=True):
            change = self._parse_line(line)
            if change is None:
                return
            yield change

    def truncate_incomplete(self) -> None:
        """Cut off an incomplete last line, with a warning; only for the writer."""
        incomplete = os.fstat(self.fd).st_size - self._end
        if incomplete > 0:
            append_durably(self.fd, self._end, b"")
            logging.getLogger("sensorium").warning(
                "%s: the last change was never completed or acknowledged; %d bytes were cut off",
                self.path,
                incomplete,
            )

    def _parse_line(self, line: bytes) -> dict[str, Any] | None:
        """Return the change of a line; None if the line is incomplete."""
        is_complete = line.endswith(b"\n")
        prefix = line[:CRC_PREFIX_BYTES]
        # The second candidate is a line of which only the newline is missing.
        for text in (line[CRC_PREFIX_BYTES:-1], line[CRC_PREFIX_BYTES:]):
            crc = zlib.crc32(text, self._crc)
            if prefix == b"%08x " % crc:
                self._end += CRC_PREFIX_BYTES + len(text) + 1
                self._crc = crc
                return json.loads(text)
        if is_complete:
            raise corruption_error(
                self.path, f"the line at byte {self._end} does not match its checksum"
            )
        return None


def corruption_error(path: Path, reason: str) -> SensoriumError:
    """Return the error for a damaged file of an index."""
    return SensoriumError(
        f"{path} is damaged: {reason}. Restore it from a copy, or build the index again."
    )
