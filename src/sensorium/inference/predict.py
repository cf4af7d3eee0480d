"""The verb `predict`: raw values of any columns in, any of them missing; labels, numbers, ranks or tags out.

N rows   C classes   K numbers that a head says
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.inference.base import eval_mode
from sensorium.inference.request import as_lists, collate_column, iter_batches
from sensorium.metrics.calibration import conformal_sets
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric
from sensorium.models.calibration import Calibration, predicted_class
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch


@dataclass(frozen=True)
class Prediction:
    """What is said of one target. `value`: a label, a number or a list of tags for each row; None: it abstains.

    probability: of each class or tag, in the order of `classes`. spread: standard deviation of a number.
    among, interval: classes, or the ends of a range, that hold the truth with the probability asked for.
    """

    value: list[Any]
    classes: tuple[str, ...] = ()
    probability: Float[np.ndarray, "N C"] | None = None
    prediction_set: list[list[str]] | None = None
    std: Float[np.ndarray, "N"] | None = None
    interval: Float[np.ndarray, "N 2"] | None = None


class Predictor:
    """predict(photo=["a.jpg"], title=["red shoe"], size=[None]) → {target: Prediction}."""

    def __init__(
        self,
        model: MultimodalPredictor,
        columns: Mapping[str, Modality],
        targets: Mapping[str, Modality],
    ):
        self.model, self.columns, self.targets = model, dict(columns), dict(targets)

    def __call__(
        self,
        rows: Sequence[Mapping[str, Any]] | None = None,
        /,
        *,
        coverage: float = 0.9,
        min_accuracy: float = 0.0,
        batch_size: int = 256,
        **columns: Any,
    ) -> dict[str, Prediction]:
        """What is said of each target of each row.

        Give `rows`, a mapping from column to raw value for each; or columns as keywords, each a list with None where a
        value is missing. A column not named is missing in all rows. A row without any value gets what is said where
        nothing is known, with a warning.
        coverage: of the intervals, and of the sets of classes: how often they hold the truth (split conformal, from the
        validation rows; endless where these were too few). accuracy: how often the labels and ranks that are said are
        to be right; rows that are not sure enough for that get None. 0: all are answered.
        Raises SensoriumError for a column the model does not read, and naming a value that cannot be read.
        """
        given = as_lists(
            columns if rows is None else self._to_columns(rows),
            list(self.columns),
            " and ".join(self.targets),
        )
        n = len(rows) if rows is not None else len(next(iter(given.values()), []))
        if not n:
            raise SensoriumError(
                "predict was given no row: give rows, or a list of values for some column"
            )
        given = {
            name: [None if _is_missing(v) else v for v in values] for name, values in given.items()
        }
        empty = sum(all(values[i] is None for values in given.values()) for i in range(n))
        if empty:
            warnings.warn(
                f"{empty} of {n} rows have a value in none of {', '.join(self.columns)}: they get what is "
                "said where nothing is known",
                stacklevel=2,
            )
        said = [self._compute_logits(some) for some, _ in iter_batches(given, n, 1, batch_size)]
        return {
            name: decode_prediction(
                modality,
                torch.cat([part[name] for part in said]),
                self.model.get_calibration(name),
                coverage,
                min_accuracy,
            )
            for name, modality in self.targets.items()
        }

    def _to_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: [row.get(name) for row in rows] for name in names or list(self.columns)[:1]}

    def _compute_logits(self, inputs: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        batch = Batch({}, row=torch.arange(len(next(iter(inputs.values())))))
        for name, values in inputs.items():
            batch = batch.merge(collate_column(name, self.columns[name], values))
        with eval_mode(self.model), torch.inference_mode():
            return self.model(batch)


def decode_prediction(
    target: Modality,
    logits: Float[Tensor, "N K"],
    calibration: Calibration,
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
) -> Prediction:
    """A head's numbers as what they mean."""
    bound = calibration.conformal_quantile(coverage)
    match target:
        case Category(classes=classes):
            p = calibration.probabilities(target, logits)
            answer = predicted_class(target, p)
            sure = p.gather(1, answer[:, None])[:, 0] >= (
                calibration.selective_threshold(min_accuracy) if min_accuracy else 0
            )
            value = [
                classes[i] if s else None
                for i, s in zip(answer.tolist(), sure.tolist(), strict=True)
            ]
            among = [
                [c for c, held in zip(classes, row, strict=True) if held]
                for row in conformal_sets(p, bound).tolist()
            ]
            return Prediction(value, classes, p.numpy(), among)
        case Multilabel(tags=tags):
            p = calibration.probabilities(target, logits)
            return Prediction([target.decode(row) for row in p], tags, p.numpy())
        case Numeric():
            found = calibration.distribution(logits)
            ends = found.mean[:, None] + found.std[:, None] * torch.tensor([-bound, bound])
            return Prediction(
                [target.decode(value) for value in found.mean],
                std=found.std.numpy() * target.std,
                interval=ends.numpy() * target.std + target.mean,
            )
    raise SensoriumError(f"a column of kind {target.kind} cannot be predicted")


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
