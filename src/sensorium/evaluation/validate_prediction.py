"""Validation and calibration of recipes that predict: loss and one metric for each target."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.prepared import PreparedDataset
from sensorium.evaluation.spec import Calibrate, Predictions, Validate, ValidationResult, picklable
from sensorium.modalities.base import Modality
from sensorium.models.calibration import Calibration, monotone_logits
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch
from sensorium.objectives.supervised import (
    ClassificationTarget,
    MultilabelTarget,
    OrdinalTarget,
    RegressionTarget,
    SupervisedLoss,
    Target,
)

BATCH_SIZE = 512  # rows predicted at a time


@torch.inference_mode()
def predict_rows(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: np.ndarray,
    targets: Sequence[str],
    transform: Callable[[Batch], Batch] | None = None,
) -> tuple[dict[str, Tensor], Batch]:
    """Predict rows of a dataset.

    Args:
        model: the predictor.
        prepared: the dataset.
        rows: rows to predict.
        targets: target columns.
        transform: applied to each batch before the model reads it; None: nothing.

    Returns:
        (raw outputs of each target, the target columns of the same rows).
    """
    outputs, labels = [], []
    for batch_rows in iter_batches(rows, BATCH_SIZE):
        batch = prepared.batch(batch_rows)
        outputs.append(model(transform(batch) if transform else batch))
        labels.append(batch.select(targets))
    return concat_batches(outputs), Batch.concat(labels)


def concat_batches(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Concatenate the outputs of several batches, by target."""
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@picklable
def prediction_validator(
    objective: SupervisedLoss, targets: Mapping[str, Modality]
) -> Validate[MultimodalPredictor]:
    """Return a validator that computes val_loss and accuracy, R2 or F1 of each target.

    The loss is that after calibration: confidence is corrected when weights are saved, and should
    not decide which weights are best. With several targets, metrics are prefixed by the target.
    """
    names = list(targets)

    def validate(
        model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        outputs, labels = predict_rows(model, prepared, rows, names)
        metrics = {"val_loss": 0.0}
        for name, modality in targets.items():
            labelled = objective.has_target(name, labels)
            if not labelled.any():
                continue
            target = objective.targets[name]
            logits, y = outputs[name][labelled], labels[name][labelled]
            loss, _ = calibrated_loss(target, modality, logits, y)
            metrics["val_loss"] += loss
            metric, value = target_metric(target, logits, y)
            metrics[metric if len(names) == 1 else f"{name} {metric}"] = value
        return ValidationResult(metrics, Predictions(outputs, labels))

    return validate


def calibrated_loss(
    target: Target, modality: Modality, logits: Tensor, y: Tensor
) -> tuple[float, Calibration]:
    """Return the loss after calibration on the same rows, and that calibration."""
    calibration = Calibration()
    calibration.fit_scale(modality, logits, y)
    return target.loss(calibration.scale_logits(modality, logits), y).mean().item(), calibration


@picklable
def prediction_calibrator(targets: Mapping[str, Modality]) -> Calibrate[MultimodalPredictor]:
    """Return a hook that fits the calibration of each head on validation rows."""

    def fit(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        predictions: Predictions | None,
    ) -> None:
        if predictions is None:
            predictions = Predictions(*predict_rows(model, prepared, rows, [*targets]))
        labels = predictions.targets
        for name, modality in targets.items():
            labelled = labels.presence(name)
            logits = predictions.outputs[name][labelled]
            model.get_calibration(name).fit(modality, logits, labels[name][labelled])

    return fit


def target_metric(target: Target, logits: Tensor, y: Tensor) -> tuple[str, float]:
    """Return name and value of the metric that is shown during training."""
    match target:
        case ClassificationTarget():
            return "accuracy", (logits.argmax(1) == y).double().mean().item()
        case OrdinalTarget():
            predicted = (monotone_logits(logits) > 0).sum(1)
            return "accuracy", (predicted == y).double().mean().item()
        case MultilabelTarget():
            predicted, expected = logits > 0, y[:, : logits.shape[1]] > 0
            hits = 2 * (predicted & expected).sum()
            return "F1", (hits / (predicted.sum() + expected.sum()).clamp(min=1)).item()
        case RegressionTarget():
            residual = (y - logits[:, 0]).square().sum()
            total = (y - y.mean()).square().sum().clamp(min=1e-12)
            return "R2", 1 - (residual / total).item()
        case _:
            raise TypeError(f"{type(target).__name__} is not a known kind of target.")
