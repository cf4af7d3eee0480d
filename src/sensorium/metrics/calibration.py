"""Calibration: temperature scaling, reliability, conformal prediction and selective prediction.

N rows   C classes   K tags, or cuts between ranks   L levels   P points of a curve

Fit on rows that the model was not trained on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_TEMPERATURE = 20.0  # temperatures lie between 1 / MAX_TEMPERATURE and MAX_TEMPERATURE
_BISECTION_STEPS = 60


def fit_softmax_temperature(
    logits: Float[Tensor, "N C"], y: Int[Tensor, "N"], label_smoothing: float = 0.0
) -> float:
    """Return the maximum-likelihood temperature of a softmax (Guo et al. 2017).

    The log-likelihood is concave in 1 / T. Its maximum is where the mean logit of the true class
    equals the expected logit. The order of classes does not change.

    Args:
        logits: Logits of each class.
        y: True classes.
        label_smoothing: Share of each label that is spread over all classes; keeps the temperature
            above zero if all predictions of a few rows are correct.

    Returns:
        The divisor of the logits; 1 for no rows.
    """
    logits = logits.double()
    true_logits = logits.gather(1, y[:, None])[:, 0]
    target = (1 - label_smoothing) * true_logits + label_smoothing * logits.mean(1)
    return _solve_temperature(
        lambda inverse: ((logits * inverse).softmax(1) * logits).sum(1) - target
    )


def fit_sigmoid_temperature(
    logits: Float[Tensor, "N K"], y: Bool[Tensor, "N K"], label_smoothing: float = 0.0
) -> float:
    """Return the maximum-likelihood temperature of independent sigmoids: tags, or ordinal cuts.

    Args:
        logits: Logits of each tag, or of y > k for each cut k.
        y: Whether each is true.
        label_smoothing: As in fit_softmax_temperature.

    Returns:
        The divisor of the logits; 1 for no rows.
    """
    logits = logits.double()
    target = (1 - label_smoothing) * y.double() + label_smoothing / 2
    return _solve_temperature(lambda inverse: ((logits * inverse).sigmoid() - target) * logits)


def _solve_temperature(slope: Callable[[float], Tensor]) -> float:
    """Return T where the mean of an increasing function of 1 / T is zero, by bisection."""
    low = -math.log(MAX_TEMPERATURE)
    high = math.log(MAX_TEMPERATURE)
    if not slope(1.0).numel():
        return 1.0
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        if slope(math.exp(middle)).mean() < 0:
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def fit_std_scale(errors: Float[Tensor, "N"]) -> float:
    """Return the factor of standard deviations that gives standardized errors unit variance.

    Args:
        errors: Errors divided by their predicted standard deviation.

    Returns:
        The factor; 1 for no rows.
    """
    if not len(errors):
        return 1.0
    return max(errors.double().square().mean().sqrt().item(), 1e-6)


@dataclass(frozen=True)
class Reliability:
    """A reliability diagram: bins of equal width, without empty ones.

    Attributes:
        confidence: Mean predicted probability of each bin.
        accuracy: Share of correct predictions of each bin.
        fraction: Share of all rows in the bin.
    """

    confidence: Float[Tensor, "P"]
    accuracy: Float[Tensor, "P"]
    fraction: Float[Tensor, "P"]

    @property
    def expected_calibration_error(self) -> float:
        """The mean |confidence - accuracy|, weighted by fraction (Naeini et al. 2015)."""
        return ((self.confidence - self.accuracy).abs() * self.fraction).sum().item()


def compute_reliability(
    confidence: Float[Tensor, "N"], correct: Bool[Tensor, "N"], bins: int = 15
) -> Reliability:
    """Bin predictions by confidence and return the accuracy of each bin."""
    confidence = confidence.double()
    index = (confidence * bins).long().clamp(max=bins - 1)
    zeros = torch.zeros(bins, dtype=torch.double)
    count = zeros.index_add(0, index, torch.ones_like(confidence))
    confidence_sum = zeros.index_add(0, index, confidence)
    correct_sum = zeros.index_add(0, index, correct.double())
    nonempty = count > 0
    return Reliability(
        (confidence_sum / count)[nonempty],
        (correct_sum / count)[nonempty],
        (count / max(1, len(correct)))[nonempty],
    )


def top_class(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """Return the probability of the most likely class, and whether it is the true one."""
    best = probabilities.max(1)
    return best.values, best.indices == y


def median_rank(p: Float[Tensor, "N C"]) -> Int[Tensor, "N"]:
    """Return the median of each distribution over ranks."""
    return (p.double().cumsum(1) < 0.5 - 1e-9).sum(1).clamp(max=p.shape[1] - 1)


def compute_conformal_quantiles(
    scores: Float[Tensor, "N"], levels: Sequence[float]
) -> Float[Tensor, "L"]:
    """Return the bound that a new score stays below with each probability (split conformal).

    It is the ceil((N + 1) level)-th smallest score, and exact for exchangeable rows whatever the
    model (Vovk et al. 2005, Lei et al. 2018).

    Args:
        scores: Nonconformity scores of held-out rows.
        levels: Probabilities in 0..1.

    Returns:
        A bound for each level; infinite where N rows are too few.
    """
    ordered = torch.cat([scores.double().sort().values, torch.tensor([math.inf])])
    ranks = [max(1, math.ceil(round((len(scores) + 1) * level, 9))) for level in levels]
    indices = [min(rank, len(ordered)) - 1 for rank in ranks]
    return ordered[torch.tensor(indices, dtype=torch.long)]


def conformal_scores(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """Return 1 - p of the true class: its nonconformity score.

    Args:
        probabilities: Probability of each class.
        y: True classes; C is a class that training did not see, of probability 0.
    """
    with_unseen = torch.cat([probabilities, torch.zeros_like(probabilities[:, :1])], 1)
    return 1 - with_unseen.gather(1, y[:, None])[:, 0]


def conformal_sets(probabilities: Float[Tensor, "N C"], max_score: float) -> Bool[Tensor, "N C"]:
    """Return the classes with a score up to a bound, and always the most likely one.

    These are LAC prediction sets (Sadinle et al. 2019), never empty.
    """
    is_best = probabilities == probabilities.amax(1, keepdim=True)
    return (1 - probabilities <= max_score) | is_best


@dataclass(frozen=True)
class RiskCoverageCurve:
    """Risk against coverage of selective prediction, from the most confident rows on.

    Attributes:
        threshold: Confidence from which rows are accepted; decreasing.
        num_accepted: Number of accepted rows.
        risk: Mean risk of the accepted rows: their error rate, or mean error.
    """

    threshold: Float[Tensor, "P"]
    num_accepted: Int[Tensor, "P"]
    risk: Float[Tensor, "P"]

    @property
    def coverage(self) -> Float[Tensor, "P"]:
        """The share of rows that are accepted."""
        return self.num_accepted / self.num_accepted[-1:]

    @property
    def aurc(self) -> float:
        """The area under the curve: mean risk over all coverages (Geifman et al. 2018)."""
        steps = self.num_accepted.diff(prepend=self.num_accepted.new_zeros(1))
        return ((steps * self.risk).sum() / self.num_accepted[-1]).item()

    def threshold_for_risk(self, max_risk: float) -> float:
        """Return the lowest threshold with at most this error rate; infinity if there is none.

        One more wrong answer is assumed at each threshold: a few rows do not prove a small risk.
        """
        corrected_risk = (self.risk * self.num_accepted + 1) / (self.num_accepted + 1)
        thresholds = self.threshold[corrected_risk <= max_risk + 1e-9]
        return thresholds[-1].item() if len(thresholds) else math.inf

    def threshold_for_coverage(self, min_coverage: float) -> float:
        """Return the highest threshold that accepts at least this share of the rows."""
        return self.threshold[self.coverage >= min_coverage - 1e-9][0].item()


def risk_coverage_curve(
    confidence: Float[Tensor, "N"], risk: Float[Tensor, "N"]
) -> RiskCoverageCurve:
    """Return the risk-coverage curve; rows of equal confidence are accepted together.

    Args:
        confidence: Confidence of each prediction.
        risk: Its error: 0 or 1 for a class, or any loss.
    """
    order = confidence.argsort(descending=True, stable=True)
    sorted_confidence = confidence[order].double()
    total_risk = risk[order].double().cumsum(0)
    next_is_lower = sorted_confidence.diff(append=sorted_confidence.new_full((1,), -math.inf)) != 0
    accepted = torch.arange(1, len(sorted_confidence) + 1)[next_is_lower]
    return RiskCoverageCurve(
        sorted_confidence[next_is_lower], accepted, total_risk[next_is_lower] / accepted
    )
