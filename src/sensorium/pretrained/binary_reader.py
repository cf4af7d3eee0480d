"""A cursor over a mapped binary file that never reads past its end, and believes no count that the file cannot hold."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from sensorium.errors import SensoriumError

T = TypeVar("T")
MAX_STRING_BYTES = 1 << 16  # bytes of one string


class BinaryReader:
    """Little-endian values of one file, or of the parts of one that was cut, from the front to the back."""

    def __init__(self, path: Path, parts: Sequence[Path] = ()):
        self.path, self.position = path, 0
        mapped = [_memory_map(part) for part in parts or (path,)]
        self.data = mapped[0] if len(mapped) == 1 else np.concatenate(mapped)

    def read_bytes(self, n: int) -> np.ndarray:
        """The next n bytes, as they lie in the file."""
        if n < 0 or self.position + n > len(self.data):
            raise self.corruption_error(
                f"it ends at byte {len(self.data):,}, {n:,} more were to come after {self.position:,}"
            )
        self.position += n
        return self.data[self.position - n : self.position]

    def read_number(self, format_char: str) -> int | float | bool:
        """One value of a struct kind: B, H, I, Q, b, h, i, q, f, d, ?."""
        return struct.unpack(
            f"<{format_char}", self.read_bytes(struct.calcsize(f"<{format_char}")).tobytes()
        )[0]

    def read_count(self, format_char: str, min_item_bytes: int, label: str) -> int:
        """How many of something follow, each of `at_least` bytes: no more than the file has room for."""
        n = int(self.read_number(format_char))
        if n * min_item_bytes > len(self.data) - self.position:
            raise self.corruption_error(f"it speaks of {n:,} {label}, which it has no room for")
        return n

    def read_string(self, length_format: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """A string behind its length."""
        n = self.read_count(length_format, 1, "bytes of text")
        if n > max_bytes:
            raise self.corruption_error(f"a name of {n:,} bytes")
        try:
            return self.read_bytes(n).tobytes().decode()
        except UnicodeDecodeError as e:
            raise self.corruption_error(
                f"text that is not UTF-8 before byte {self.position:,}"
            ) from e

    def build_unique_dict(self, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
        """Named values as a dict. Raises SensoriumError where a name comes twice."""
        found: dict[str, T] = {}
        for name, value in pairs:
            if name in found:
                raise self.corruption_error(f"{name} comes twice")
            found[name] = value
        return found

    def corruption_error(self, reason: str) -> SensoriumError:
        """The error for this file."""
        return SensoriumError(f"{self.path} is damaged: {reason}")


def _memory_map(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        raise SensoriumError(f"{path} is empty")
    return np.memmap(path, np.uint8, "r")
