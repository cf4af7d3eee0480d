"""What every sense must be able to do: learn its settings, load one raw value, lay several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sensorium.errors import SensoriumError


@runtime_checkable
class Modality(Protocol):
    """The settings of one column. Frozen, JSON-able, stored with the run: what is served is what was trained.

    A class that has `endings` too is one whose values may be files, told by how their names end (() for lists alone).
    They are given to `load` as paths; what it makes of each may differ in its first axis, and a missing one has length
    0 there when it comes to `collate`.
    """

    kind: ClassVar[str]

    def fit(self, values: Iterable[Any]) -> Modality:
        """These settings with what must be learned from training values: a tokenizer, a mean, the classes."""
        ...

    def load(self, raw: Any) -> np.ndarray:
        """One raw value as a compact array. Raises ValueError with the reason where it cannot be read."""
        ...

    def collate(self, values: Sequence[np.ndarray]) -> Tensor:
        """Loaded values as one tensor, padded where they differ in length: what a model takes."""
        ...

    @property
    def augment(self) -> Callable[..., Tensor]:
        """(batch, rng, **how) → the batch, changed at random in ways that keep its meaning, each asked for by a keyword
        whose value says how far; unchanged without."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The settings as plain values."""
        ...


@runtime_checkable
class FitsOnData(Protocol):
    """A part of an encoder that takes something from training values before it learns."""

    def fit_on_data(self, values: Iterable[Tensor], /) -> None: ...


def settings_to_dict(modality: Any, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """A settings dataclass as plain JSON values."""
    return {f.name: getattr(modality, f.name) for f in fields(modality) if f.name not in exclude}


def validate_settings(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """`given` if `cls` knows every key of it; lists become the tuples that frozen settings hold.

    Raises SensoriumError naming the first unknown key.
    """
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise SensoriumError(
                f"{cls.__name__} settings hold the unknown key {key!r}; they may hold "
                f"{', '.join(sorted(known))}."
                " The file was written by another version or changed by hand."
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
