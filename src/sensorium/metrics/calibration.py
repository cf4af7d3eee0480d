"""Do probabilities mean what they say, and when may one be sure? Temperature, reliability, conformal sets, abstaining.

    N rows   C classes   K tags, or cuts between ranks   P points of a curve

What is fitted here is to be fitted on rows that the model did not learn from.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

MAX_TEMPERATURE = 20.0  # temperatures lie between 1 / HOTTEST and HOTTEST
_BISECTION_STEPS = 60


def fit_softmax_temperature(
    logits: Float[Tensor, "N C"], y: Int[Tensor, "N"], label_smoothing: float = 0.0
) -> float:
    """By what to divide logits so that their softmax is likeliest to give the classes y (Guo et al. 2017).

    The likelihood is concave in 1 / T, and highest where the true logits are as high on average as those expected.
    Order, and so the likeliest class, stays as it is. 1 where there is no row. doubt: the part of each row that might
    have been any class: few rows that are all right do not make for certainty.
    """
    logits = logits.double()
    true = (1 - label_smoothing) * logits.gather(1, y[:, None])[
        :, 0
    ] + label_smoothing * logits.mean(1)
    return _solve_temperature(
        lambda inverse: ((logits * inverse).softmax(1) * logits).sum(1) - true
    )


def fit_sigmoid_temperature(
    logits: Float[Tensor, "N K"], y: Bool[Tensor, "N K"], label_smoothing: float = 0.0
) -> float:
    """The same for logits each of which stands for itself: tags, and cuts between ranks (P(y > k))."""
    logits, so = logits.double(), (1 - label_smoothing) * y.double() + label_smoothing / 2
    return _solve_temperature(lambda inverse: ((logits * inverse).sigmoid() - so) * logits)


def _solve_temperature(slope: Callable[[float], Tensor]) -> float:
    """Where the mean of a rising function of 1 / T is zero, by halving."""
    low, high = -math.log(MAX_TEMPERATURE), math.log(MAX_TEMPERATURE)
    if not slope(1.0).numel():
        return 1.0
    for _ in range(_BISECTION_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(math.exp(middle)).mean() < 0 else (low, middle)
    return math.exp(-(low + high) / 2)


def fit_std_scale(errors: Float[Tensor, "N"]) -> float:
    """By what to multiply spreads so that errors, over their spread, are a spread of 1 on average. 1 for no row."""
    return max(errors.double().square().mean().sqrt().item(), 1e-6) if len(errors) else 1.0


@dataclass(frozen=True)
class Reliability:
    """What was said beside what was found, in bins of equal width that hold something."""

    confidence: Float[Tensor, "P"]  # mean probability
    accuracy: Float[Tensor, "P"]  # how often it was so
    fraction: Float[Tensor, "P"]  # of all rows

    @property
    def expected_calibration_error(self) -> float:
        """Expected calibration error: the mean distance of said and found, by share (Naeini et al. 2015)."""
        return ((self.confidence - self.accuracy).abs() * self.fraction).sum().item()


def compute_reliability(
    confidence: Float[Tensor, "N"], correct: Bool[Tensor, "N"], bins: int = 15
) -> Reliability:
    """Bins of probabilities, the last closed: said, and how often it was so."""
    confidence = confidence.double()
    place = (confidence * bins).long().clamp(max=bins - 1)
    count, said, found = (
        torch.zeros(bins, dtype=torch.double).index_add(0, place, values)
        for values in (torch.ones_like(confidence), confidence, correct.double())
    )
    held = count > 0
    return Reliability(
        (said / count)[held], (found / count)[held], (count / max(1, len(correct)))[held]
    )


def top_class(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> tuple[Float[Tensor, "N"], Bool[Tensor, "N"]]:
    """(probability of the likeliest class, whether it is the true one)."""
    found = probabilities.max(1)
    return found.values, found.indices == y


def median_rank(p: Float[Tensor, "N C"]) -> Int[Tensor, "N"]:
    """The first class by which half of the probability is passed."""
    return (p.double().cumsum(1) < 0.5 - 1e-9).sum(1).clamp(max=p.shape[1] - 1)


def compute_conformal_quantiles(
    scores: Float[Tensor, "N"], levels: Sequence[float]
) -> Float[Tensor, "L"]:
    """The bound that one more score of the same kind keeps with each probability: the ceil((N + 1) level)-th smallest.

    Exact for exchangeable rows, whatever the model (split conformal; Vovk et al. 2005, Lei et al. 2018). Infinite
    where N rows are too few to tell.
    """
    ordered = torch.cat([scores.double().sort().values, torch.tensor([math.inf])])
    places = [max(1, math.ceil(round((len(scores) + 1) * level, 9))) for level in levels]
    return ordered[
        torch.tensor([min(place, len(ordered)) - 1 for place in places], dtype=torch.long)
    ]


def conformal_scores(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> Float[Tensor, "N"]:
    """How strange the true class is: 1 - its probability; 1 for a class (y = C) that training did not see."""
    known = torch.cat([probabilities, torch.zeros_like(probabilities[:, :1])], 1)
    return 1 - known.gather(1, y[:, None])[:, 0]


def conformal_sets(probabilities: Float[Tensor, "N C"], max_score: float) -> Bool[Tensor, "N C"]:
    """Classes that are not stranger than a bound, and always the likeliest (LAC; Sadinle et al. 2019)."""
    likeliest = probabilities == probabilities.amax(1, keepdim=True)
    return (1 - probabilities <= max_score) | likeliest


@dataclass(frozen=True)
class RiskCoverageCurve:
    """The surest rows first: how many are answered at each threshold of confidence, and what they risk on average."""

    threshold: Float[Tensor, "P"]  # rows at least as sure are answered; falling
    num_answered: Int[Tensor, "P"]  # how many of the rows
    risk: Float[Tensor, "P"]  # mean over these: share of errors, or size of error

    @property
    def coverage(self) -> Float[Tensor, "P"]:
        """Share of the rows that is answered."""
        return self.num_answered / self.num_answered[-1:]

    @property
    def aurc(self) -> float:
        """Mean risk over all coverages, each row answered after the surer ones (AURC, Geifman et al. 2018)."""
        steps = self.num_answered.diff(prepend=self.num_answered.new_zeros(1))
        return ((steps * self.risk).sum() / self.num_answered[-1]).item()

    def threshold_for_risk(self, max_risk: float) -> float:
        """The lowest threshold that keeps the share of errors at `most`; infinite where none does.

        As if one more row were answered, and wrong, at each threshold: few rows do not prove a small risk.
        """
        cautious = (self.risk * self.num_answered + 1) / (self.num_answered + 1)
        kept = self.threshold[cautious <= max_risk + 1e-9]
        return kept[-1].item() if len(kept) else math.inf

    def threshold_for_coverage(self, min_coverage: float) -> float:
        """The highest threshold at which at least so large a share of the rows, of which there is one, is answered."""
        return self.threshold[self.coverage >= min_coverage - 1e-9][0].item()


def risk_coverage_curve(
    confidence: Float[Tensor, "N"], risk: Float[Tensor, "N"]
) -> RiskCoverageCurve:
    """The curve of risk against coverage; rows that are equally sure are answered together."""
    order = confidence.argsort(descending=True, stable=True)
    sure, total = confidence[order].double(), risk[order].double().cumsum(0)
    last = sure.diff(append=sure.new_full((1,), -math.inf)) != 0
    answered = torch.arange(1, len(sure) + 1)[last]
    return RiskCoverageCurve(sure[last], answered, total[last] / answered)
