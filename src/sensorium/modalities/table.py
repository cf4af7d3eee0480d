"""Numbers and categories: the columns of a table that are neither pictures nor words.

    B batch
"""
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.modalities.modality import checked, settings


@dataclass(frozen=True)
class Number:
    """Settings of a column of numbers: what a model sees is (value - mean) / std."""

    kind: ClassVar[str] = "number"
    mean: float = 0.0
    std: float = 1.0

    def fit(self, values: Iterable[float | None]) -> "Number":
        """Mean and spread of the values that are there; a column that never changes keeps a spread of 1."""
        there = np.fromiter((v for v in values if v is not None), np.float64)
        if not len(there):
            return self
        return replace(self, mean=float(there.mean()), std=float(there.std()) or 1.0)

    def load(self, raw: Any) -> np.ndarray:
        """One number as float64 [] (seconds since 1970 do not fit float32).

        Raises ValueError for anything else, and for one that is not finite.
        """
        if isinstance(raw, bool) or not isinstance(raw, int | float | np.number):
            raise ValueError(f"expected a number, found {type(raw).__name__} {str(raw)[:40]!r}")
        if not math.isfinite(raw):
            raise ValueError(f"expected a finite number, found {raw}")
        return np.array(raw, np.float64)

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B"]:
        """The values, standardised."""
        return torch.from_numpy(((np.asarray(values, np.float64) - self.mean) / self.std).astype(np.float32))

    def augment(self, batch: Float[Tensor, "B"], rng: torch.Generator, **how: float) -> Float[Tensor, "B"]:
        """The batch as it is: no change of a number is known to keep its meaning."""
        return batch

    def show(self, value: Float[Tensor, ""]) -> float:
        """A standardised value back in the column's own unit."""
        return float(value) * self.std + self.mean

    def to_json(self) -> dict[str, Any]:
        return settings(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Number":
        return cls(**checked(cls, given))


@dataclass(frozen=True)
class Category:
    """Settings of a column of classes: what a model sees is the place of the class in `classes`."""

    kind: ClassVar[str] = "category"
    classes: tuple[str, ...] = ()

    @cached_property
    def _number_of(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def fit(self, values: Iterable[str | None]) -> "Category":
        """All classes among the values, in order of the alphabet, unless they are there already."""
        return self if self.classes else replace(self, classes=tuple(sorted({v for v in values if v is not None})))

    def load(self, raw: Any) -> np.ndarray:
        """The number of one class as int64 []. Raises ValueError for a class that was not there to learn from."""
        if raw not in self._number_of:
            raise ValueError(f"{str(raw)[:40]!r} is none of the {len(self.classes)} classes seen in training")
        return np.array(self._number_of[raw], np.int64)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B"]:
        return torch.from_numpy(np.asarray(values, np.int64))

    def augment(self, batch: Int[Tensor, "B"], rng: torch.Generator, **how: float) -> Int[Tensor, "B"]:
        """The batch as it is."""
        return batch

    def show(self, value: Int[Tensor, ""]) -> str:
        """The name of a class."""
        return self.classes[int(value)]

    def to_json(self) -> dict[str, Any]:
        return settings(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> "Category":
        return cls(**checked(cls, given))
