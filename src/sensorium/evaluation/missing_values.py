"""Evaluate a predictor with values hidden: masked, and imputed instead.

N rows of the dataset   B rows of a batch   C input columns
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
    """Scores with a fraction of the present values hidden.

    Attributes:
        missing_fraction: the fraction of values that are hidden.
        masked: score of each target with hidden values masked.
        imputed: score of each target with hidden values imputed.
    """

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
    """Yield scores with a growing random fraction of values hidden, masked and imputed.

    The values hidden at one fraction are hidden at every larger one. Values that the data lack stay
    missing in both cases. See `imputation_value` for the imputed values.

    Args:
        model: the predictor.
        prepared: the dataset.
        rows: rows to evaluate.
        inputs: modality of each input column.
        targets: target columns.
        score: computes {target: score} of model outputs and labels.
    """
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(len(prepared), len(inputs), generator=generator)
    for fraction in MISSING_FRACTIONS:
        masking = ValueMasking(inputs, uniform < fraction)
        masked = score(*predict_rows(model, prepared, rows, targets, masking.mask))
        imputed = score(*predict_rows(model, prepared, rows, targets, masking.impute))
        yield MissingValuePoint(fraction, masked, imputed)


def imputation_value(modality: Modality, values: Tensor) -> Tensor:
    """Return an uninformative value of a column, to impute a missing one.

    The mean of a number or date, the most common class, no tag, an image of the mean color, an
    empty text, a series that is constant at its mean.

    Args:
        modality: the settings of the column.
        values: a batch of the column, for shape and type.
    """
    value = torch.zeros_like(values[0])
    match modality:
        case Text():
            empty = [modality.end] if modality.start is None else [modality.start, modality.end]
            tokens = torch.tensor(empty)[: len(value)]
            value.fill_(modality.pad)[: len(tokens)] = tokens
        case Category(counts=counts):
            value.fill_(int(np.argmax(counts)) if counts else 0)
        case Datetime():
            value.copy_(modality.collate([np.array(modality.mean)])[0])
        case Series():
            value[:, value.shape[1] // 2 :] = 1  # the second half marks steps of the first as valid
        case _:
            pass
    return value


@dataclass(frozen=True)
class ValueMasking:
    """Values of the input columns that are hidden from a model.

    Attributes:
        inputs: modality of each input column.
        hidden: whether a value is hidden, for all rows of the dataset.
    """

    inputs: Mapping[str, Modality]
    hidden: Bool[Tensor, "N C"]

    def mask(self, batch: Batch) -> Batch:
        """Return the batch with the hidden values marked as missing."""
        present: dict[ColumnKey, Tensor] = {
            name: presence & ~self._hidden_in_batch(i, batch)
            for i, name, presence in self._iter_columns(batch)
        }
        return batch.with_columns(present=present)

    def impute(
        self, batch: Batch, imputer: Callable[[Modality, Tensor], Tensor] = imputation_value
    ) -> Batch:
        """Return the batch with the hidden values replaced by those of `imputer`, as present."""
        values: dict[ColumnKey, Tensor] = {}
        for i, name, presence in self._iter_columns(batch):
            replaced = self._hidden_in_batch(i, batch) & presence
            values[name] = batch[name].clone()
            values[name][replaced] = imputer(self.inputs[name], batch[name])
        return batch.with_columns(values)

    def _iter_columns(self, batch: Batch) -> Iterator[tuple[int, str, Bool[Tensor, "B"]]]:
        """Yield index, name and presence of each input column of the batch."""
        for i, name in enumerate(self.inputs):
            if name in batch:
                yield i, name, batch.presence(name)

    def _hidden_in_batch(self, column: int, batch: Batch) -> Bool[Tensor, "B"]:
        if batch.row is None:
            raise ValueError("The batch has no row numbers.")
        return self.hidden[batch.row, column]


def keep_columns(model: MultimodalPredictor, columns: Sequence[str]) -> Callable[[Batch], Batch]:
    """Return a function that removes all other input columns from a batch."""
    hidden = set(model.columns) - set(columns)
    return lambda batch: batch.select(set(batch.columns) - hidden)


def relative_loss(
    points: Sequence[MissingValuePoint], target: str, missing_fraction: float = 0.5
) -> float | None:
    """Return the loss of score by masking, as a fraction of the loss by imputation.

    Args:
        points: scores by fraction, beginning with nothing hidden.
        target: the target column.
        missing_fraction: the fraction at which losses are compared.

    Returns:
        The ratio, or None where imputation loses nothing.
    """
    complete = points[0]
    partial = next(p for p in points if p.missing_fraction == missing_fraction)
    imputation_loss = complete.imputed[target] - partial.imputed[target]
    masking_loss = complete.masked[target] - partial.masked[target]
    return masking_loss / imputation_loss if imputation_loss > 0 else None
