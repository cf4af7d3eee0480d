"""What the verb `generate` is asked with: raw values by name, as the batch that a model reads."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch

from sensorium.errors import SensoriumError
from sensorium.inference.base import load_value
from sensorium.modalities.base import Modality
from sensorium.nn.tokens import Batch

RawInputs = Mapping[str, Sequence[Any]]


def as_lists(
    inputs: Mapping[str, Any], allowed: Sequence[str], output_modality: str
) -> dict[str, list[Any]]:
    """Each keyword as a list, all of one length; a single value is a list of one, and None is a value that is missing.

    Raises SensoriumError for a keyword that is not `known`, and for lists of several lengths.
    """
    if unknown := set(inputs) - set(allowed):
        raise SensoriumError(
            f"this model makes {output_modality} and is given {', '.join(allowed)}, not {min(unknown)}"
        )
    single = str | bytes | Path | PIL.Image.Image | np.ndarray
    found = {
        name: [values] if isinstance(values, single) else list(values)
        for name, values in inputs.items()
    }
    sizes = {name: len(values) for name, values in found.items()}
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} of {name}" for name, size in sizes.items())
        raise SensoriumError(f"{told}: give as many of each, with None where one is missing")
    return found


def require_output(modality: str | None, supported: str, **counts: int) -> None:
    """Raises SensoriumError where `what` is asked of a model that makes `this`, and for a count below 1."""
    if modality not in (None, supported):
        raise SensoriumError(f"this model makes {supported}, not {modality}")
    for name, count in counts.items():
        if count < 1:
            raise SensoriumError(f"{name}={count}: expected 1 or more")


def iter_batches(
    inputs: RawInputs, num_rows: int, n: int, batch_size: int
) -> Iterator[tuple[dict[str, list[Any]], tuple[int, ...]]]:
    """`size` rows at a time, each row `n` times over; and a number for each to draw by: see `number`."""
    every = [(row, which) for row in range(num_rows) for which in range(n)]
    for start in range(0, len(every), batch_size):
        some = every[start : start + batch_size]
        yield (
            {name: [values[row] for row, _ in some] for name, values in inputs.items()},
            tuple(
                row_seed({name: values[row] for name, values in inputs.items()}, which)
                for row, which in some
            ),
        )


def row_seed(values: Mapping[str, Any], sample_index: int) -> int:
    """What the answer `which` to these values is drawn by: other words, other chances, whatever stands beside them."""
    words = [f"{name}={value}" for name, value in sorted(values.items()) if isinstance(value, str)]
    digest = hashlib.sha256(
        "\0".join([str(sample_index), *words]).encode("utf-8", "surrogatepass")
    ).digest()
    return int.from_bytes(digest[:8], "little")


def collate_column(name: str, modality: Modality, values: Sequence[Any]) -> Batch:
    """Raw values of one part or column as a batch, which is without the part where all are missing."""
    there = [load_value(modality, value) for value in values if value is not None]
    if not there:
        return Batch({})
    found, nothing = iter(there), np.zeros_like(there[0])
    batch = Batch(
        {name: modality.collate([nothing if value is None else next(found) for value in values])}
    )
    return (
        batch
        if len(there) == len(values)
        else batch.with_columns(
            present={name: torch.tensor([value is not None for value in values])}
        )
    )
