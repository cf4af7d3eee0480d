"""What a head's numbers mean, and how far they can be trusted: both as held-out rows have shown it.

N rows   C classes or tags   K numbers that a head says   L levels
"""

import math
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

LOG_VAR_MIN, LOG_VAR_MAX = (
    -8.0,
    4.0,
)  # bounds of the logarithm of a variance, of a standardised number
LEVELS = tuple(percent / 100 for percent in range(1, 100))
MIN_CALIBRATION_ROWS = 20  # rows that one scale may be fitted on


@dataclass(frozen=True)
class Gaussian:
    """A standardised number: what is expected, and the standard deviation around it."""

    mean: Float[Tensor, "N"]
    std: Float[Tensor, "N"]


class Calibration(nn.Module):
    """How one head is read. Until it is fitted, as it was learned, and nothing is bounded.

    scale: what logits are divided by, or a spread is multiplied by. bounds: of each level, how strange the truth is at
    most with that probability, in spreads of a number or as 1 - p of a class. sure: of each level, the probability from
    which on the answer is right that often; below it one should abstain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.ones(()))
        self.conformal_quantiles, self.thresholds = (
            nn.Buffer(torch.full((len(LEVELS),), math.inf)) for _ in range(2)
        )

    def probabilities(
        self, modality: Modality, logits: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N C"]:
        """Of classes and ranks, of sum 1; of tags, each by itself."""
        match modality:
            case Ordinal():
                passed = monotone_logits(logits / self.scale).sigmoid()
                edge = torch.ones_like(passed[:, :1])
                return torch.cat([edge, passed], 1) - torch.cat([passed, 0 * edge], 1)
            case Category():
                return (logits / self.scale).softmax(1)
            case Multilabel():
                return (logits / self.scale).sigmoid()
        raise TypeError(f"a {modality.kind} has no probabilities")

    def distribution(self, output: Float[Tensor, "N 2"]) -> Gaussian:
        """A number, standardised."""
        return Gaussian(
            output[:, 0], (output[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX) / 2).exp() * self.scale
        )

    @torch.no_grad()
    def fit(self, modality: Modality, logits: Float[Tensor, "N K"], y: Tensor) -> None:
        """Learn from rows that the model did not learn from, each of which has its target."""
        self.fit_scale(modality, logits, y)
        if isinstance(modality, Numeric):
            found = self.distribution(logits)
            self.conformal_quantiles.copy_(
                compute_conformal_quantiles((y - found.mean).abs() / found.std, LEVELS)
            )
        elif isinstance(modality, Category):
            p = self.probabilities(modality, logits)
            self.conformal_quantiles.copy_(
                compute_conformal_quantiles(conformal_scores(p, y), LEVELS)
            )
            answer = predicted_class(modality, p)
            sure = p.gather(1, answer[:, None])[:, 0]
            curve = risk_coverage_curve(sure, (answer != y).double())
            self.thresholds.copy_(
                torch.tensor([curve.threshold_for_risk(1 - level) for level in LEVELS])
            )

    @torch.no_grad()
    def fit_scale(self, modality: Modality, logits: Float[Tensor, "N K"], y: Tensor) -> None:
        """Learn the scale alone."""
        self.scale.fill_(1.0)
        self.scale.fill_(
            _best_scale(modality, self, logits, y) if len(y) >= MIN_CALIBRATION_ROWS else 1.0
        )

    def scale_logits(
        self, modality: Modality, logits: Float[Tensor, "N K"]
    ) -> Float[Tensor, "N K"]:
        """A head's numbers, as sure of themselves as they should be."""
        if isinstance(modality, Numeric):
            return torch.stack(
                [logits[:, 0], logits[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX) + 2 * self.scale.log()],
                1,
            )
        return logits / self.scale

    def conformal_quantile(self, level: float) -> float:
        """Of the nearest level that is at least so high. Raises SensoriumError for one that is not in 0.01 to 0.99."""
        return self.conformal_quantiles[_level_index(level)].item()

    def selective_threshold(self, accuracy: float) -> float:
        """The probability an answer must have, for answers to be right that often; infinite where none is."""
        return self.thresholds[_level_index(accuracy)].item()


def monotone_logits(logits: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Logits of cuts such that a higher cut is never likelier to be passed than a lower one."""
    if torch.compiler.is_exporting():  # ONNX has no running minimum; ranks are few
        beyond = torch.ones(
            logits.shape[1], logits.shape[1], dtype=torch.bool, device=logits.device
        ).triu(1)
        return logits[:, None].masked_fill(beyond, math.inf).amin(2)
    return logits.cummin(1).values


def predicted_class(modality: Category, probabilities: Float[Tensor, "N C"]) -> Int[Tensor, "N"]:
    """The class that is said: the likeliest; of ranks the median, which is nearest on average."""
    return median_rank(probabilities) if isinstance(modality, Ordinal) else probabilities.argmax(1)


def _best_scale(modality: Modality, calibration: Calibration, logits: Tensor, y: Tensor) -> float:
    doubt = 1 / (len(y) + 2)  # as if one row more had gone either way (Platt 1999)
    match modality:
        case Ordinal():
            cuts = torch.arange(logits.shape[1], device=y.device)
            return fit_sigmoid_temperature(monotone_logits(logits), y[:, None] > cuts, doubt)
        case Category():
            seen = y < logits.shape[1]
            return fit_softmax_temperature(logits[seen], y[seen], doubt)
        case Multilabel():
            return fit_sigmoid_temperature(logits, y[:, : logits.shape[1]] > 0.5, doubt)
        case Numeric():
            found = calibration.distribution(logits)
            return fit_std_scale((y - found.mean) / found.std)
    raise TypeError(f"a {modality.kind} cannot be predicted")


def _level_index(level: float) -> int:
    if not LEVELS[0] <= level <= LEVELS[-1]:
        raise SensoriumError(f"a level of {level:g} is not between {LEVELS[0]} and {LEVELS[-1]}")
    return math.ceil(round(level * 100, 6)) - 1
