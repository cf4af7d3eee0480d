"""What a frozen encoder says of every value of a column, worked out once and read from disk ever after.

    N rows   D width   B batch

A file's name is a hash of the pictures or texts, of how they are read, and of the encoder's weights.
"""
import hashlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Float, Int
from rich.console import Console
from torch import Tensor

from sensorium.data.cache import Captions, Pictures, Prepared, Source, Stored
from sensorium.data.once import once
from sensorium.data.schema import Schema
from sensorium.tokens import ColumnKey, column_label

VERSION = 1                             # of what an encoder says: another version asks it anew
PIECE = 64                              # values at a time


class Vectors:
    """One vector for each value of a column; zeros where there is none."""

    def __init__(self, values: Float[Tensor, "N D"], column: Stored):
        self.values, self.valid, self.wrong = values, column.valid, column.wrong

    def batch(self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, how: Mapping[str, float]) -> Tensor:
        return self.values[torch.from_numpy(rows)]


def vectors(whole: Callable[[Tensor], Float[Tensor, "B D"]], fingerprint: str, dataset: Source, column: ColumnKey,
            schema: Schema, *, quiet: bool = False) -> Stored:
    """The vector of every value, read as `schema` says; a column of several captions a row, of nothing, or neither of
    pictures nor of texts, comes as it is. Raises SensoriumError as `Prepared` does.

    whole: what an encoder says of a batch of values. fingerprint: a hash of its weights.
    """
    stored = Prepared(dataset, schema, (column,), max_bad=1.0, quiet=quiet).columns[column]
    if not isinstance(stored, Pictures | Captions) or not stored.valid.any():
        return stored
    if isinstance(stored, Captions) and stored.counts.max() > 1:
        Console(stderr=True, quiet=quiet).print(f"{column_label(column)}: several texts a row, so what reads them does "
                                                "so in each epoch, not once", highlight=False, markup=False)
        return stored
    name = stored.name if isinstance(stored, Pictures) else _name(stored)

    @torch.inference_mode()
    def said() -> Float[Tensor, "N D"]:
        rows = stored.valid.nonzero()[0]
        pieces = (rows[i:i + PIECE] for i in range(0, len(rows), PIECE))
        found = torch.cat([whole(stored.batch(piece, None, {})) for piece in pieces])
        return found.new_zeros(len(stored.valid), found.shape[1]).index_copy(0, torch.from_numpy(rows), found)

    asked = [VERSION, fingerprint, name, schema[column].to_json()]
    told = f"reading {column_label(column)} once"
    return Vectors(once("vectors", asked, said, told, Console(stderr=True, quiet=quiet)), stored)


def _name(texts: Captions) -> str:
    """A hash of what the texts are."""
    whole = hashlib.sha256(texts.ids.tobytes())
    whole.update(texts.counts.tobytes() + texts.lengths.tobytes())
    return whole.hexdigest()
