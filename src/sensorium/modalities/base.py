"""The contract of a modality: the settings of one column, from raw values to model inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import Field, fields
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from sensorium.errors import SensoriumError

# Cells that stand for a missing value among numbers and dates, as common programs write them.
MISSING_MARKERS = frozenset(
    {
        "",
        "na",
        "n/a",
        "n.a.",
        "<na>",
        "(na)",
        "#na",
        "#n/a",
        "#n/a n/a",
        "#value!",
        "#div/0!",
        "#ref!",
        "#name?",
        "#num!",
        "#null!",
        "nan",
        "-nan",
        "1.#ind",
        "-1.#ind",
        "1.#qnan",
        "nat",
        "null",
        "(null)",
        "none",
        "nil",
        "-",
        "--",
        "---",
        "\u2013",
        "\u2014",
        ".",
        "..",
        "?",
        "missing",
    }
)


@runtime_checkable
class Modality(Protocol):
    """The settings of one column: a frozen dataclass that is stored with the run.

    A modality converts raw values to model inputs in three steps, and the same settings are used
    in training and in inference:

    1. `fit` learns what depends on the data (a tokenizer, a mean, the classes), once per run.
    2. `load` reads one raw value into a compact array, which is cached.
    3. `collate` turns a batch of loaded arrays into one tensor, and `augment` changes it at random
       in training.

    Every field needs a default, because a new column starts from the default settings, and a value
    that JSON can hold (tuples are stored as lists).

    A modality that is registered with `sensorium.add_modality` also has these two members:

    - `extensions: ClassVar[tuple[str, ...]]`: the file extensions of its values, such as
      `(".xyz",)`; `()` if values are lists only. A column of existing paths with one of these
      extensions is inferred as this modality. `load` gets such a value as a `Path`. Its arrays may
      differ in length along the first axis; a missing value reaches `collate` with length 0 there.
    - `from_json(cls, data)`: a class method that builds the settings from what `to_json` returned.
      `validate_settings` rejects unknown keys.

    Two more methods are used by tests, by export and for display, and are recommended:

    - `fake(n, rng)`: n random values as a batch, in the form that `collate` returns.
    - `decode(value)`: one collated value in readable form, such as an image or a string.

    `examples/points.py` implements all of it.

    Attributes:
        kind: Name of the modality, one identifier, as in `--type NAME=TYPE`.
    """

    kind: ClassVar[str]

    def fit(self, values: Iterable[Any]) -> Modality:
        """Return settings that include what is learned from training values.

        Args:
            values: Raw values of the training rows; None is a missing value. Skip values that
                cannot be read: they are reported and quarantined later.

        Returns:
            New settings, or self if there is nothing to learn.
        """
        ...

    def load(self, raw: Any) -> np.ndarray:
        """Return one raw value as a compact array.

        Args:
            raw: A path, or a value such as a string, a list or an array. Never None.

        Raises:
            ValueError: If the value is invalid, with the reason as a phrase that can follow
                "cannot read FILE: ".
        """
        ...

    def collate(self, values: Sequence[np.ndarray]) -> Tensor:
        """Return loaded values as one tensor, padded where lengths differ: the model input."""
        ...

    @property
    def augment(self) -> Callable[..., Tensor]:
        """Return the batch with random changes that keep its meaning.

        A method `augment(batch, rng, **options)`: `batch` is what `collate` returns, and `rng` is a
        `torch.Generator`, the only source of randomness. Each option names one change and its
        strength. Without options the batch is returned unchanged.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        ...


@runtime_checkable
class FitsOnData(Protocol):
    """An embedding module that is fitted on training values before training starts."""

    def fit_on_data(self, values: Iterable[Tensor], /) -> None:
        """Fit the module on batches of collated training values."""
        ...


@runtime_checkable
class SharesVectors(Protocol):
    """An embedding module with a vector for each item of a vocabulary that it fits on the data."""

    def take_vectors(self, tensors: Mapping[str, Tensor], /) -> tuple[int, int]:
        """Take the vectors of the items that another such module knows, too.

        Args:
            tensors: Parameters and buffers of the other module, by name; maybe {}.

        Returns:
            The number of items, and of how many the vectors were taken.
        """
        ...


@runtime_checkable
class _DataclassInstance(Protocol):
    """An instance of any dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def settings_to_dict(modality: _DataclassInstance, exclude: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the fields of a settings dataclass as a dictionary, without the excluded ones."""
    return {f.name: getattr(modality, f.name) for f in fields(modality) if f.name not in exclude}


def validate_settings(cls: type, values: dict[str, Any]) -> dict[str, Any]:
    """Return keyword arguments for `cls` from stored settings, with lists as tuples.

    Raises:
        SensoriumError: If `cls` does not have one of the keys.
    """
    known = {f.name for f in fields(cls)}
    for key in values:
        if key not in known:
            raise SensoriumError(
                f"{cls.__name__} settings have the unknown key {key!r}. "
                f"Known keys: {', '.join(sorted(known))}. "
                "The file was written by another version or edited by hand."
            )
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def is_missing_marker(cell: str) -> bool:
    """Return whether a cell stands for a missing value."""
    return cell.strip().lower() in MISSING_MARKERS
