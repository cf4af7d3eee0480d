"""What a retrieval model is worth by its validation metrics, in plain words."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MIN_PRETRAINED_ROWS = 50  # training rows for pretrained encoders
PRETRAINED_REMEDIES = (
    "more pairs of image and text",
    "more epochs or a higher --lr",
    "other pretrained weights",
)
MIN_VALIDATION_ROWS = 100  # fewer make recall uncertain by more than 0.1
MIN_CANDIDATES_AT_10 = 40  # fewer make recall@10 high by chance
NOISE_DEVIATIONS = 3.0  # standard deviations that chance may be exceeded by
MIN_LIFT_AT_10 = 2.0  # times chance


@dataclass(frozen=True)
class RetrievalVerdict:
    """Judge a retrieval model (see `EvaluationSpec.assess`).

    Attributes:
        min_training_rows: number of training rows below which a caution is given.
        remedies: what may help where the model is near chance.
    """

    min_training_rows: int
    remedies: Sequence[str]

    def __call__(
        self, metrics: Mapping[str, float], training_rows: int, validation_rows: int
    ) -> list[str]:
        """Return cautions about the number of rows and, where there are metrics, the verdict."""
        sentences = [self._verdict(metrics, validation_rows)] if metrics else []
        if training_rows < self.min_training_rows:
            sentences.append(
                f"Only {training_rows:,} training rows: with fewer than "
                f"{self.min_training_rows:,} this recipe learns little. What helps: "
                f"{'; '.join(self.remedies)}."
            )
        if not validation_rows:
            sentences.append(
                "No validation rows: how good the model is remains unknown, and the last weights "
                "are kept. Mark rows as val with --split."
            )
        elif validation_rows < MIN_VALIDATION_ROWS:
            error = 1 / math.sqrt(validation_rows)  # 95 %, of a share near one half
            sentences.append(
                f"Only {validation_rows} validation rows: recall is uncertain by up to "
                f"{min(error, 1.0):.2f} either way. More are marked as val with --split; sensorium "
                "compare --folds 5 uses all training rows."
            )
        if metrics and is_near_chance(metrics) and training_rows >= self.min_training_rows:
            sentences.insert(1, f"What helps: {'; '.join(self.remedies)}.")
        return sentences

    def _verdict(self, metrics: Mapping[str, float], validation_rows: int) -> str:
        recall, chance = metrics["recall@1"], metrics["random recall@1"]
        values = (
            f"on {validation_rows:,} validation rows recall@1 is {recall:.3f} "
            f"({chance:.3f} by chance), recall@10 {metrics['recall@10']:.3f} "
            f"({metrics['random recall@10']:.3f} by chance)"
        )
        if is_near_chance(metrics):
            return f"Verdict: near chance, do not rely on this model: {values}."
        return f"Verdict: {recall / chance:.3g} times chance: {values}."


def is_near_chance(metrics: Mapping[str, float]) -> bool:
    """Return whether recall is within the noise of a random order, or hardly above it.

    Args:
        metrics: what `compute_retrieval_metrics` returns.
    """
    chance, candidates = metrics["random recall@1"], metrics["captions"]
    deviation = math.sqrt(chance * (1 - chance) / metrics["rows"])
    if metrics["recall@1"] <= chance + NOISE_DEVIATIONS * deviation:
        return True
    is_informative = candidates >= MIN_CANDIDATES_AT_10
    lift = metrics["recall@10"] / metrics["random recall@10"]
    return is_informative and lift < MIN_LIFT_AT_10
