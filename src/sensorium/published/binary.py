"""A cursor over a mapped binary file that never reads past its end, and believes no count that the file cannot hold."""
from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from sensorium.errors import SensoriumError

T = TypeVar("T")
MOST_NAME = 1 << 16                                     # bytes of one string


class Cursor:
    """Little-endian values of one file, or of the parts of one that was cut, from the front to the back."""

    def __init__(self, path: Path, parts: Sequence[Path] = ()):
        self.path, self.at = path, 0
        mapped = [_mapped(part) for part in parts or (path,)]
        self.bytes = mapped[0] if len(mapped) == 1 else np.concatenate(mapped)

    def take(self, n: int) -> np.ndarray:
        """The next n bytes, as they lie in the file."""
        if n < 0 or self.at + n > len(self.bytes):
            raise self.damaged(f"it ends at byte {len(self.bytes):,}, {n:,} more were to come after {self.at:,}")
        self.at += n
        return self.bytes[self.at - n:self.at]

    def number(self, kind: str) -> int | float | bool:
        """One value of a struct kind: B, H, I, Q, b, h, i, q, f, d, ?."""
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")).tobytes())[0]

    def count(self, kind: str, at_least: int, what: str) -> int:
        """How many of something follow, each of `at_least` bytes: no more than the file has room for."""
        n = int(self.number(kind))
        if n * at_least > len(self.bytes) - self.at:
            raise self.damaged(f"it speaks of {n:,} {what}, which it has no room for")
        return n

    def text(self, kind: str, most: int = MOST_NAME) -> str:
        """A string behind its length."""
        n = self.count(kind, 1, "bytes of text")
        if n > most:
            raise self.damaged(f"a name of {n:,} bytes")
        try:
            return self.take(n).tobytes().decode()
        except UnicodeDecodeError as e:
            raise self.damaged(f"text that is not UTF-8 before byte {self.at:,}") from e

    def once(self, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
        """Named values as a dict. Raises SensoriumError where a name comes twice."""
        found: dict[str, T] = {}
        for name, value in pairs:
            if name in found:
                raise self.damaged(f"{name} comes twice")
            found[name] = value
        return found

    def damaged(self, why: str) -> SensoriumError:
        """The error for this file."""
        return SensoriumError(f"{self.path} is damaged: {why}")


def _mapped(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        raise SensoriumError(f"{path} is empty")
    return np.memmap(path, np.uint8, "r")
