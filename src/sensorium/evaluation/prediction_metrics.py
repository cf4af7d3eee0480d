"""Metrics of one target of a predictor, compared with a constant baseline.

N rows   K outputs of a head
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sensorium.metrics.calibration import conformal_sets
from sensorium.metrics.prediction import (
    CLASSIFICATION_METRICS_HELP,
    MULTILABEL_METRICS_HELP,
    ORDINAL_METRICS_HELP,
    REGRESSION_METRICS_HELP,
    MetricValues,
    classification_metrics,
    multilabel_metrics,
    ordinal_metrics,
    regression_metrics,
)
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.calibration import Calibration, predicted_class

COVERAGE_LEVELS = (0.5, 0.8, 0.9, 0.95)
METRIC_DEFINITIONS = {
    "category": CLASSIFICATION_METRICS_HELP,
    "ordinal": ORDINAL_METRICS_HELP,
    "multilabel": MULTILABEL_METRICS_HELP,
    "numeric": REGRESSION_METRICS_HELP,
}
MAIN_METRICS = {"category": "accuracy", "ordinal": "accuracy", "multilabel": "mAP", "numeric": "R2"}
HEADLINE_METRICS = {
    "category": ("accuracy", "balanced accuracy", "macro F1", "ROC AUC", "log loss"),
    "ordinal": ("MAE", "accuracy", "quadratic kappa"),
    "multilabel": ("mAP", "micro F1", "macro F1"),
    "numeric": ("MAE", "RMSE", "R2", "Spearman"),
}
BASELINE_METRICS = {
    "category": ("accuracy", "log loss"),
    "ordinal": ("MAE", "accuracy"),
    "multilabel": ("mAP", "hamming loss"),
    "numeric": ("MAE", "RMSE"),
}
UNCALIBRATED_METRICS = (
    "calibration error",
    "log loss",
    *(f"coverage at {level:.0%}" for level in COVERAGE_LEVELS),
)


@dataclass(frozen=True)
class TargetPredictions:
    """Predictions of one target for rows that have it.

    Attributes:
        modality: the settings of the target column.
        calibration: the fitted calibration of its head.
        logits: outputs of its head.
        y: the true values.
        prior: the output without any input.
    """

    modality: Modality
    calibration: Calibration
    logits: Float[Tensor, "N K"]
    y: Tensor
    prior: Float[Tensor, "1 K"]

    def compute_metrics(self) -> MetricValues:
        """Return all metrics, those of the baseline and those before calibration."""
        metrics = self.basic_metrics(self.calibration)
        uncalibrated = self.basic_metrics(Calibration()).values
        constant = self.prior.expand(len(self.y), -1)
        baseline = target_metrics(self.modality, Calibration(), constant, self.y, {}).values
        for name in BASELINE_METRICS[self.modality.kind]:
            if name in baseline:
                metrics.values[f"baseline {name}"] = baseline[name]
        for name, value in uncalibrated.items():
            if name in UNCALIBRATED_METRICS:
                metrics.values[f"uncalibrated {name}"] = value
        if isinstance(self.modality, Category) and len(self.y):
            probabilities = self.calibration.probabilities(self.modality, self.logits)
            self._add_set_metrics(metrics, probabilities)
            self._add_selective_metrics(metrics, self.modality, probabilities)
        return metrics

    def basic_metrics(self, calibration: Calibration) -> MetricValues:
        """Return the metrics of the outputs themselves under a calibration."""
        if calibration is self.calibration:
            quantiles = {level: calibration.conformal_quantile(level) for level in COVERAGE_LEVELS}
        else:
            quantiles = {level: NormalDist().inv_cdf((1 + level) / 2) for level in COVERAGE_LEVELS}
        return target_metrics(self.modality, calibration, self.logits, self.y, quantiles)

    def _add_set_metrics(self, metrics: MetricValues, p: Float[Tensor, "N C"]) -> None:
        """Add coverage and size of the conformal prediction sets."""
        for level in COVERAGE_LEVELS:
            sets = conformal_sets(p, self.calibration.conformal_quantile(level))
            unseen = torch.zeros_like(sets[:, :1])  # y = C is a class unseen in training
            covered = torch.cat([sets, unseen], 1).gather(1, self.y[:, None])
            metrics.add(f"coverage at {level:.0%}", partial(_mean, covered))
            metrics.add(f"set size at {level:.0%}", partial(_mean, sets.double().sum(1)))

    def _add_selective_metrics(
        self, metrics: MetricValues, modality: Category, p: Float[Tensor, "N C"]
    ) -> None:
        """Add coverage and accuracy where rows without enough confidence get no answer."""
        predicted = predicted_class(modality, p)
        correct: Bool[Tensor, "N"] = predicted == self.y
        confidence = p.gather(1, predicted[:, None])[:, 0]
        for level in COVERAGE_LEVELS:
            answered = confidence >= self.calibration.selective_threshold(level)
            metrics.add(f"coverage at {level:.0%} accuracy", partial(_mean, answered))
            if answered.any():
                metrics.add(f"selective accuracy at {level:.0%}", partial(_mean, correct[answered]))


def target_metrics(
    modality: Modality,
    calibration: Calibration,
    logits: Float[Tensor, "N K"],
    y: Tensor,
    conformal_quantiles: Mapping[float, float],
) -> MetricValues:
    """Return the metrics of one target by its type, numbers in the unit of their column.

    Args:
        modality: the settings of the target column.
        calibration: the calibration of its head.
        logits: outputs of its head.
        y: the true values.
        conformal_quantiles: {level: quantile of the errors in standard deviations}.
    """
    match modality:
        case Ordinal():
            return ordinal_metrics(calibration.probabilities(modality, logits), y)
        case Category():
            return classification_metrics(calibration.probabilities(modality, logits), y)
        case Multilabel():
            return multilabel_metrics(calibration.probabilities(modality, logits), y > 0.5)
        case Numeric():
            return regression_metrics(
                calibration.decode(modality, logits).mean,
                modality.decode_all(y),
                {
                    level: calibration.interval(modality, logits, quantile)
                    for level, quantile in conformal_quantiles.items()
                },
            )
        case _:
            raise TypeError(f"A column of type {modality.kind} cannot be a target.")


def _mean(values: Tensor) -> Tensor:
    return values.double().mean()
