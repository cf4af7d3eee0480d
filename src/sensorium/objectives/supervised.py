"""Learn what is to be said of each target; the loss of each kind of target beside what its numbers mean.

B batch   K numbers that a head says   C classes   P parts
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor

from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.calibration import LOG_VAR_MAX, LOG_VAR_MIN
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch, ColumnKey, Tokens, l2_normalize, mean_pool, valid_mask
from sensorium.objectives.contrastive import infonce

NLL_BETA = 0.5  # how far a wide spread excuses an error (Seitzer et al. 2022)
INFONCE_TEMPERATURE = 0.1  # at which parts of a row are told from those of others


@runtime_checkable
class Target(Protocol):
    """A kind of target: how its head's K numbers are learned and read."""

    def prior(self) -> Float[Tensor, "K"]:
        """What is said where nothing is known: as often as in training."""
        ...

    def has_target(self, y: Tensor) -> Bool[Tensor, "B"]:
        """Rows whose target can be learned from."""
        ...

    def loss(self, logits: Float[Tensor, "B K"], y: Tensor) -> Float[Tensor, "B"]: ...


class ClassificationTarget:
    """One logit a class; K = C. `balance`: every class weighs the same, however rare."""

    def __init__(
        self, modality: Category, label_smoothing: float = 0.0, class_weight: bool = False
    ):
        self.num_classes, self.label_smoothing = max(1, len(modality.classes)), label_smoothing
        self.counts = np.array(modality.counts or (0,) * self.num_classes, np.float32)
        self.weight = (
            _tensor(self.counts.sum() / (self.num_classes * self.counts.clip(1)))
            if class_weight
            else None
        )

    def prior(self) -> Float[Tensor, "C"]:
        return _tensor(np.log((self.counts + 1) / (self.counts + 1).sum()))

    def has_target(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return y < self.num_classes

    def loss(self, logits: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return F.cross_entropy(
            logits,
            y.clamp(max=self.num_classes - 1),
            self.weight,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


class OrdinalTarget:
    """One logit a cut between neighbours, P(y > k); K = C - 1 (Frank and Hall 2001). `decreasing` makes them agree."""

    def __init__(self, modality: Ordinal):
        self.num_classes = max(2, len(modality.classes))
        self.counts = np.array(modality.counts or (0,) * self.num_classes, np.float32)

    def prior(self) -> Float[Tensor, "K"]:
        share = (self.counts + 1) / (self.counts + 1).sum()
        return _logit((1 - share.cumsum()[:-1]).clip(1e-6, 1 - 1e-6))

    def has_target(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return y < self.num_classes

    def loss(self, logits: Float[Tensor, "B K"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        above = (y[:, None] > torch.arange(self.num_classes - 1, device=y.device)).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, above, reduction="none").mean(1)


class MultilabelTarget:
    """One logit a tag; K tags. `balance`: a rare tag weighs more where it is there."""

    def __init__(self, modality: Multilabel, class_weight: bool = False):
        self.num_labels, self.num_rows = max(1, len(modality.tags)), modality.rows
        self.counts = np.array(modality.counts or (0,) * self.num_labels, np.float32)
        self.weight = (
            _tensor(((modality.rows - self.counts) / self.counts.clip(1)).clip(1, 100))
            if class_weight
            else None
        )

    def prior(self) -> Float[Tensor, "K"]:
        return _logit((self.counts + 1) / (self.num_rows + 2))

    def has_target(self, y: Float[Tensor, "B E"]) -> Bool[Tensor, "B"]:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, logits: Float[Tensor, "B K"], y: Float[Tensor, "B E"]) -> Float[Tensor, "B"]:
        return F.binary_cross_entropy_with_logits(
            logits, y[:, : self.num_labels], reduction="none", pos_weight=self.weight
        ).mean(1)


class RegressionTarget:
    """Mean and logarithm of the variance of a standardised number; K = 2. An error counts less where it is expected."""

    def prior(self) -> Float[Tensor, "2"]:
        return torch.zeros(2)

    def has_target(self, y: Float[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, logits: Float[Tensor, "B 2"], y: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        spread = logits[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX)
        likely = (spread + (y - logits[:, 0]).square() * (-spread).exp()) / 2
        weighed = likely * (spread.detach() * NLL_BETA).exp()
        return weighed + (likely - weighed).detach()  # the likelihood, with the other's gradient


def _logit(p: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    return _tensor(np.log(p / (1 - p)))


def _tensor(values: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    """Worked out by NumPy: torch's own arithmetic loads its compiler where a run is planned (see `kernels.drawn`)."""
    return torch.tensor(values)


def build_target(
    modality: Modality, *, label_smoothing: float = 0.0, class_weight: bool = False
) -> Target:
    """How a column of this kind is predicted. Raises ValueError where it cannot be."""
    match modality:
        case Ordinal():
            return OrdinalTarget(modality)
        case Category():
            return ClassificationTarget(modality, label_smoothing, class_weight)
        case Multilabel():
            return MultilabelTarget(modality, class_weight)
        case Numeric():
            return RegressionTarget()
    raise ValueError(f"a column of kind {modality.kind} cannot be predicted")


@dataclass(frozen=True)
class SupervisedLoss:
    """The sum of the targets' losses, each a mean over the rows that have it.

    mixup: how strongly two rows are mixed in what was read of each part, and in their loss (Zhang et al. 2018; the
    parameter of a beta distribution; 0: never). contrast: weight of a loss by which parts of one row find each other.
    """

    targets: Mapping[str, Target]
    mixup: float = 0.0
    contrastive_weight: float = 0.0

    def __call__(self, model: MultimodalPredictor, batch: Batch) -> dict[str, Tensor]:
        parts, rows = model.encode_inputs(batch), len(batch)
        extra = (
            self.contrastive_weight * cross_modal_infonce(parts)
            if self.contrastive_weight
            else torch.zeros(())
        )
        if not (model.training and self.mixup):
            return {"model": self.compute_loss(model.predict_targets(parts, rows), batch) + extra}
        share, other = _sample_beta(self.mixup), torch.randperm(rows)
        said = model.predict_targets(
            {name: mix_tokens(t, other, share) for name, t in parts.items()}, rows
        )
        return {
            "model": share * self.compute_loss(said, batch)
            + (1 - share) * self.compute_loss(said, batch.take(other))
            + extra
        }

    def compute_loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """The loss of what is said of each target."""
        losses = [
            _masked_mean(
                kind.loss(outputs[name].float(), batch[name]), self.has_target(name, batch)
            )
            for name, kind in self.targets.items()
        ]
        return torch.stack(losses).sum()

    def has_target(self, name: str, batch: Batch) -> Bool[Tensor, "B"]:
        """Rows that have this target."""
        known = self.targets[name].has_target(batch[name])
        return known & batch.present[name] if name in batch.present else known


def mix_tokens(t: Tokens, permutation: Int[Tensor, "B"], weight: float) -> Tokens:
    """Each row's part and that of another row, token by token, where both are there; its own where only that is."""
    both = (valid_mask(t) & valid_mask(t)[permutation])[..., None]
    return replace(t, x=torch.where(both, weight * t.x + (1 - weight) * t.x[permutation], t.x))


def cross_modal_infonce(parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, ""]:
    """InfoNCE between all pairs of parts, over the rows that have both."""
    losses = []
    for a, b in combinations(parts.values(), 2):
        rows = (valid_mask(a).any(1) & valid_mask(b).any(1)).nonzero().squeeze(1)
        if len(rows) > 1:
            alike = (
                l2_normalize(mean_pool(a)[rows])
                @ l2_normalize(mean_pool(b)[rows]).T
                / INFONCE_TEMPERATURE
            )
            same = torch.eye(len(rows), dtype=torch.bool, device=alike.device)
            losses.append((infonce(alike, same) + infonce(alike.T, same)) / 2)
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _masked_mean(losses: Float[Tensor, "B"], mask: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _sample_beta(alpha: float) -> float:
    return torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample().item()
