"""Requests of the verbs `generate` and `predict`: raw values by name, as batches for a model."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from sensorium.data.batching import iter_batches
from sensorium.errors import SensoriumError
from sensorium.inference.base import load_value
from sensorium.io.untrusted import EmbeddedFile
from sensorium.modalities.base import Modality
from sensorium.nn.tokens import Batch

RawInputs = Mapping[str, Sequence[Any]]  # raw values of each input, one per row
SINGLE_VALUE_TYPES = (str, bytes, Path, EmbeddedFile, PIL.Image.Image, np.ndarray)


@dataclass(frozen=True)
class Unreadable:
    """A value that could not be read and was masked.

    Attributes:
        row: Its row, from 0.
        column: Its column.
        reason: Why it could not be read.
    """

    row: int
    column: str
    reason: str


def as_lists(
    inputs: Mapping[str, Any], allowed: Sequence[str], output_modality: str
) -> dict[str, list[Any]]:
    """Return each input as a list; a single value becomes a list of one.

    Args:
        inputs: Name → value or values; None is a missing value.
        allowed: Names that the model accepts.
        output_modality: What the model outputs, for error messages.

    Raises:
        SensoriumError: If a name is not allowed, or the lists differ in length.
    """
    for name in sorted(inputs):
        if name not in allowed:
            raise SensoriumError(
                f"Unknown input {name!r} of a model that outputs {output_modality}. "
                f"Its inputs are: {', '.join(allowed)}."
            )
    lists = {
        name: [values] if isinstance(values, SINGLE_VALUE_TYPES) else list(values)
        for name, values in inputs.items()
    }
    sizes = {name: len(values) for name, values in lists.items()}
    if len(set(sizes.values())) > 1:
        counts = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise SensoriumError(
            f"The inputs differ in length: {counts}. "
            "Give lists of one length, with None for a missing value."
        )
    return lists


def require_output(modality: str | None, supported: str, **counts: int) -> None:
    """Check the requested output modality and counts of a request.

    Args:
        modality: Requested output; None is whatever the model outputs.
        supported: What the model outputs.
        **counts: Options that must be at least 1.

    Raises:
        SensoriumError: If the model does not output the modality, or a count is below 1.
    """
    if modality not in (None, supported):
        raise SensoriumError(f"This model cannot generate {modality}. It generates {supported}.")
    for name, count in counts.items():
        if count < 1:
            raise SensoriumError(f"{name}={count} is out of range. Use 1 or more.")


def iter_request_batches(
    inputs: RawInputs, num_rows: int, n: int, batch_size: int
) -> Iterator[tuple[dict[str, list[Any]], tuple[int, ...]]]:
    """Yield batches of a request in which each row is repeated n times.

    Args:
        inputs: Name → one value per row.
        num_rows: Number of rows.
        n: Samples per row; they are consecutive.
        batch_size: Samples per batch.

    Yields:
        The inputs of the batch, and the seed of each of its samples (see `row_seed`).
    """
    samples = [(row, index) for row in range(num_rows) for index in range(n)]
    for batch in iter_batches(samples, batch_size):
        batch_inputs = {name: [values[row] for row, _ in batch] for name, values in inputs.items()}
        seeds = tuple(
            row_seed({name: values[row] for name, values in inputs.items()}, index)
            for row, index in batch
        )
        yield batch_inputs, seeds


def row_seed(values: Mapping[str, Any], sample_index: int) -> int:
    """Return the seed of one sample: a hash of its index and of the texts among its inputs.

    The sample is thus the same whatever else is in the batch.
    """
    texts = [f"{name}={value}" for name, value in sorted(values.items()) if isinstance(value, str)]
    message = "\0".join([str(sample_index), *texts]).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "little")


def collate_column(
    name: str, modality: Modality, values: Sequence[Any], errors: dict[int, str] | None = None
) -> Batch:
    """Return the raw values of one column as a batch; without the column if all are missing.

    Args:
        name: The column.
        modality: Its settings.
        values: Its raw values, None where missing.
        errors: Receives, by position, why a value cannot be read; the value is then missing.

    Raises:
        SensoriumError: If a value cannot be read and `errors` is None.
    """
    loaded: list[np.ndarray | None] = []
    for i, value in enumerate(values):
        try:
            loaded.append(None if value is None else load_value(modality, value))
        except (SensoriumError, OSError) as error:
            if errors is None:
                raise
            errors[i] = str(error.__cause__ or error)
            loaded.append(None)
    first = next((array for array in loaded if array is not None), None)
    if first is None:
        return Batch({})
    placeholder = np.zeros_like(first)
    arrays = [placeholder if array is None else array for array in loaded]
    batch = Batch({name: modality.collate(arrays)})
    if all(array is not None for array in loaded):
        return batch
    present = torch.tensor([array is not None for array in loaded])
    return batch.with_columns(present={name: present})
