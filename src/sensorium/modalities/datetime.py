"""Dates and times: standardized time and cyclic features of the year, the week and the day.

B batch   F features of a date
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.modalities.base import settings_to_dict, validate_settings

SECONDS_PER_DAY = 86_400.0
NUM_FEATURES = 9  # width of `collate`
_FIRST_MONDAY_SECONDS = 4 * SECONDS_PER_DAY  # 1970-01-05


@dataclass(frozen=True)
class Datetime:
    """Settings of a datetime column, with or without a time of day; UTC without a time zone.

    Attributes:
        mean: Mean of the training dates, in seconds since 1970.
        std: Their standard deviation in seconds.
    """

    kind: ClassVar[str] = "datetime"
    mean: float = 0.0
    std: float = SECONDS_PER_DAY

    def fit(self, values: Iterable[Any]) -> Datetime:
        """Return the settings with mean and standard deviation of all readable dates."""
        seconds: list[float] = []
        for raw in values:
            try:
                seconds.append(float(self.load(raw)))
            except ValueError:
                continue  # reported when the data are prepared
        if not seconds:
            return self
        std = float(np.std(seconds)) or SECONDS_PER_DAY
        return replace(self, mean=float(np.mean(seconds)), std=std)

    def load(self, raw: Any) -> np.ndarray:
        """Return a date, a datetime or ISO 8601 text as seconds since 1970, float64 [].

        Raises:
            ValueError: If the value is none of these.
        """
        try:
            parsed = datetime.fromisoformat(raw.strip()) if isinstance(raw, str) else raw
        except ValueError:
            raise ValueError(
                f"expected a date such as 2026-03-31 or 2026-03-31T14:05, got {raw[:40]!r}"
            ) from None
        if isinstance(parsed, date) and not isinstance(parsed, datetime):
            parsed = datetime(parsed.year, parsed.month, parsed.day)
        if not isinstance(parsed, datetime):
            raise ValueError(f"expected a date, got {type(raw).__name__} {str(raw)[:40]!r}")
        if parsed.tzinfo is None:
            parsed = parsed.replace(tzinfo=UTC)
        return np.array(parsed.timestamp(), np.float64)

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B F"]:
        """Return the features of a batch.

        They are standardized time, its square, sine and cosine of the position in the year, the
        week and the day, and whether it is a weekend.
        """
        seconds = np.asarray(values, np.float64).reshape(-1)
        time = (seconds - self.mean) / self.std
        cycles = (
            seconds / (365.2425 * SECONDS_PER_DAY),
            (seconds - _FIRST_MONDAY_SECONDS) / (7 * SECONDS_PER_DAY),
            seconds / SECONDS_PER_DAY,
        )
        cyclic: list[np.ndarray] = []
        for cycle in cycles:
            angle = 2 * np.pi * (cycle % 1)
            cyclic += [np.sin(angle), np.cos(angle)]
        weekday = (seconds - _FIRST_MONDAY_SECONDS) // SECONDS_PER_DAY % 7
        is_weekend = (weekday >= 5).astype(np.float64)
        features = np.stack([time, time**2, *cyclic, is_weekend], 1)
        return torch.from_numpy(features.astype(np.float32))

    def augment(
        self,
        batch: Float[Tensor, "B F"],
        rng: torch.Generator,  # noqa: ARG002 - the signature of all modalities
        **options: float,  # noqa: ARG002
    ) -> Float[Tensor, "B F"]:
        """Return the batch unchanged: dates have no augmentation."""
        return batch

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n F"]:
        """Return n random dates, for tests and dry runs."""
        seconds = self.mean + self.std * torch.randn(n, generator=rng).double()
        return self.collate([np.array(value) for value in seconds.tolist()])

    def decode(self, value: Float[Tensor, "F"]) -> str:
        """Return the date in ISO 8601, to the minute."""
        seconds = float(value[0]) * self.std + self.mean
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="minutes")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Datetime:
        """Return the settings that `to_json` wrote.

        Raises:
            SensoriumError: If a key is unknown.
        """
        return cls(**validate_settings(cls, data))
