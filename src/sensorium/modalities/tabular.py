"""Numbers, categories and ranks: the columns of a table that are neither pictures nor words.

B batch   C classes
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.modalities.base import settings_to_dict, validate_settings

MAX_BINS = 32  # at most so many bins of equal share are learned of a column of numbers


@dataclass(frozen=True)
class Numeric:
    """Settings of a column of numbers: what a model sees is (value - mean) / std.

    edges: between bins that hold equal shares of the training values, in the column's own unit. count: how many there
    were.
    """

    kind: ClassVar[str] = "numeric"
    mean: float = 0.0
    std: float = 1.0
    edges: tuple[float, ...] = ()
    count: int = 0

    def fit(self, values: Iterable[float | None]) -> Numeric:
        """Mean, spread and bins of the values that are there; a column that never changes keeps a spread of 1."""
        there = np.fromiter((v for v in values if v is not None), np.float64)
        if not len(there):
            return self
        edges = np.unique(np.quantile(there, np.linspace(0, 1, MAX_BINS + 1), method="nearest"))
        return replace(
            self,
            mean=float(there.mean()),
            std=float(there.std()) or 1.0,
            edges=tuple(edges.tolist()),
            count=len(there),
        )

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
        return torch.from_numpy(
            ((np.asarray(values, np.float64) - self.mean) / self.std).astype(np.float32)
        )

    def augment(
        self, batch: Float[Tensor, "B"], rng: torch.Generator, *, noise: float = 0.0
    ) -> Float[Tensor, "B"]:
        """The batch with normal noise of so many spreads."""
        return batch + noise * torch.randn(batch.shape, generator=rng) if noise else batch

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        """n standardised numbers, for tests and dry runs."""
        return torch.randn(n, generator=rng)

    def decode(self, value: Float[Tensor, ""]) -> float:
        """A standardised value back in the column's own unit."""
        return float(value) * self.std + self.mean

    def to_json(self) -> dict[str, Any]:
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Numeric:
        return cls(**validate_settings(cls, data))


@dataclass(frozen=True)
class Category:
    """Settings of a column of classes: what a model sees is the place of the class in `classes`.

    A class that was not there to learn from has the place after the last. counts: training rows of each class.
    """

    kind: ClassVar[str] = "category"
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @cached_property
    def _class_to_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    def fit(self, values: Iterable[str | None]) -> Category:
        """All classes among the values, in order of the alphabet, unless they are there already; how often each is."""
        found = Counter(v for v in values if v is not None)
        classes = self.classes or tuple(self.sort_classes(found))
        return replace(self, classes=classes, counts=tuple(found[name] for name in classes))

    def sort_classes(self, classes: Iterable[str]) -> list[str]:
        """Classes in the order in which they are numbered."""
        return sorted(classes)

    def load(self, raw: Any) -> np.ndarray:
        """The number of one class as int64 []; of one that training did not see, how many it saw."""
        plain = int(raw) if isinstance(raw, float) and raw.is_integer() else raw
        name = str(plain).lower() if isinstance(plain, bool) else str(plain)
        return np.array(self._class_to_index.get(name, len(self.classes)), np.int64)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B"]:
        return torch.from_numpy(np.array(values, np.int64))

    def augment(
        self, batch: Int[Tensor, "B"], rng: torch.Generator, *, unseen: float = 0.0
    ) -> Int[Tensor, "B"]:
        """The batch, in which some classes become one never seen: so a model learns what it is not to know a class."""
        lost = torch.rand(batch.shape, generator=rng) < unseen
        return batch.masked_fill(lost, len(self.classes)) if unseen else batch

    def fake(self, n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
        """n classes, for tests and dry runs."""
        return torch.randint(0, max(1, len(self.classes)), (n,), generator=rng)

    def decode(self, value: Int[Tensor, ""]) -> str | None:
        """The name of a class; None for one never seen."""
        return self.classes[int(value)] if int(value) < len(self.classes) else None

    def to_json(self) -> dict[str, Any]:
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Category:
        return cls(**validate_settings(cls, data))


@dataclass(frozen=True)
class Ordinal(Category):
    """Classes that stand in a row, such as stars or stages: an error by two is worse than one by one.

    `classes` may be given in their order; those that are numbers need not be.
    """

    kind: ClassVar[str] = "ordinal"

    def sort_classes(self, classes: Iterable[str]) -> list[str]:
        """By their value. Raises ValueError where they are no numbers and no order was given."""
        try:
            return sorted(classes, key=float)
        except ValueError:
            names = ", ".join(sorted(classes)[:5])
            raise ValueError(
                f"classes such as {names} have no order of their own: give it, lowest first, as in "
                'ordinal:classes=["low","high"]'
            ) from None
