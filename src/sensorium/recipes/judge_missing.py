"""How much a model that predicts loses where values are missing: masked, as it does, beside filled in, as others do.

    N rows   C columns that it reads
"""
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sensorium.data.cache import Prepared
from sensorium.fused import Fused
from sensorium.modalities.dates import Date
from sensorium.modalities.modality import Modality
from sensorium.modalities.series import Series
from sensorium.modalities.table import Category
from sensorium.modalities.text import Text
from sensorium.recipes.prediction import said_of
from sensorium.tokens import Batch, ColumnKey

SHARES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
Score = Callable[[Mapping[str, Tensor], Batch], dict[str, float]]


@dataclass(frozen=True)
class Point:
    """Scores of each target with that share of the values that are there hidden."""

    share: float
    masked: dict[str, float]
    filled: dict[str, float]


def against_missing(model: Fused, prepared: Prepared, rows: np.ndarray, reads: Mapping[str, Modality],
                    targets: Sequence[str], score: Score) -> Iterator[Point]:
    """Hide more and more values at random, the same ones each time and some more: masked, and filled in instead.

    Filled in is the mean of a number or a date, the most common class, no tag, a picture of mean colour, an empty text,
    a series at its mean throughout; each marked as there. What the data themselves lack stays missing in both.
    """
    drawn = torch.rand(len(prepared), len(reads), generator=torch.Generator().manual_seed(0))
    for share in SHARES:
        hide = Hiding(reads, drawn < share)
        found = [score(*said_of(model, prepared, rows, targets, change)) for change in (hide.masked, hide.filled)]
        yield Point(share, *found)


def nothing(of: Modality, values: Tensor) -> Tensor:
    """A value like those of a batch, that says as little as a value can."""
    plain = torch.zeros_like(values[0])
    match of:
        case Text():
            empty = torch.tensor([of.end] if of.start is None else [of.start, of.end])[:len(plain)]
            plain.fill_(of.pad)[:len(empty)] = empty
        case Category(counts=counts):
            plain.fill_(int(np.argmax(counts)) if counts else 0)
        case Date():
            plain.copy_(of.collate([np.array(of.mean)])[0])
        case Series():
            plain[:, plain.shape[1] // 2:] = 1          # the second half says that the first is there
    return plain


@dataclass(frozen=True)
class Hiding:
    """Which values of the columns are hidden from a model, in all rows of a data set."""

    reads: Mapping[str, Modality]
    gone: Bool[Tensor, "N C"]

    def masked(self, batch: Batch) -> Batch:
        """The batch without them."""
        return batch.changed(present={name: there & ~self._gone(i, batch) for i, name, there in self._given(batch)})

    def filled(self, batch: Batch, by: Callable[[Modality, Tensor], Tensor] = nothing) -> Batch:
        """The batch with what `by` makes in their place, marked as there."""
        values: dict[ColumnKey, Tensor] = {}
        for i, name, there in self._given(batch):
            at = self._gone(i, batch) & there
            values[name] = batch[name].clone()
            values[name][at] = by(self.reads[name], batch[name])
        return batch.changed(values)

    def _given(self, batch: Batch) -> Iterator[tuple[int, str, Bool[Tensor, "B"]]]:
        for i, name in enumerate(self.reads):
            if name in batch:
                yield i, name, batch.there(name)

    def _gone(self, i: int, batch: Batch) -> Bool[Tensor, "B"]:
        assert batch.row is not None
        return self.gone[batch.row, i]


def only(model: Fused, part: Sequence[str]) -> Callable[[Batch], Batch]:
    """Batches in which nothing but these columns is there."""
    hidden = set(model.columns) - set(part)
    return lambda batch: batch.only(set(batch.columns) - hidden)


def lost(points: Sequence[Point], target: str, share: float = 0.5) -> float | None:
    """Of what filling in loses with such a share hidden, the part that is lost all the same; None: it loses nothing."""
    whole, half = points[0], next(p for p in points if p.share == share)
    loses = whole.filled[target] - half.filled[target]
    return (whole.masked[target] - half.masked[target]) / loses if loses > 0 else None
