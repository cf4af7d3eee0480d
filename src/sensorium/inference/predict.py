"""The verb `predict`: raw values of any columns, some of them missing, to predictions of targets.

N rows   C classes or tags   K outputs of a head
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
from sensorium.inference.request import (
    RawInputs,
    Unreadable,
    as_lists,
    collate_column,
    iter_request_batches,
)
from sensorium.metrics.calibration import conformal_sets
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric
from sensorium.models.calibration import Calibration, predicted_class
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch


@dataclass(frozen=True)
class Prediction:
    """The predictions of one target.

    Attributes:
        value: For each row a class, a number or a list of tags; None if the model abstains.
        classes: Names of the classes or tags.
        probability: Probability of each class or tag, in the order of `classes`.
        prediction_set: Classes that contain the true one with the requested coverage.
        std: Standard deviation of each number.
        interval: Lower and upper bound that contain the true number with the requested coverage,
            within the natural bounds of the column.
    """

    value: list[Any]
    classes: tuple[str, ...] = ()
    probability: Float[np.ndarray, "N C"] | None = None
    prediction_set: list[list[str]] | None = None
    std: Float[np.ndarray, "N"] | None = None
    interval: Float[np.ndarray, "N 2"] | None = None


class Predictor:
    """Predict targets: `predict(photo=["a.jpg"], title=["red shoe"])` → {target: Prediction}.

    Args:
        model: The trained model.
        columns: Settings of the input columns.
        targets: Settings of the target columns.
    """

    def __init__(
        self,
        model: MultimodalPredictor,
        columns: Mapping[str, Modality],
        targets: Mapping[str, Modality],
    ):
        self.model = model
        self.columns = dict(columns)
        self.targets = dict(targets)

    def __call__(
        self,
        rows: Any = None,
        /,
        *,
        coverage: float = 0.9,
        min_accuracy: float = 0.0,
        batch_size: int = 256,
        unreadable: list[Unreadable] | None = None,
        **columns: Any,
    ) -> Any:
        """Return the predictions of each target for all rows; of a DataFrame, as a DataFrame.

        A column that is not given is missing in all rows. For a row without any value the model
        predicts from no input, with a warning.

        Args:
            rows: One mapping per row, from column to raw value, or a pandas DataFrame, of which
                only the columns that the model reads are used. Alternatively, give `columns`.
            coverage: Probability that intervals and prediction sets contain the true value (split
                conformal prediction on the validation rows; unbounded if these were too few).
            min_accuracy: Selective prediction: accuracy that labels and ranks must reach; rows with
                a lower confidence get None. 0 predicts all rows.
            batch_size: Rows per forward pass.
            unreadable: A list to which values that cannot be read are appended; these are masked.
                None: they are an error.
            **columns: Column → list of raw values, with None or NaN for a missing value.

        Raises:
            SensoriumError: If there is no row, the model does not read a column, or a value cannot
                be read.
        """
        from sensorium.inference.prediction_table import is_data_frame  # it knows Prediction

        if is_data_frame(rows):
            options = (coverage, min_accuracy, batch_size, unreadable)
            return self._predict_frame(rows, *options)
        inputs = as_lists(
            columns if rows is None else self._to_columns(rows),
            list(self.columns),
            " and ".join(self.targets),
        )
        num_rows = len(rows) if rows is not None else len(next(iter(inputs.values()), []))
        if not num_rows:
            raise SensoriumError(
                "predict got no rows. Give rows, or a list of values for at least one column."
            )
        inputs = {
            name: [None if _is_missing(value) else value for value in values]
            for name, values in inputs.items()
        }
        self._warn_empty_rows(inputs, num_rows)
        batches = iter_request_batches(inputs, num_rows, 1, batch_size)
        starts = range(0, num_rows, batch_size)
        outputs = [
            self._compute_logits(batch, start, unreadable)
            for start, (batch, _) in zip(starts, batches, strict=True)
        ]
        return {
            name: decode_prediction(
                target,
                torch.cat([logits[name] for logits in outputs]),
                self.model.get_calibration(name),
                coverage,
                min_accuracy,
            )
            for name, target in self.targets.items()
        }

    def _to_columns(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        names = list(dict.fromkeys(name for row in rows for name in row))
        if not names:
            names = list(self.columns)[:1]  # all rows are empty
        return {name: [row.get(name) for row in rows] for name in names}

    def _warn_empty_rows(self, inputs: RawInputs, num_rows: int) -> None:
        empty = sum(all(values[i] is None for values in inputs.values()) for i in range(num_rows))
        if empty:
            warnings.warn(
                f"{empty} of {num_rows} rows have no value in any of {', '.join(self.columns)}; "
                "their predictions are based on no input.",
                stacklevel=3,
            )

    def _predict_frame(
        self,
        frame: Any,
        coverage: float,
        min_accuracy: float,
        batch_size: int,
        unreadable: list[Unreadable] | None,
    ) -> Any:
        from sensorium.inference.prediction_table import frame_columns, to_frame

        columns = frame_columns(frame, list(self.columns))
        if not columns:
            raise SensoriumError(
                "The DataFrame has none of the columns that the model reads: "
                f"{', '.join(self.columns)}."
            )
        rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        predictions = self(
            rows,
            coverage=coverage,
            min_accuracy=min_accuracy,
            batch_size=batch_size,
            unreadable=unreadable,
        )
        return to_frame(predictions, self.targets, frame.index)

    def _compute_logits(
        self, inputs: RawInputs, start: int, unreadable: list[Unreadable] | None
    ) -> dict[str, Tensor]:
        batch = Batch({}, row=torch.arange(len(next(iter(inputs.values())))))
        for name, values in inputs.items():
            errors: dict[int, str] = {}
            batch = batch.merge(collate_column(name, self.columns[name], values, errors))
            if errors and unreadable is None:
                i, why = min(errors.items())
                raise SensoriumError(
                    f"Row {start + i}, column {name!r}: {why.rstrip('.')}. Give None for a missing "
                    "value, or unreadable=[], a list that gets such values; they are then missing."
                )
            if unreadable is not None:
                unreadable += [Unreadable(start + i, name, why) for i, why in errors.items()]
        with eval_mode(self.model), torch.inference_mode():
            return self.model(batch)


def decode_prediction(
    target: Modality,
    logits: Float[Tensor, "N K"],
    calibration: Calibration,
    coverage: float = 0.9,
    min_accuracy: float = 0.0,
) -> Prediction:
    """Return the prediction that the outputs of a head stand for.

    Args:
        target: Settings of the target column.
        logits: Outputs of the head.
        calibration: Calibration of the head.
        coverage: Probability that intervals and prediction sets contain the true value.
        min_accuracy: Accuracy that labels and ranks must reach; 0 predicts all rows.

    Raises:
        SensoriumError: If the modality of the target cannot be predicted, or `coverage` or
            `min_accuracy` is out of range.
    """
    quantile = calibration.conformal_quantile(coverage)
    match target:
        case Category():
            return _decode_category(target, logits, calibration, quantile, min_accuracy)
        case Multilabel(tags=tags):
            p = calibration.probabilities(target, logits)
            return Prediction([target.decode(row) for row in p], tags, p.numpy())
        case Numeric():
            prediction = calibration.decode(target, logits)
            return Prediction(
                prediction.mean.tolist(),
                std=prediction.std.numpy(),
                interval=calibration.interval(target, logits, quantile).numpy(),
            )
        case _:
            raise SensoriumError(
                f"A column of type {target.kind} cannot be predicted. "
                "Use a target of type category, ordinal, multilabel or numeric."
            )


def _decode_category(
    target: Category,
    logits: Float[Tensor, "N K"],
    calibration: Calibration,
    quantile: float,
    min_accuracy: float,
) -> Prediction:
    p = calibration.probabilities(target, logits)
    predicted = predicted_class(target, p)
    confidence = p.gather(1, predicted[:, None])[:, 0]
    threshold = calibration.selective_threshold(min_accuracy) if min_accuracy else 0
    accepted = confidence >= threshold
    values = [
        target.classes[i] if accept else None
        for i, accept in zip(predicted.tolist(), accepted.tolist(), strict=True)
    ]
    prediction_set = [
        [name for name, included in zip(target.classes, row, strict=True) if included]
        for row in conformal_sets(p, quantile).tolist()
    ]
    return Prediction(values, target.classes, p.numpy(), prediction_set)


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
