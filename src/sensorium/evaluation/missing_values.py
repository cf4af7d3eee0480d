"""How much a model that predicts loses where values are missing: masked, as it does, beside filled in, as others do.

N rows   C columns that it reads
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.validate_prediction import predict_rows
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category
from sensorium.modalities.text import Text
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch, ColumnKey

MISSING_FRACTIONS = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9)
ScoreFunction = Callable[[Mapping[str, Tensor], Batch], dict[str, float]]


@dataclass(frozen=True)
class MissingValuePoint:
    """Scores of each target with that share of the values that are there hidden."""

    missing_fraction: float
    masked: dict[str, float]
    imputed: dict[str, float]


def evaluate_missing_values(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: np.ndarray,
    inputs: Mapping[str, Modality],
    targets: Sequence[str],
    score: ScoreFunction,
) -> Iterator[MissingValuePoint]:
    """Hide more and more values at random, the same ones each time and some more: masked, and filled in instead.

    Filled in is the mean of a number or a date, the most common class, no tag, a picture of mean colour, an empty text,
    a series at its mean throughout; each marked as there. What the data themselves lack stays missing in both.
    """
    drawn = torch.rand(len(prepared), len(inputs), generator=torch.Generator().manual_seed(0))
    for share in MISSING_FRACTIONS:
        hide = ValueMasking(inputs, drawn < share)
        found = [
            score(*predict_rows(model, prepared, rows, targets, change))
            for change in (hide.mask, hide.impute)
        ]
        yield MissingValuePoint(share, *found)


def imputation_value(modality: Modality, values: Tensor) -> Tensor:
    """A value like those of a batch, that says as little as a value can."""
    plain = torch.zeros_like(values[0])
    match modality:
        case Text():
            empty = torch.tensor(
                [modality.end] if modality.start is None else [modality.start, modality.end]
            )[: len(plain)]
            plain.fill_(modality.pad)[: len(empty)] = empty
        case Category(counts=counts):
            plain.fill_(int(np.argmax(counts)) if counts else 0)
        case Datetime():
            plain.copy_(modality.collate([np.array(modality.mean)])[0])
        case Series():
            plain[:, plain.shape[1] // 2 :] = 1  # the second half says that the first is there
    return plain


@dataclass(frozen=True)
class ValueMasking:
    """Which values of the columns are hidden from a model, in all rows of a data set."""

    inputs: Mapping[str, Modality]
    hidden: Bool[Tensor, "N C"]

    def mask(self, batch: Batch) -> Batch:
        """The batch without them."""
        return batch.with_columns(
            present={
                name: there & ~self._hidden_in_batch(i, batch)
                for i, name, there in self._iter_columns(batch)
            }
        )

    def impute(
        self, batch: Batch, imputer: Callable[[Modality, Tensor], Tensor] = imputation_value
    ) -> Batch:
        """The batch with what `by` makes in their place, marked as there."""
        values: dict[ColumnKey, Tensor] = {}
        for i, name, there in self._iter_columns(batch):
            at = self._hidden_in_batch(i, batch) & there
            values[name] = batch[name].clone()
            values[name][at] = imputer(self.inputs[name], batch[name])
        return batch.with_columns(values)

    def _iter_columns(self, batch: Batch) -> Iterator[tuple[int, str, Bool[Tensor, "B"]]]:
        for i, name in enumerate(self.inputs):
            if name in batch:
                yield i, name, batch.presence(name)

    def _hidden_in_batch(self, column: int, batch: Batch) -> Bool[Tensor, "B"]:
        assert batch.row is not None
        return self.hidden[batch.row, column]


def keep_columns(model: MultimodalPredictor, columns: Sequence[str]) -> Callable[[Batch], Batch]:
    """Batches in which nothing but these columns is there."""
    hidden = set(model.columns) - set(columns)
    return lambda batch: batch.select(set(batch.columns) - hidden)


def relative_loss(
    points: Sequence[MissingValuePoint], target: str, missing_fraction: float = 0.5
) -> float | None:
    """Of what filling in loses with such a share hidden, the part that is lost all the same; None: it loses nothing."""
    whole, half = points[0], next(p for p in points if p.missing_fraction == missing_fraction)
    loses = whole.imputed[target] - half.imputed[target]
    return (whole.masked[target] - half.masked[target]) / loses if loses > 0 else None
