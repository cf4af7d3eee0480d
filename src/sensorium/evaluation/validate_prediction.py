"""Validation for recipes that predict: the loss on held-out rows, and one plain figure for each target."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sensorium.data.cache.prepared import PreparedDataset
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
from sensorium.recipes.recipe import Calibrate, Predictions, Validate, ValidationResult

BATCH_SIZE = 512  # rows at a time


@torch.inference_mode()
def predict_rows(
    model: MultimodalPredictor,
    prepared: PreparedDataset,
    rows: np.ndarray,
    targets: Sequence[str],
    transform: Callable[[Batch], Batch] = lambda batch: batch,
) -> tuple[dict[str, Tensor], Batch]:
    """(what the model says of each target, the targets themselves) of `rows`. change: of what it is shown."""
    said, true = [], []
    for start in range(0, len(rows), BATCH_SIZE):
        batch = prepared.batch(rows[start : start + BATCH_SIZE])
        said.append(model(transform(batch)))
        true.append(batch.select(targets))
    return concat_batches(said), Batch.concat(true)


def concat_batches(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pieces of what is said of each target as one."""
    return {name: torch.cat([part[name] for part in batches]) for name in batches[0]}


def prediction_validator(
    objective: SupervisedLoss, targets: Mapping[str, Modality]
) -> Validate[MultimodalPredictor]:
    """val_loss, and of each target accuracy, R² or F1; those of several targets by name.

    The loss is that of what would be said after calibration: how sure a model is of itself is mended when it is kept,
    and must not decide which one is.
    """
    names = list(targets)

    def evaluate(
        model: MultimodalPredictor, prepared: PreparedDataset, rows: np.ndarray
    ) -> ValidationResult:
        said, true = predict_rows(model, prepared, rows, names)
        figures = {"val_loss": 0.0}
        for name, of in targets.items():
            known, kind = objective.has_target(name, true), objective.targets[name]
            if known.any():
                one, y = said[name][known], true[name][known]
                figures["val_loss"] += calibrated_loss(kind, of, one, y)[0]
                what, value = _target_metric(kind, one, y)
                figures[what if len(names) == 1 else f"{name} {what}"] = value
        return ValidationResult(figures, Predictions(said, true))

    return evaluate


def calibrated_loss(
    target: Target, modality: Modality, logits: Tensor, y: Tensor
) -> tuple[float, Calibration]:
    """(the loss of what would be said after calibration, that calibration)."""
    calibration = Calibration()
    calibration.fit_scale(modality, logits, y)
    return target.loss(calibration.scale_logits(modality, logits), y).mean().item(), calibration


def prediction_calibrator(targets: Mapping[str, Modality]) -> Calibrate[MultimodalPredictor]:
    """Fit how each head is read on rows that the model did not learn from."""

    def fit(
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        rows: np.ndarray,
        predictions: Predictions | None,
    ) -> None:
        said, true = (
            (predictions.outputs, predictions.targets)
            if predictions is not None
            else predict_rows(model, prepared, rows, [*targets])
        )
        for name, modality in targets.items():
            known = true.presence(name)
            model.get_calibration(name).fit(modality, said[name][known], true[name][known])

    return fit


def _target_metric(target: object, logits: Tensor, y: Tensor) -> tuple[str, float]:
    match target:
        case ClassificationTarget():
            return "accuracy", (logits.argmax(1) == y).double().mean().item()
        case OrdinalTarget():
            return "accuracy", ((monotone_logits(logits) > 0).sum(1) == y).double().mean().item()
        case MultilabelTarget():
            chosen, there = logits > 0, y[:, : logits.shape[1]] > 0
            return "F1", (
                2 * (chosen & there).sum() / (chosen.sum() + there.sum()).clamp(min=1)
            ).item()
        case RegressionTarget():
            rest = (y - logits[:, 0]).square().sum() / (y - y.mean()).square().sum().clamp(
                min=1e-12
            )
            return "R2", 1 - rest.item()
    raise TypeError(f"{type(target).__name__} is no kind of target")
