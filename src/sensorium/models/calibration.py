"""Calibration of a prediction head, fitted on held-out rows.

It turns a head's outputs into probabilities or intervals, and decides when to abstain.
Intervals of numbers stay within the natural bounds of the column. Where the validation rows get
shorter intervals by it, they are symmetric on a log scale: those of a log-normal distribution.

N rows   C classes or tags   K outputs of a head   L levels
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.metrics.calibration import (
    compute_conformal_quantiles,
    conformal_scores,
    fit_sigmoid_temperature,
    fit_softmax_temperature,
    fit_std_scale,
    median_rank,
    risk_coverage_curve,
)
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal

LOG_VAR_MIN = -8.0  # bounds of the log variance of a standardized number
LOG_VAR_MAX = 4.0
CALIBRATION_LEVELS = tuple(percent / 100 for percent in range(1, 100))  # coverages and accuracies
MIN_CALIBRATION_ROWS = 20  # with fewer rows the scale stays 1
MIN_LOG_SCALE_ROWS = 40  # with fewer rows intervals are not on a log scale
LOG_SCALE_LEVELS = (0.8, 0.9)  # coverage of the intervals that are compared
MAX_LOG_SCALE_SCORE = 0.98  # of the score on a linear scale: below it, the log scale is used


@dataclass(frozen=True)
class Gaussian:
    """The predictive distribution of a standardized number."""

    mean: Float[Tensor, "N"]
    std: Float[Tensor, "N"]


class Calibration(nn.Module):
    """Calibration of one head; before `fit` it changes nothing and bounds nothing.

    Attributes:
        scale: Temperature that divides logits, or factor of a standard deviation.
        conformal_quantiles: [L] Conformal quantile of each coverage level: |error| / std of a
            number, or 1 - p of the true class.
        thresholds: [L] Minimum probability of the predicted class that reaches each accuracy level;
            below it one should abstain.
        log_offset: [] What is added to the distance of a standardized number from its lower bound
            before the logarithm is taken; None: intervals are on a linear scale.
    """

    log_offset: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        unbounded = torch.full((len(CALIBRATION_LEVELS),), math.inf)
        self.scale = nn.Buffer(torch.ones(()))
        self.conformal_quantiles = nn.Buffer(unbounded)
        self.thresholds = nn.Buffer(unbounded.clone())
        self.register_buffer("log_offset", None)

    def load_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Take on the log scale, if the loaded calibration has one.

        Raises:
            ValueError: If it is not a number above 0.
        """
        self.log_offset = buffers.get("log_offset")
        if self.log_offset is not None and not (
            self.log_offset.shape == () and self.log_offset > 0
        ):
            raise ValueError("The log scale of a calibration is not a number above 0.")

    def probabilities(
        self, modality: Modality, logits: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N C"]:
        """Return the probability of each class (they sum to 1) or of each tag.

        Raises:
            TypeError: If the target is neither categorical, ordinal nor multilabel.
        """
        match modality:
            case Ordinal():
                exceeded = monotone_logits(logits / self.scale).sigmoid()  # P(y > k)
                ones = torch.ones_like(exceeded[:, :1])
                return torch.cat([ones, exceeded], 1) - torch.cat([exceeded, 0 * ones], 1)
            case Category():
                return (logits / self.scale).softmax(1)
            case Multilabel():
                return (logits / self.scale).sigmoid()
            case _:
                raise TypeError(f"A column of type {modality.kind} has no probabilities.")

    def distribution(self, output: Float[Tensor, "N 2"]) -> Gaussian:
        """Return the distribution of a standardized number from its mean and log variance."""
        std = (output[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX) / 2).exp() * self.scale
        return Gaussian(output[:, 0], std)

    def decode(self, modality: Numeric, output: Float[Tensor, "N 2"]) -> Gaussian:
        """Return mean and standard deviation of a number as float64, in the column's unit."""
        prediction = self.distribution(output)
        return Gaussian(
            modality.clamp(prediction.mean.double() * modality.std + modality.mean),
            prediction.std.double() * modality.std,
        )

    def interval(
        self, modality: Numeric, output: Float[Tensor, "N 2"], quantile: float
    ) -> Float[Tensor, "N 2"]:
        """Return lower and upper bound of a number as float64, in the column's unit.

        Args:
            modality: The target.
            output: Outputs of the head.
            quantile: Conformal quantile of the coverage level; infinite: the interval is open.
        """
        prediction = _clamp_mean(modality, self.distribution(output))
        mean, std = prediction.mean.double(), prediction.std.double()  # float32 cuts large values
        sides = torch.tensor([-quantile, quantile], dtype=torch.float64, device=mean.device)
        if self.log_offset is None or math.isinf(quantile):
            bounds = mean[:, None] + std[:, None] * sides
        else:
            origin = _log_origin(modality, self.log_offset)
            median, log_std = _log_normal(prediction, origin)
            bounds = (median[:, None] + log_std[:, None] * sides).exp() + origin
            bounds = torch.stack([bounds[:, 0].minimum(mean), bounds[:, 1].maximum(mean)], 1)
        bounds = bounds * modality.std + modality.mean
        return bounds if math.isinf(quantile) else modality.clamp(bounds)

    @torch.no_grad()
    def fit(self, modality: Modality, logits: Float[Tensor, "N K"], y: Tensor) -> None:
        """Fit scale, conformal quantiles and thresholds.

        Args:
            modality: The target.
            logits: The head's outputs on rows that the model was not trained on.
            y: The collated true values; none is missing.
        """
        self.fit_scale(modality, logits, y)
        if isinstance(modality, Numeric):
            self.log_offset = self._choose_scale(modality, logits, y)
            scores = self._interval_scores(modality, logits, y)
            self.conformal_quantiles.copy_(compute_conformal_quantiles(scores, CALIBRATION_LEVELS))
        elif isinstance(modality, Category):
            p = self.probabilities(modality, logits)
            scores = conformal_scores(p, y)
            self.conformal_quantiles.copy_(compute_conformal_quantiles(scores, CALIBRATION_LEVELS))
            self.thresholds.copy_(self._accuracy_thresholds(modality, p, y))

    @torch.no_grad()
    def fit_scale(self, modality: Modality, logits: Float[Tensor, "N K"], y: Tensor) -> None:
        """Fit the scale only."""
        self.scale.fill_(1.0)
        if len(y) >= MIN_CALIBRATION_ROWS:
            self.scale.fill_(_best_scale(modality, self, logits, y))

    def scale_logits(
        self, modality: Modality, logits: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """Return calibrated outputs of the same form as the head's: logits, or mean and log var."""
        if isinstance(modality, Numeric):
            log_var = logits[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX) + 2 * self.scale.log()
            return torch.stack([logits[:, 0], log_var], 1)
        return logits / self.scale

    def conformal_quantile(self, level: float) -> float:
        """Return the conformal quantile of a coverage level, rounded up to a full percent.

        Raises:
            SensoriumError: If the level is not between 0.01 and 0.99.
        """
        return self.conformal_quantiles[_level_index(level)].item()

    def selective_threshold(self, accuracy: float) -> float:
        """Return the minimum probability of predictions that reach an accuracy; inf if none do.

        Raises:
            SensoriumError: If the accuracy is not between 0.01 and 0.99.
        """
        return self.thresholds[_level_index(accuracy)].item()

    def _interval_scores(
        self, modality: Numeric, logits: Float[Tensor, "N 2"], y: Float[Tensor, "N"]
    ) -> Float[Tensor, "N"]:
        """Return the nonconformity score of each number: its error in standard deviations."""
        prediction = _clamp_mean(modality, self.distribution(logits))
        if self.log_offset is None:
            return (y - prediction.mean).abs() / prediction.std
        origin = _log_origin(modality, self.log_offset)
        median, std = _log_normal(prediction, origin)
        distance = (y.double() - origin).clamp(min=self.log_offset.item())
        return (distance.log() - median).abs() / std

    def _choose_scale(
        self, modality: Numeric, logits: Float[Tensor, "N 2"], y: Float[Tensor, "N"]
    ) -> Float[Tensor, ""] | None:
        """Return the log offset if intervals are better with it; None: the scale is linear.

        Better is a lower interval score (Gneiting & Raftery 2007) of intervals that are not longer.
        """
        offset = _log_offset(modality)
        if offset is None or len(y) < MIN_LOG_SCALE_ROWS:
            return None
        log_offset = torch.tensor(offset, dtype=torch.float32, device=y.device)
        self.log_offset = None
        linear_width, linear_score = self._cross_fit_intervals(modality, logits, y)
        self.log_offset = log_offset
        width, score = self._cross_fit_intervals(modality, logits, y)
        is_better = width <= linear_width and score < MAX_LOG_SCALE_SCORE * linear_score
        return log_offset if is_better else None

    def _cross_fit_intervals(
        self, modality: Numeric, logits: Float[Tensor, "N 2"], y: Float[Tensor, "N"]
    ) -> tuple[float, float]:
        """Return mean width and score of the intervals of each half, calibrated on the other."""
        true = (y.double() * modality.std + modality.mean)[:, None]
        width = score = 0.0
        for first in (0, 1):
            half, other = slice(first, None, 2), slice(1 - first, None, 2)
            scores = self._interval_scores(modality, logits[other], y[other])
            quantiles = compute_conformal_quantiles(scores, LOG_SCALE_LEVELS)
            for level, quantile in zip(LOG_SCALE_LEVELS, quantiles, strict=True):
                bounds = self.interval(modality, logits[half], quantile.item())
                missed = torch.cat([bounds[:, :1] - true[half], true[half] - bounds[:, 1:]], 1)
                mean_width = (bounds[:, 1] - bounds[:, 0]).mean().item()
                width += mean_width
                score += mean_width + 2 / (1 - level) * missed.clamp(min=0).sum(1).mean().item()
        return width, score

    def _accuracy_thresholds(
        self, modality: Category, probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
    ) -> Float[Tensor, "L"]:
        """Return the minimum probability of the predicted class for each accuracy level."""
        predicted = predicted_class(modality, probabilities)
        confidence = probabilities.gather(1, predicted[:, None])[:, 0]
        curve = risk_coverage_curve(confidence, (predicted != y).double())
        return torch.tensor([curve.threshold_for_risk(1 - level) for level in CALIBRATION_LEVELS])


def _standardize(modality: Numeric, value: float) -> float:
    return (value - modality.mean) / modality.std


def _clamp_mean(modality: Numeric, prediction: Gaussian) -> Gaussian:
    """Return the distribution of a standardized number with its mean within the bounds."""
    bounds = [
        b if b is None else _standardize(modality, b) for b in (modality.lower, modality.upper)
    ]
    if bounds == [None, None]:
        return prediction
    return Gaussian(prediction.mean.clamp(*bounds), prediction.std)


def _log_origin(modality: Numeric, log_offset: Tensor) -> float:
    """Return the standardized number whose logarithm would be taken of 0."""
    return _standardize(modality, modality.lower or 0.0) - log_offset.item()


def _log_normal(
    prediction: Gaussian, origin: float
) -> tuple[Float[Tensor, "N"], Float[Tensor, "N"]]:
    """Return mean and standard deviation of the logarithm of a log-normal distance to the origin.

    The distance has the mean and the standard deviation of the prediction.
    """
    distance = prediction.mean.double() - origin
    variance = (prediction.std.double() / distance).square().log1p()
    return distance.log() - variance / 2, variance.sqrt()


def _log_offset(modality: Numeric) -> float | None:
    """Return the offset of a log scale in standard deviations; None: the column has no such scale.

    It is the distance of the lowest twentieth of the training values from the lower bound.
    """
    if modality.lower is None:
        return None
    distances = [edge - modality.lower for edge in modality.edges if edge > modality.lower]
    if len(distances) < 2:
        return None
    return distances[len(distances) // 20] / modality.std


def monotone_logits(logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Return ordinal logits such that P(y > k) never increases with k (a running minimum)."""
    if torch.compiler.is_exporting():  # ONNX has no running minimum; there are few ranks
        num_cuts = logits.shape[1]
        later = torch.ones(num_cuts, num_cuts, dtype=torch.bool, device=logits.device).triu(1)
        return logits[:, None].masked_fill(later, math.inf).amin(2)
    return logits.cummin(1).values


def predicted_class(modality: Category, probabilities: Float[Tensor, "N C"]) -> Int[Tensor, "N"]:
    """Return the most likely class, or the median rank of an ordinal target."""
    return median_rank(probabilities) if isinstance(modality, Ordinal) else probabilities.argmax(1)


def _best_scale(modality: Modality, calibration: Calibration, logits: Tensor, y: Tensor) -> float:
    """Return the maximum-likelihood scale; labels are smoothed by one row (Platt 1999)."""
    label_smoothing = 1 / (len(y) + 2)
    match modality:
        case Ordinal():
            cuts = torch.arange(logits.shape[1], device=y.device)
            return fit_sigmoid_temperature(
                monotone_logits(logits), y[:, None] > cuts, label_smoothing
            )
        case Category():
            is_known = y < logits.shape[1]
            return fit_softmax_temperature(logits[is_known], y[is_known], label_smoothing)
        case Multilabel():
            has_tag = y[:, : logits.shape[1]] > 0.5
            return fit_sigmoid_temperature(logits, has_tag, label_smoothing)
        case Numeric():
            prediction = calibration.distribution(logits)
            return fit_std_scale((y - prediction.mean) / prediction.std)
        case _:
            raise TypeError(f"A column of type {modality.kind} cannot be predicted.")


def _level_index(level: float) -> int:
    """Return the index of the lowest calibration level that is at least `level`."""
    lowest = CALIBRATION_LEVELS[0]
    highest = CALIBRATION_LEVELS[-1]
    if not lowest <= level <= highest:
        raise SensoriumError(
            f"A coverage or accuracy of {level:g} is out of range. Choose one from {lowest} to "
            f"{highest}."
        )
    return math.ceil(round(level * 100, 6)) - 1
