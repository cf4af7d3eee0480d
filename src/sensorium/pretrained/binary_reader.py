"""A bounds-checked reader of memory-mapped binary files; counts and lengths are never trusted."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from sensorium.errors import SensoriumError

T = TypeVar("T")
MAX_STRING_BYTES = 1 << 16


class BinaryReader:
    """Read little-endian values from a file, front to back.

    Args:
        path: The file, which errors name.
        parts: The files that it was split into, in order; (): `path` alone.
    """

    def __init__(self, path: Path, parts: Sequence[Path] = ()):
        self.path = path
        self.position = 0
        mapped = [_memory_map(part) for part in parts or (path,)]
        self.data = mapped[0] if len(mapped) == 1 else np.concatenate(mapped)

    def read_bytes(self, n: int) -> np.ndarray:
        """Return the next n bytes, as a view of the file."""
        if n < 0 or self.position + n > len(self.data):
            raise self.corruption_error(
                f"it ends at byte {len(self.data):,}, but {n:,} more were expected after byte "
                f"{self.position:,}"
            )
        self.position += n
        return self.data[self.position - n : self.position]

    def read_number(self, format_char: str) -> int | float | bool:
        """Read one value of a struct format: B, H, I, Q, b, h, i, q, f, d or ?."""
        size = struct.calcsize(f"<{format_char}")
        return struct.unpack(f"<{format_char}", self.read_bytes(size).tobytes())[0]

    def read_count(self, format_char: str, min_item_bytes: int, label: str) -> int:
        """Read the count of the items that follow.

        Args:
            format_char: Struct format of the count.
            min_item_bytes: The least size of an item; the rest of the file must have room for all.
            label: What the items are, for the error.
        """
        n = int(self.read_number(format_char))
        if n * min_item_bytes > len(self.data) - self.position:
            raise self.corruption_error(f"it declares {n:,} {label}, for which it has no room")
        return n

    def read_string(self, length_format: str, max_bytes: int = MAX_STRING_BYTES) -> str:
        """Read a UTF-8 string that is preceded by its length."""
        n = self.read_count(length_format, 1, "bytes of text")
        if n > max_bytes:
            raise self.corruption_error(f"a string of {n:,} bytes is longer than {max_bytes:,}")
        try:
            return self.read_bytes(n).tobytes().decode()
        except UnicodeDecodeError as error:
            raise self.corruption_error(
                f"the text before byte {self.position:,} is not UTF-8"
            ) from error

    def build_unique_dict(self, pairs: Iterable[tuple[str, T]]) -> dict[str, T]:
        """Return named values as a dict.

        Raises:
            SensoriumError: If a name occurs twice.
        """
        values: dict[str, T] = {}
        for name, value in pairs:
            if name in values:
                raise self.corruption_error(f"{name} occurs twice")
            values[name] = value
        return values

    def corruption_error(self, reason: str) -> SensoriumError:
        """Return the error for this file."""
        return SensoriumError(f"{self.path} is damaged: {reason}. Download it again.")


def _memory_map(path: Path) -> np.ndarray:
    if path.stat().st_size == 0:
        raise SensoriumError(f"{path} is empty. Download it again.")
    return np.memmap(path, np.uint8, "r")
