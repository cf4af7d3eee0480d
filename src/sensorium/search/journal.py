"""A file of changes, one JSON line each, that only grows; what a crash leaves unfinished at its end never happened.

A line begins with a CRC-32 of its text that starts from the line before's, so a line changed, lost or moved is noticed.
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


def append_durably(fd: int, offset: int, data: bytes) -> None:
    """Put data at offset `at`, the end of what counts, and wait until it is on the disk. Junk after `at` goes."""
    os.ftruncate(fd, offset)
    while data:
        n = os.pwrite(fd, data, offset)
        offset, data = offset + n, data[n:]
    atomic.full_fsync(fd)


class Journal:
    """One log file, open as `fd` for reading and, by its only writer, for appending."""

    def __init__(self, path: Path, fd: int = -1) -> None:
        self.path, self.fd = path, fd
        self._end, self._crc = 0, 0

    def append(self, change: Mapping[str, Any]) -> None:
        """Write one change; when this returns it is on the disk."""
        text = json.dumps(change, separators=(",", ":")).encode()
        crc = zlib.crc32(text, self._crc)
        line = b"%08x %s\n" % (crc, text)
        append_durably(self.fd, self._end, line)
        self._end, self._crc = self._end + len(line), crc

    def read_changes(self) -> Iterator[dict[str, Any]]:
        """What has been written since the last call. Raises SensoriumError where a finished line is damaged."""
        size = os.fstat(self.fd).st_size
        if size < self._end:
            raise corruption_error(self.path, f"{self._end - size} bytes at its end are gone")
        for line in os.pread(self.fd, size - self._end, self._end).splitlines(keepends=True):
            change = self._parse_line(line)
            if change is None:
                return
            yield change

    def truncate_incomplete(self) -> None:
        """For the writer: remove what was never finished, and say so."""
        torn = os.fstat(self.fd).st_size - self._end
        if torn > 0:
            append_durably(self.fd, self._end, b"")
            logging.getLogger("sensorium").warning(
                "%s: the last change was never finished, nor acknowledged; its %d bytes were cut off",
                self.path,
                torn,
            )

    def _parse_line(self, line: bytes) -> dict[str, Any] | None:
        """The change of a line; None if the line was never finished (its last byte is written last)."""
        finished = line.endswith(b"\n")
        for text in (line[9:-1], line[9:]):  # the second where all but the end of the line is there
            if line[:9] == b"%08x " % zlib.crc32(text, self._crc):
                self._end, self._crc = self._end + 9 + len(text) + 1, zlib.crc32(text, self._crc)
                return json.loads(text)
        if finished:
            raise corruption_error(
                self.path, f"the line at byte {self._end} does not match its checksum"
            )
        return None


def corruption_error(path: Path, reason: str) -> SensoriumError:
    """The error for a file that is not as it was written."""
    return SensoriumError(
        f"{path} is damaged: {reason}. Put this file back from a copy, or build the index again."
    )
