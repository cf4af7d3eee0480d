"""Values of different lengths, end to end in a file without a name that is mapped into memory.

N rows   B batch   T length of a value
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sensorium.data.cache import image_cache
from sensorium.modalities.base import Modality

ROWS_PER_READ = 4096  # raw values held at a time


class RaggedColumn:
    """A column whose values are arrays [T, ...] of one type that agree in all but their length.

    A row without a value is one of length 0: `collate` lays it beside the others.
    """

    def __init__(
        self,
        modality: Modality,
        values: np.ndarray,
        lengths: Int[np.ndarray, " N"],
        valid: Bool[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.modality, self.values, self.lengths, self.valid, self.errors = (
            modality,
            values,
            lengths,
            valid,
            errors,
        )
        self.offsets = lengths.cumsum() - lengths

    def batch(
        self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, augment: Mapping[str, float]
    ) -> Tensor:
        ends = self.offsets + self.lengths
        batch = self.modality.collate(
            [np.array(self.values[self.offsets[row] : ends[row]]) for row in rows.tolist()]
        )
        return (
            self.modality.augment(batch, rng, **augment) if rng is not None and augment else batch
        )


def build_ragged_column(
    modality: Modality, raw: Callable[[range], Sequence[Any]], num_rows: int
) -> RaggedColumn:
    """The values of `rows` rows, each loaded once; no more than READ are in memory at a time.

    raw: the values of some rows, None where one is missing. Raises SensoriumError where the cache cannot be written.
    """
    lengths, valid, wrong = np.zeros(num_rows, np.int64), np.zeros(num_rows, bool), dict[int, str]()
    first: np.ndarray | None = None
    with _open_temporary_file() as file:
        for start in range(0, num_rows, ROWS_PER_READ):
            for row, value in enumerate(
                raw(range(start, min(start + ROWS_PER_READ, num_rows))), start
            ):
                try:
                    loaded = (
                        None if value is None else _check_same_layout(first, modality.load(value))
                    )
                except ValueError as e:
                    wrong[row] = str(e)
                    continue
                if loaded is not None:
                    first = loaded[:0] if first is None else first
                    file.write(loaded.tobytes())
                    lengths[row], valid[row] = len(loaded), True
        file.flush()
        first = np.zeros(0, np.float32) if first is None else first
        values = (
            np.memmap(file, first.dtype, "r").reshape(-1, *first.shape[1:])
            if lengths.any()
            else first
        )
    return RaggedColumn(modality, values, lengths, valid, wrong)


def _check_same_layout(first: np.ndarray | None, loaded: np.ndarray) -> np.ndarray:
    """`loaded`, if it agrees with the first value in all but its length. Raises ValueError where it does not."""
    if first is not None and (loaded.shape[1:], loaded.dtype) != (first.shape[1:], first.dtype):
        raise ValueError(
            f"it has {loaded.shape[1:]} {loaded.dtype} at each step, where others have {first.shape[1:]} "
            f"{first.dtype}"
        )
    return loaded


def _open_temporary_file() -> Any:
    """A file beside the decoded pictures that is gone when nobody uses it any more."""
    place = image_cache.image_cache_folder().with_name("uneven")
    try:
        place.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=place)
    except OSError as e:
        raise image_cache.cache_access_error(place / "uneven", e) from e
