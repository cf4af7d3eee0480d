"""Values of different lengths, end to end in a memory-mapped temporary file.

N rows   B batch   T length of a value
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache import image_cache
from sensorium.modalities.base import Modality

ROWS_PER_READ = 4096  # raw values in memory at a time
CACHE_FOLDER = "ragged"


class RaggedColumn:
    """A column of arrays [T, ...] that differ in length alone. A row without a value has length 0.

    Args:
        modality: the settings of the column.
        values: all values, end to end.
        lengths: the length of each value.
        valid: the rows that have a value.
        errors: row -> why its value could not be read.
    """

    def __init__(
        self,
        modality: Modality,
        values: np.ndarray,
        lengths: Int[np.ndarray, " N"],
        valid: Bool[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.modality = modality
        self.values = values
        self.lengths = lengths
        self.offsets = lengths.cumsum() - lengths
        self.valid = valid
        self.errors = errors

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,  # noqa: ARG002 - as in ColumnStore
    ) -> Tensor:
        """Return the values of some rows, padded and augmented."""
        ends = self.offsets + self.lengths
        batch = self.modality.collate(
            [np.array(self.values[self.offsets[row] : ends[row]]) for row in rows.tolist()]
        )
        if rng is None or not augment:
            return batch
        return self.modality.augment(batch, rng, **augment)


def build_ragged_column(
    modality: Modality, raw: Callable[[range], Sequence[Any]], num_rows: int
) -> RaggedColumn:
    """Load every value once; at most ROWS_PER_READ are in memory at a time.

    Args:
        modality: the settings of the column.
        raw: returns the raw values of some rows, None where one is missing.
        num_rows: N.

    Raises:
        SensoriumError: if the cache cannot be written.
    """
    lengths = np.zeros(num_rows, np.int64)
    valid = np.zeros(num_rows, bool)
    errors: dict[int, str] = {}
    layout: np.ndarray | None = None  # an empty array with the type and inner shape of the values
    with _open_temporary_file() as file:
        for rows in iter_batches(range(num_rows), ROWS_PER_READ):
            for row, value in zip(rows, raw(rows), strict=True):
                if value is None:
                    continue
                try:
                    loaded = modality.load(value)
                    _check_layout(layout, loaded)
                except ValueError as e:
                    errors[row] = str(e)
                    continue
                layout = loaded[:0] if layout is None else layout
                file.write(loaded.tobytes())
                lengths[row] = len(loaded)
                valid[row] = True
        file.flush()
        values = np.zeros(0, np.float32) if layout is None else layout
        if lengths.any():
            values = np.memmap(file, values.dtype, "r").reshape(-1, *values.shape[1:])
    return RaggedColumn(modality, values, lengths, valid, errors)


def _check_layout(layout: np.ndarray | None, loaded: np.ndarray) -> None:
    """Raise ValueError if a value differs from the first one in more than its length."""
    if layout is None:
        return
    if (loaded.shape[1:], loaded.dtype) != (layout.shape[1:], layout.dtype):
        raise ValueError(
            f"it has {loaded.shape[1:]} {loaded.dtype} at each step, but other values have "
            f"{layout.shape[1:]} {layout.dtype}"
        )


def _open_temporary_file() -> IO[bytes]:
    """Open a temporary file next to the decoded images; it is removed when it is closed."""
    folder = image_cache.image_cache_folder().with_name(CACHE_FOLDER)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    except OSError as e:
        raise image_cache.cache_access_error(folder / "temporary", e) from e
