"""Validation for recipes that predict: the loss on held-out rows, and one plain figure for each target."""
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from sensorium.calibrate import Calibration, decreasing
from sensorium.data.cache import Prepared
from sensorium.fused import Fused
from sensorium.modalities.modality import Modality
from sensorium.objectives.supervised import Amount, Choices, Classes, Ranks, Supervised, Target
from sensorium.recipes.recipe import Calibrate, Predictions, Validate, ValidationResult
from sensorium.tokens import Batch

SIZE = 512                                  # rows at a time


@torch.inference_mode()
def said_of(model: Fused, prepared: Prepared, rows: np.ndarray, targets: Sequence[str],
            change: Callable[[Batch], Batch] = lambda batch: batch) -> tuple[dict[str, Tensor], Batch]:
    """(what the model says of each target, the targets themselves) of `rows`. change: of what it is shown."""
    said, true = [], []
    for start in range(0, len(rows), SIZE):
        batch = prepared.batch(rows[start:start + SIZE])
        said.append(model(change(batch)))
        true.append(batch.only(targets))
    return joined(said), Batch.joined(true)


def joined(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Pieces of what is said of each target as one."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def validate(objective: Supervised, targets: Mapping[str, Modality]) -> Validate[Fused]:
    """val_loss, and of each target accuracy, R² or F1; those of several targets by name.

    The loss is that of what would be said after calibration: how sure a model is of itself is mended when it is kept,
    and must not decide which one is.
    """
    names = list(targets)

    def judge(model: Fused, prepared: Prepared, rows: np.ndarray) -> ValidationResult:
        said, true = said_of(model, prepared, rows, names)
        figures = {"val_loss": 0.0}
        for name, of in targets.items():
            known, kind = objective.known(name, true), objective.targets[name]
            if known.any():
                one, y = said[name][known], true[name][known]
                figures["val_loss"] += loss_of(kind, of, one, y)[0]
                what, value = _figure(kind, one, y)
                figures[what if len(names) == 1 else f"{name} {what}"] = value
        return ValidationResult(figures, Predictions(said, true))
    return judge


def loss_of(kind: Target, of: Modality, said: Tensor, y: Tensor) -> tuple[float, Calibration]:
    """(the loss of what would be said after calibration, that calibration)."""
    calibration = Calibration()
    calibration.rescale(of, said, y)
    return kind.loss(calibration.scaled(of, said), y).mean().item(), calibration


def calibrate(targets: Mapping[str, Modality]) -> Calibrate[Fused]:
    """Fit how each head is read on rows that the model did not learn from."""
    def fit(model: Fused, prepared: Prepared, rows: np.ndarray, predictions: Predictions | None) -> None:
        said, true = ((predictions.outputs, predictions.targets) if predictions is not None
                      else said_of(model, prepared, rows, [*targets]))
        for name, modality in targets.items():
            known = true.there(name)
            model.calibration(name).fit(modality, said[name][known], true[name][known])
    return fit


def _figure(kind: object, said: Tensor, y: Tensor) -> tuple[str, float]:
    match kind:
        case Classes():
            return "accuracy", (said.argmax(1) == y).double().mean().item()
        case Ranks():
            return "accuracy", ((decreasing(said) > 0).sum(1) == y).double().mean().item()
        case Choices():
            chosen, there = said > 0, y[:, :said.shape[1]] > 0
            return "F1", (2 * (chosen & there).sum() / (chosen.sum() + there.sum()).clamp(min=1)).item()
        case Amount():
            rest = (y - said[:, 0]).square().sum() / (y - y.mean()).square().sum().clamp(min=1e-12)
            return "R2", 1 - rest.item()
    raise TypeError(f"{type(kind).__name__} is no kind of target")
