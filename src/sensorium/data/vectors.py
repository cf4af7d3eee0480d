"""What a frozen encoder says of every picture of a column, worked out once and read from disk ever after.

    N rows   D width   B batch

A file's name is a hash of the pictures, of how they are read, and of the encoder's weights.
"""
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from sensorium.data.cache import Pictures, Prepared, Source
from sensorium.data.once import once
from sensorium.data.schema import Schema

VERSION = 1                             # of what an encoder says: another version asks it anew
PIECE = 64                              # pictures at a time


class Vectors:
    """One vector for each picture of a column."""

    def __init__(self, values: Float[Tensor, "N D"], pictures: Pictures):
        self.values, self.valid, self.wrong = values, pictures.valid, pictures.wrong

    def batch(self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, how: Mapping[str, float]) -> Tensor:
        return self.values[torch.from_numpy(rows)]


def vectors(whole: Callable[[Tensor], Float[Tensor, "B D"]], fingerprint: str, dataset: Source, column: str,
            schema: Schema, *, quiet: bool = False) -> Vectors:
    """The vector of every picture, read as `schema` says. Raises SensoriumError as `Prepared` does.

    whole: what an encoder says of a batch of pictures. fingerprint: a hash of its weights.
    """
    pictures = Prepared(dataset, schema, (column,), max_bad=1.0, quiet=quiet).columns[column]
    assert isinstance(pictures, Pictures)
    asked = [VERSION, fingerprint, pictures.name, schema[column].to_json()]

    @torch.inference_mode()
    def said() -> Float[Tensor, "N D"]:
        rows = np.arange(len(pictures.pixels))
        return torch.cat([whole(pictures.batch(rows[i:i + PIECE], None, {})) for i in rows[::PIECE].tolist()])

    seen = once("vectors", asked, said, f"looking at {column} once", Console(stderr=True, quiet=quiet))
    return Vectors(seen, pictures)
