"""The result of zero-shot classification.

N values   C labels
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32


class LabelScore(NamedTuple):
    """How well a label fits a value.

    Attributes:
        label: The label.
        similarity: Cosine similarity, -1 to 1.
        probability: Its probability; None where the model has learned none.
    """

    label: str
    similarity: float
    probability: float | None


@dataclass(frozen=True)
class Classification:
    """The labels of some values.

    Attributes:
        value: The most similar label of each value; None where it is missing or unreadable.
        classes: The labels.
        similarity: Cosine similarity of each label; NaN where the value is missing.
        probability: Probability of each label; None where the model has learned none: for text,
            and for models of text alone.
        sums_to_one: Whether exactly one label applies (softmax), as for CLIP; else each has a
            probability of its own (sigmoid), as for SigLIP, and all may be low.
    """

    value: list[str | None]
    classes: tuple[str, ...]
    similarity: Float32[np.ndarray, "N C"]
    probability: Float32[np.ndarray, "N C"] | None = None
    sums_to_one: bool = True

    def __len__(self) -> int:
        return len(self.value)

    def top(self, k: int = 5) -> list[list[LabelScore]]:
        """Return the k best labels of each value, the best first; none for a missing value."""
        ranked = np.argsort(-self.similarity, axis=1, kind="stable")[:, : max(k, 0)]
        return [
            []
            if self.value[row] is None
            else [self._score(row, index) for index in indices.tolist()]
            for row, indices in enumerate(ranked)
        ]

    def _score(self, row: int, index: int) -> LabelScore:
        probability = None if self.probability is None else float(self.probability[row, index])
        return LabelScore(self.classes[index], float(self.similarity[row, index]), probability)
