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
    abstaining,
    class_scores,
    conformal_quantiles,
    median_rank,
    sigmoid_temperature,
    softmax_temperature,
    spread_scale,
)
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number, Ordinal
from sensorium.modalities.tags import Tags

NARROW, WIDE = -8.0, 4.0                    # bounds of the logarithm of a variance, of a standardised number
LEVELS = tuple(percent / 100 for percent in range(1, 100))
FEWEST = 20                                 # rows that one scale may be fitted on


@dataclass(frozen=True)
class Amount:
    """A standardised number: what is expected, and the standard deviation around it."""

    mean: Float[Tensor, "N"]
    spread: Float[Tensor, "N"]


class Calibration(nn.Module):
    """How one head is read. Until it is fitted, as it was learned, and nothing is bounded.

    scale: what logits are divided by, or a spread is multiplied by. bounds: of each level, how strange the truth is at
    most with that probability, in spreads of a number or as 1 - p of a class. sure: of each level, the probability from
    which on the answer is right that often; below it one should abstain.
    """

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Buffer(torch.ones(()))
        self.bounds, self.sure = (nn.Buffer(torch.full((len(LEVELS),), math.inf)) for _ in range(2))

    def probabilities(self, of: Modality, said: Float[Tensor, "N K"]) -> Float[Tensor, "N C"]:
        """Of classes and ranks, of sum 1; of tags, each by itself."""
        match of:
            case Ordinal():
                passed = decreasing(said / self.scale).sigmoid()
                edge = torch.ones_like(passed[:, :1])
                return torch.cat([edge, passed], 1) - torch.cat([passed, 0 * edge], 1)
            case Category():
                return (said / self.scale).softmax(1)
            case Tags():
                return (said / self.scale).sigmoid()
        raise TypeError(f"a {of.kind} has no probabilities")

    def amount(self, said: Float[Tensor, "N 2"]) -> Amount:
        """A number, standardised."""
        return Amount(said[:, 0], (said[:, 1].clamp(NARROW, WIDE) / 2).exp() * self.scale)

    @torch.no_grad()
    def fit(self, of: Modality, said: Float[Tensor, "N K"], y: Tensor) -> None:
        """Learn from rows that the model did not learn from, each of which has its target."""
        self.rescale(of, said, y)
        if isinstance(of, Number):
            found = self.amount(said)
            self.bounds.copy_(conformal_quantiles((y - found.mean).abs() / found.spread, LEVELS))
        elif isinstance(of, Category):
            p = self.probabilities(of, said)
            self.bounds.copy_(conformal_quantiles(class_scores(p, y), LEVELS))
            answer = answered(of, p)
            sure = p.gather(1, answer[:, None])[:, 0]
            curve = abstaining(sure, (answer != y).double())
            self.sure.copy_(torch.tensor([curve.for_risk(1 - level) for level in LEVELS]))

    @torch.no_grad()
    def rescale(self, of: Modality, said: Float[Tensor, "N K"], y: Tensor) -> None:
        """Learn the scale alone."""
        self.scale.fill_(1.0)
        self.scale.fill_(_scale(of, self, said, y) if len(y) >= FEWEST else 1.0)

    def scaled(self, of: Modality, said: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """A head's numbers, as sure of themselves as they should be."""
        if isinstance(of, Number):
            return torch.stack([said[:, 0], said[:, 1].clamp(NARROW, WIDE) + 2 * self.scale.log()], 1)
        return said / self.scale

    def bound(self, level: float) -> float:
        """Of the nearest level that is at least so high. Raises SensoriumError for one that is not in 0.01 to 0.99."""
        return self.bounds[_place(level)].item()

    def surely(self, accuracy: float) -> float:
        """The probability an answer must have, for answers to be right that often; infinite where none is."""
        return self.sure[_place(accuracy)].item()


def decreasing(said: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
    """Logits of cuts such that a higher cut is never likelier to be passed than a lower one."""
    if torch.compiler.is_exporting():                   # ONNX has no running minimum; ranks are few
        beyond = torch.ones(said.shape[1], said.shape[1], dtype=torch.bool, device=said.device).triu(1)
        return said[:, None].masked_fill(beyond, math.inf).amin(2)
    return said.cummin(1).values


def answered(of: Category, p: Float[Tensor, "N C"]) -> Int[Tensor, "N"]:
    """The class that is said: the likeliest; of ranks the median, which is nearest on average."""
    return median_rank(p) if isinstance(of, Ordinal) else p.argmax(1)


def _scale(of: Modality, unscaled: Calibration, said: Tensor, y: Tensor) -> float:
    doubt = 1 / (len(y) + 2)                                # as if one row more had gone either way (Platt 1999)
    match of:
        case Ordinal():
            cuts = torch.arange(said.shape[1], device=y.device)
            return sigmoid_temperature(decreasing(said), y[:, None] > cuts, doubt)
        case Category():
            seen = y < said.shape[1]
            return softmax_temperature(said[seen], y[seen], doubt)
        case Tags():
            return sigmoid_temperature(said, y[:, :said.shape[1]] > 0.5, doubt)
        case Number():
            found = unscaled.amount(said)
            return spread_scale((y - found.mean) / found.spread)
    raise TypeError(f"a {of.kind} cannot be predicted")


def _place(level: float) -> int:
    if not LEVELS[0] <= level <= LEVELS[-1]:
        raise SensoriumError(f"a level of {level:g} is not between {LEVELS[0]} and {LEVELS[-1]}")
    return math.ceil(round(level * 100, 6)) - 1
