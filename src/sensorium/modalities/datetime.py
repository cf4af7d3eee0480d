"""Dates: how long ago, and where in the year, the week and the day.

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

SECONDS_PER_DAY = 86_400.0  # seconds
NUM_FEATURES = 9  # of a date, as `collate` gives them
_FIRST_MONDAY_SECONDS = 4 * SECONDS_PER_DAY  # 1970-01-05


@dataclass(frozen=True)
class Datetime:
    """Settings of a column of dates, with or without a time of day; one without a zone is taken for UTC.

    mean, std: of the training dates, in seconds since 1970.
    """

    kind: ClassVar[str] = "datetime"
    mean: float = 0.0
    std: float = SECONDS_PER_DAY

    def fit(self, values: Iterable[Any]) -> Datetime:
        """Mean and spread of the dates that are there and can be read."""
        there = []
        for raw in values:
            try:
                there.append(float(self.load(raw)))
            except ValueError:
                continue  # quarantined by name where the data are prepared
        return (
            replace(self, mean=float(np.mean(there)), std=float(np.std(there)) or SECONDS_PER_DAY)
            if there
            else self
        )

    def load(self, raw: Any) -> np.ndarray:
        """Seconds since 1970 as float64 []: of a date, a datetime, or ISO 8601 text. Raises ValueError for others."""
        try:
            moment = datetime.fromisoformat(raw.strip()) if isinstance(raw, str) else raw
        except ValueError:
            raise ValueError(
                f"expected a date such as 2026-03-31 or 2026-03-31T14:05, found {raw[:40]!r}"
            ) from None
        if isinstance(moment, date) and not isinstance(moment, datetime):
            moment = datetime(moment.year, moment.month, moment.day)
        if not isinstance(moment, datetime):
            raise ValueError(f"expected a date, found {type(raw).__name__} {str(raw)[:40]!r}")
        return np.array(
            (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp(), np.float64
        )

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B F"]:
        """Standardised time, the square of it, and sine and cosine of the year, the week and the day; a bare hour."""
        seconds = np.asarray(values, np.float64).reshape(-1)
        past = (seconds - self.mean) / self.std
        turns = (
            seconds / (365.2425 * SECONDS_PER_DAY),
            (seconds - _FIRST_MONDAY_SECONDS) / (7 * SECONDS_PER_DAY),
            seconds / SECONDS_PER_DAY,
        )
        round_ = [wave(2 * np.pi * (t % 1)) for t in turns for wave in (np.sin, np.cos)]
        weekend = ((seconds - _FIRST_MONDAY_SECONDS) // SECONDS_PER_DAY % 7 >= 5).astype(np.float64)
        return torch.from_numpy(np.stack([past, past**2, *round_, weekend], 1).astype(np.float32))

    def augment(
        self, batch: Float[Tensor, "B F"], rng: torch.Generator, **options: float
    ) -> Float[Tensor, "B F"]:
        """The batch as it is."""
        return batch

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n F"]:
        """n dates, for tests and dry runs."""
        drawn = self.mean + self.std * torch.randn(n, generator=rng).double()
        return self.collate([np.array(value) for value in drawn.tolist()])

    def decode(self, value: Float[Tensor, "F"]) -> str:
        """The date in ISO 8601."""
        return datetime.fromtimestamp(float(value[0]) * self.std + self.mean, UTC).isoformat(
            timespec="minutes"
        )

    def to_json(self) -> dict[str, Any]:
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Datetime:
        return cls(**validate_settings(cls, data))
