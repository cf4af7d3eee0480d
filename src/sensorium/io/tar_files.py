"""Files in a tar archive, read in place, at random; the archives used last stay open."""

import io
import os
import stat
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from sensorium.io.untrusted import OPEN_FLAGS, EmbeddedFile, NotARegularFileError

MAX_OPEN_ARCHIVES = 64


@dataclass(frozen=True)
class Archive:
    """An archive as it was when its index was made.

    Attributes:
        path: the file.
        size: its size in bytes.
        modified_ns: when it was last changed.
    """

    path: Path
    size: int
    modified_ns: int

    @classmethod
    def from_path(cls, path: Path) -> "Archive":
        """Return the archive at a path.

        Raises:
            OSError: if it cannot be opened or is not a regular file.
        """
        path = path.absolute()
        descriptor = os.open(path, OPEN_FLAGS)
        try:
            info = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if not stat.S_ISREG(info.st_mode):
            raise NotARegularFileError(0, "not a regular file")
        return cls(path, info.st_size, info.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Return some bytes, fewer at the end of the file.

        Raises:
            OSError: if the file cannot be read or has changed since.
        """
        return _OPEN_FILES.get(self).read(offset, size)


@dataclass(frozen=True, slots=True)
class TarMember(EmbeddedFile):
    """A regular file in a tar archive.

    Attributes:
        archive: the archive.
        name: its path in the archive.
        offset: where its content begins.
        size: its size in bytes.
    """

    archive: Archive
    name: str
    offset: int
    size: int

    def __str__(self) -> str:
        return f"{self.archive.path}/{self.name}"

    @property
    def suffix(self) -> str:
        """The ending of its name from the last dot on."""
        return Path(self.name).suffix

    def open(self) -> io.BufferedReader:
        """Open it for reading bytes.

        Raises:
            OSError: if the archive cannot be opened or has changed.
        """
        _OPEN_FILES.get(self.archive)
        return io.BufferedReader(_MemberReader(self))

    def read(self) -> bytes:
        """Return the content.

        Raises:
            OSError: if the archive cannot be read or has changed.
        """
        with self.open() as file:
            return file.read()


class _MemberReader(io.RawIOBase):
    """The bytes of one member, as a file."""

    def __init__(self, member: TarMember):
        self.member = member
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.member.size}
        self.position = max(0, start[whence] + offset)
        return self.position

    def readinto(self, buffer: "memoryview | bytearray", /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = max(0, min(len(buffer), self.member.size - self.position))
        data = self.member.archive.read(self.member.offset + self.position, size)
        if len(data) < size:
            raise OSError(0, "the archive ends inside this file")
        buffer[:size] = data
        self.position += size
        return size


class _OpenFile:
    """A descriptor, closed when nobody uses it any more."""

    def __init__(self, archive: Archive):
        self.descriptor = -1
        self.lock = threading.Lock()
        descriptor = os.open(archive.path, OPEN_FLAGS)
        info = os.fstat(descriptor)
        if (info.st_size, info.st_mtime_ns) != (archive.size, archive.modified_ns):
            os.close(descriptor)
            raise OSError(0, "the archive has changed since it was opened")
        self.descriptor = descriptor

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)

    def read(self, offset: int, size: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self.descriptor, size, offset)
        with self.lock:
            os.lseek(self.descriptor, offset, os.SEEK_SET)
            return os.read(self.descriptor, size)


class _OpenFiles:
    """The archives used last, kept open."""

    def __init__(self) -> None:
        self.files: OrderedDict[Archive, _OpenFile] = OrderedDict()
        self.lock = threading.Lock()

    def get(self, archive: Archive) -> _OpenFile:
        with self.lock:
            file = self.files.get(archive)
            if file is None:
                file = self.files[archive] = _OpenFile(archive)
            self.files.move_to_end(archive)
            if len(self.files) > MAX_OPEN_ARCHIVES:
                self.files.popitem(last=False)
            return file


_OPEN_FILES = _OpenFiles()
