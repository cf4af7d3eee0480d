"""Numbers, categories and ordinals: the scalar columns of a table.

B batch   C classes
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.modalities.series_io import MAX_NUMBER

MAX_BINS = 32  # quantile bins of a numeric column, at most
MIN_BOUND_FRACTION = 0.05  # of the training values that are equal to the least or the largest one
MIN_BOUND_ROWS = 20  # training values, below which only the sign is a bound
_WHOLE_NUMBER = re.compile(r"[+-]?(0|[1-9]\d{0,308})(\.0*)?")  # not 007, which is a code
_DECIMAL_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?\.?\d+(e[+-]?\d+)?", re.IGNORECASE)


def spell_class(value: Any) -> str:
    """Return the one spelling of a class name, whichever file format it came from.

    Numbers are spelled without trailing zeros or a plus sign, so that 1, 1.0, "1.0" and "1" are one
    class, and Booleans are "true" and "false". A leading zero marks a code: "007" stays.

    Args:
        value: A text, number or Boolean.
    """
    if isinstance(value, bool | np.bool_):
        return str(bool(value)).lower()
    text = repr(value.item()) if isinstance(value, np.generic) else str(value)
    text = text.strip()
    if text.lower() in ("true", "false"):
        return text.lower()
    if _WHOLE_NUMBER.fullmatch(text):
        return str(int(text.partition(".")[0] or 0))
    is_code = text.lstrip("+-")[:1] == "0" and text.lstrip("+-")[1:2].isdigit()
    if is_code or not _DECIMAL_NUMBER.fullmatch(text):
        return text
    number = float(text)
    if not math.isfinite(number):
        return text
    return str(int(number)) if number.is_integer() else repr(number)


@dataclass(frozen=True)
class Numeric:
    """Settings of a numeric column; models get (value - mean) / std.

    Attributes:
        mean: Mean of the training values.
        std: Their standard deviation.
        edges: Edges of bins with equal shares of the training values, in the column's unit.
        count: Number of training values.
        decimal: Decimal mark of numbers in text, "." or ",".
        unit: Currency of numbers in text, or "%", which is left out.
        lower: Natural lower bound, below which no prediction and no interval goes; None: none.
        upper: Natural upper bound, likewise.
    """

    kind: ClassVar[str] = "numeric"
    mean: float = 0.0
    std: float = 1.0
    edges: tuple[float, ...] = ()
    count: int = 0
    decimal: str = "."
    unit: str = ""
    lower: float | None = None
    upper: float | None = None

    def __post_init__(self) -> None:
        lower = -math.inf if self.lower is None else self.lower
        upper = math.inf if self.upper is None else self.upper
        if not lower < upper:
            raise SensoriumError(
                f"The lower bound {lower:g} of a numeric column is not below its upper bound "
                f"{upper:g}."
            )

    def fit(self, values: Iterable[float | None]) -> Numeric:
        """Return the settings with statistics of all values that are not None.

        The standard deviation of a constant column is set to 1. Bounds that are set stay; the
        others are those of `natural_bounds`.
        """
        present = np.fromiter((v for v in values if v is not None), np.float64)
        if not len(present):
            return self
        edges = np.unique(np.quantile(present, np.linspace(0, 1, MAX_BINS + 1), method="nearest"))
        lower, upper = natural_bounds(present)
        lower = lower if self.lower is None else self.lower
        upper = upper if self.upper is None else self.upper
        if (
            lower is not None and upper is not None and lower >= upper
        ):  # one was set beyond the data
            lower, upper = self.lower, self.upper
        return replace(
            self,
            mean=float(present.mean()),
            std=float(present.std()) or 1.0,
            edges=tuple(edges.tolist()),
            count=len(present),
            lower=lower,
            upper=upper,
        )

    def clamp(self, values: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Return numbers in the column's unit, none of them beyond the natural bounds."""
        if self.lower is None and self.upper is None:
            return values
        return values.clamp(self.lower, self.upper)

    def load(self, raw: Any) -> np.ndarray:
        """Return one number as float64 [] (float32 is too coarse for large values).

        Raises:
            ValueError: If the value is not a finite number.
        """
        if isinstance(raw, bool) or not isinstance(raw, int | float | np.number):
            raise ValueError(f"expected a number, got {type(raw).__name__} {str(raw)[:40]!r}")
        if not math.isfinite(raw):
            raise ValueError(f"expected a finite number, got {raw}")
        if abs(raw) > MAX_NUMBER:
            raise ValueError(f"{raw:g} is beyond the limit of {MAX_NUMBER:g}")
        return np.array(raw, np.float64)

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B"]:
        """Return the standardized values."""
        standardized = (np.asarray(values, np.float64) - self.mean) / self.std
        return torch.from_numpy(standardized.astype(np.float32))

    def augment(
        self, batch: Float[Tensor, "B"], rng: torch.Generator, *, noise: float = 0.0
    ) -> Float[Tensor, "B"]:
        """Add Gaussian noise.

        Args:
            batch: Standardized values.
            rng: Random generator.
            noise: Standard deviation of the noise, in standard deviations of the column.
        """
        if not noise:
            return batch
        return batch + noise * torch.randn(batch.shape, generator=rng)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n"]:
        """Return n random standardized values, for tests and dry runs."""
        return torch.randn(n, generator=rng)

    def decode(self, value: Float[Tensor, ""]) -> float:
        """Return a standardized value in the column's unit."""
        return float(value) * self.std + self.mean

    def decode_all(self, values: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return standardized values in the column's unit, as float64.

        Values that float32 rounded off a natural bound are put back on it.
        """
        decoded = values.double() * self.std + self.mean
        rounding = torch.finfo(torch.float32).eps * self.std * (1 + values.double().abs())
        for bound in (self.lower, self.upper):
            if bound is not None:
                decoded = torch.where((decoded - bound).abs() <= rounding, bound, decoded)
        return decoded

    def as_classes(self) -> Category | None:
        """Return the settings of the same column as classes, if it has two values in training."""
        if len(self.edges) != 2:
            return None
        low, high = self.edges
        num_high = round(self.count * (self.mean - low) / (high - low))
        names = [str(int(value)) if value.is_integer() else str(value) for value in self.edges]
        return Category(tuple(names), (self.count - num_high, num_high))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Numeric:
        """Return the settings that `to_json` wrote.

        Raises:
            SensoriumError: If a key is unknown.
        """
        return cls(**validate_settings(cls, data))


def natural_bounds(values: Float[np.ndarray, "N"]) -> tuple[float | None, float | None]:
    """Return the bounds that numbers cannot be beyond, as far as the values show them.

    These are 0 for values of one sign, 0 and 1 for fractions, 100 for values up to exactly 100, and
    the least or largest value that many rows have, such as the best of five stars, or a cap.

    Args:
        values: The training values.

    Returns:
        Lower and upper bound; None where there is none.
    """
    low, high = float(values.min()), float(values.max())
    if low == high:
        return (0.0, None) if low >= 0 else (None, 0.0)
    lower = upper = None
    if len(values) >= MIN_BOUND_ROWS:
        lower = low if np.mean(values == low) >= MIN_BOUND_FRACTION else None
        upper = high if np.mean(values == high) >= MIN_BOUND_FRACTION else None
        if low >= 0 and upper is None:
            upper = 1.0 if high <= 1 else 100.0 if high == 100 else None
    if low >= 0 and lower is None:
        lower = 0.0
    if high <= 0 and upper is None:
        upper = 0.0
    return lower, upper


@dataclass(frozen=True)
class Category:
    """Settings of a categorical column; models get the index of the class.

    A class that training did not see has the index after the last.

    Attributes:
        classes: Names of the classes; by default those of the training rows.
        counts: Training rows of each class.
    """

    kind: ClassVar[str] = "category"
    classes: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()

    @cached_property
    def _class_to_index(self) -> dict[str, int]:
        return {spell_class(name): i for i, name in enumerate(self.classes)}

    def fit(self, values: Iterable[str | None]) -> Category:
        """Return settings with counts of `classes`, by default those of the values, sorted."""
        counts = Counter(spell_class(v) for v in values if v is not None)
        classes = self.classes or tuple(self.sort_classes(counts))
        frequencies = tuple(counts[spell_class(name)] for name in classes)
        return replace(self, classes=classes, counts=frequencies)

    def sort_classes(self, classes: Iterable[str]) -> list[str]:
        """Return the classes in index order: alphabetically."""
        return sorted(classes)

    def load(self, raw: Any) -> np.ndarray:
        """Return the index of one class as int64 []; len(classes) for an unseen class."""
        index = self._class_to_index.get(spell_class(raw), len(self.classes))
        return np.array(index, np.int64)

    def collate(self, values: Sequence[np.ndarray]) -> Int[Tensor, "B"]:
        """Return the class indices of a batch."""
        return torch.from_numpy(np.array(values, np.int64))

    def augment(
        self, batch: Int[Tensor, "B"], rng: torch.Generator, *, class_dropout: float = 0.0
    ) -> Int[Tensor, "B"]:
        """Replace some classes by the unseen class, so that its embedding is trained.

        Args:
            batch: Class indices.
            rng: Random generator.
            class_dropout: Share of values to replace.
        """
        dropped = torch.rand(batch.shape, generator=rng) < class_dropout
        return batch.masked_fill(dropped, len(self.classes)) if class_dropout else batch

    def fake(self, n: int, rng: torch.Generator) -> Int[Tensor, "n"]:
        """Return n random classes, for tests and dry runs."""
        return torch.randint(0, max(1, len(self.classes)), (n,), generator=rng)

    def decode(self, value: Int[Tensor, ""]) -> str | None:
        """Return the name of a class; None for the unseen class."""
        return self.classes[int(value)] if int(value) < len(self.classes) else None

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Category:
        """Return the settings that `to_json` wrote.

        Raises:
            SensoriumError: If a key is unknown.
        """
        return cls(**validate_settings(cls, data))


@dataclass(frozen=True)
class Ordinal(Category):
    """Settings of an ordinal column: ordered classes such as ratings or stages.

    Attributes:
        classes: Names of the classes, lowest first; optional if they are numbers.
        counts: Training rows of each class.
    """

    kind: ClassVar[str] = "ordinal"

    def sort_classes(self, classes: Iterable[str]) -> list[str]:
        """Return the classes in numeric order.

        Raises:
            ValueError: If they are not numbers.
        """
        try:
            return sorted(classes, key=float)
        except ValueError:
            names = ", ".join(sorted(classes)[:5])
            raise ValueError(
                f"Classes such as {names} are not numbers, so their order is unknown. Name them, "
                'lowest first: --type COLUMN=ordinal:classes=["low","high"].'
            ) from None
