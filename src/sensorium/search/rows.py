"""The rows of an index in memory: ids, which are deleted, and where their payloads are."""

import zlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int


class RowTable:
    """What the changes of a journal add up to.

    Args:
        first_id: the smallest id that a new row may get.

    Attributes:
        ids: id of each row, ascending.
        alive: for each row 1, or 0 once it is deleted.
        next_id: the id of the next row.
    """

    def __init__(self, first_id: int) -> None:
        self.ids = array("q")
        self.alive = bytearray()
        self.next_id = first_id
        self._payload_ends = array("q")  # offset of the end of each row's payload
        self._payload_crcs = array("q")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def payload_size(self) -> int:
        """Bytes of all payloads."""
        return self._payload_ends[-1] if self._payload_ends else 0

    def apply(self, change: Mapping[str, Any]) -> None:
        """Apply one change.

        Raises:
            ValueError: its keys are unknown.
            KeyError: it deletes a row that does not exist.
        """
        if set(change) == {"delete"}:
            for row in self.find(change["delete"]).tolist():
                self.alive[row] = 0
        elif set(change) == {"add", "vectors", "lengths", "payloads"}:
            new_ids = change["add"]
            end = self.payload_size
            self.ids.extend(new_ids)
            self.alive.extend(b"\1" * len(new_ids))
            for length in change["lengths"]:
                end += length
                self._payload_ends.append(end)
            self._payload_crcs.extend(change["payloads"])
            if new_ids:
                self.next_id = max(self.next_id, new_ids[-1] + 1)
        else:
            raise ValueError(f"unknown keys: {', '.join(sorted(change))}")

    def find(self, ids: Sequence[int]) -> Int[np.ndarray, " n"]:
        """Return the row numbers of ids.

        Raises:
            KeyError: with the first id that does not exist.
        """
        rows = np.array([bisect_left(self.ids, i) for i in ids], np.int64)
        for row, row_id in zip(rows.tolist(), ids, strict=True):
            if row == len(self.ids) or self.ids[row] != row_id or not self.alive[row]:
                raise KeyError(row_id)
        return rows

    def payload(self, row: int) -> tuple[int, int, int]:
        """Return the offset, size and CRC-32 of a row's payload."""
        start = self._payload_ends[row - 1] if row else 0
        return start, self._payload_ends[row] - start, self._payload_crcs[row]

    def digest(self, num_rows: int) -> int:
        """Return a CRC-32 of the payloads of the first rows."""
        return zlib.crc32(memoryview(self._payload_crcs)[:num_rows])
