"""Supervised losses of prediction targets: classes, ranks, tag sets and numbers.

B batch   K outputs of a head   C classes   L tags   E tags and one for all unseen ones
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

NLL_BETA = 0.5
"""How far a large variance reduces the weight of an error (β-NLL, Seitzer et al. 2022)."""

INFONCE_TEMPERATURE = 0.1
"""Temperature of the contrastive loss between modalities."""

MAX_POSITIVE_WEIGHT = 100
"""Largest weight of a rare tag."""

MIN_PRIOR = 1e-6
"""Prior probabilities are clipped to this distance from 0 and 1."""


@runtime_checkable
class Target(Protocol):
    """A kind of prediction target."""

    def prior(self) -> Float[Tensor, "K"]:
        """Return the head's output that predicts the training frequencies."""
        ...

    def has_target(self, y: Tensor) -> Bool[Tensor, "B"]:
        """Return True for rows whose target was seen in training."""
        ...

    def loss(self, logits: Float[Tensor, "B K"], y: Tensor) -> Float[Tensor, "B"]:
        """Return the loss of each row."""
        ...


class ClassificationTarget:
    """A class, predicted by one logit per class; K = C.

    Args:
        modality: The target column.
        label_smoothing: Label smoothing of the cross-entropy.
        class_weight: Whether all classes have the same total weight.
    """

    def __init__(
        self, modality: Category, label_smoothing: float = 0.0, class_weight: bool = False
    ):
        self.num_classes = max(1, len(modality.classes))
        self.label_smoothing = label_smoothing
        self.counts = np.array(modality.counts or (0,) * self.num_classes, np.float32)
        self.weight = None
        if class_weight:
            self.weight = _tensor(self.counts.sum() / (self.num_classes * self.counts.clip(1)))

    def prior(self) -> Float[Tensor, "C"]:
        """Return the log frequency of each class, with one row added to each."""
        return _tensor(np.log((self.counts + 1) / (self.counts + 1).sum()))

    def has_target(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return True for rows whose class was seen in training."""
        return y < self.num_classes

    def loss(self, logits: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the cross-entropy of each row."""
        return F.cross_entropy(
            logits,
            y.clamp(max=self.num_classes - 1),
            self.weight,
            reduction="none",
            label_smoothing=self.label_smoothing,
        )


class OrdinalTarget:
    """A rank, predicted by one logit of P(y > k) per threshold; K = C - 1 (Frank & Hall 2001).

    `models.calibration.monotone_logits` makes the logits consistent with each other.

    Args:
        modality: The target column.
    """

    def __init__(self, modality: Ordinal):
        self.num_classes = max(2, len(modality.classes))
        self.counts = np.array(modality.counts or (0,) * self.num_classes, np.float32)

    def prior(self) -> Float[Tensor, "K"]:
        """Return the logit of the frequency above each threshold."""
        frequency = (self.counts + 1) / (self.counts + 1).sum()
        return _logit((1 - frequency.cumsum()[:-1]).clip(MIN_PRIOR, 1 - MIN_PRIOR))

    def has_target(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return True for rows whose rank was seen in training."""
        return y < self.num_classes

    def loss(self, logits: Float[Tensor, "B K"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the mean binary cross-entropy over the thresholds of each row."""
        thresholds = torch.arange(self.num_classes - 1, device=y.device)
        above = (y[:, None] > thresholds).to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, above, reduction="none").mean(1)


class MultilabelTarget:
    """A set of tags, predicted by one logit per tag; K = L.

    Args:
        modality: The target column.
        class_weight: Whether a tag weighs more in rows that have it, the rarer it is.
    """

    def __init__(self, modality: Multilabel, class_weight: bool = False):
        self.num_tags = max(1, len(modality.tags))
        self.num_rows = modality.rows
        self.counts = np.array(modality.counts or (0,) * self.num_tags, np.float32)
        self.weight = None
        if class_weight:
            odds = (modality.rows - self.counts) / self.counts.clip(1)
            self.weight = _tensor(odds.clip(1, MAX_POSITIVE_WEIGHT))

    def prior(self) -> Float[Tensor, "K"]:
        """Return the logit of each tag's frequency."""
        return _logit((self.counts + 1) / (self.num_rows + 2))

    def has_target(self, y: Float[Tensor, "B E"]) -> Bool[Tensor, "B"]:
        """Return True for every row."""
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, logits: Float[Tensor, "B K"], y: Float[Tensor, "B E"]) -> Float[Tensor, "B"]:
        """Return the mean binary cross-entropy over the tags of each row."""
        return F.binary_cross_entropy_with_logits(
            logits, y[:, : self.num_tags], reduction="none", pos_weight=self.weight
        ).mean(1)


class RegressionTarget:
    """A standardized number, predicted by a mean and a log variance; K = 2."""

    def prior(self) -> Float[Tensor, "2"]:
        """Return mean 0 and log variance 0."""
        return torch.zeros(2)

    def has_target(self, y: Float[Tensor, "B"]) -> Bool[Tensor, "B"]:
        """Return True for every row."""
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, logits: Float[Tensor, "B 2"], y: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        """Return the Gaussian negative log likelihood, with the gradient of β-NLL."""
        log_var = logits[:, 1].clamp(LOG_VAR_MIN, LOG_VAR_MAX)
        nll = (log_var + (y - logits[:, 0]).square() * (-log_var).exp()) / 2
        beta_nll = nll * (log_var.detach() * NLL_BETA).exp()
        return beta_nll + (nll - beta_nll).detach()


def build_target(
    modality: Modality, *, label_smoothing: float = 0.0, class_weight: bool = False
) -> Target:
    """Return the target of a column.

    Args:
        modality: The target column.
        label_smoothing: Label smoothing of classes.
        class_weight: Whether rare classes and tags weigh more.

    Raises:
        ValueError: Columns of this type cannot be predicted.
    """
    match modality:
        case Ordinal():
            return OrdinalTarget(modality)
        case Category():
            return ClassificationTarget(modality, label_smoothing, class_weight)
        case Multilabel():
            return MultilabelTarget(modality, class_weight)
        case Numeric():
            return RegressionTarget()
        case _:
            raise ValueError(f"A column of type {modality.kind} cannot be predicted.")


@dataclass(frozen=True)
class SupervisedLoss:
    """The sum of the targets' losses, each the mean over the rows that have the target.

    Attributes:
        targets: Targets by column.
        mixup: Parameter of the beta distribution by which the tokens of two rows, and their
            losses, are mixed (Zhang et al. 2018); 0 for none.
        contrastive_weight: Weight of the contrastive loss between the modalities of a row.
    """

    targets: Mapping[str, Target]
    mixup: float = 0.0
    contrastive_weight: float = 0.0

    def __call__(self, model: MultimodalPredictor, batch: Batch) -> dict[str, Tensor]:
        """Return the loss of a batch."""
        parts = model.encode_inputs(batch)
        num_rows = len(batch)
        contrastive_loss = torch.zeros(())
        if self.contrastive_weight:
            contrastive_loss = self.contrastive_weight * cross_modal_infonce(parts)
        if not (model.training and self.mixup):
            outputs = model.predict_targets(parts, num_rows)
            return {"model": self.compute_loss(outputs, batch) + contrastive_loss}
        weight = _sample_beta(self.mixup)
        permutation = torch.randperm(num_rows)
        mixed = {name: mix_tokens(t, permutation, weight) for name, t in parts.items()}
        outputs = model.predict_targets(mixed, num_rows)
        own_loss = self.compute_loss(outputs, batch)
        other_loss = self.compute_loss(outputs, batch.take(permutation))
        return {"model": weight * own_loss + (1 - weight) * other_loss + contrastive_loss}

    def compute_loss(self, outputs: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """Return the loss of the predictions of each target."""
        losses = [
            _masked_mean(
                target.loss(outputs[name].float(), batch[name]), self.has_target(name, batch)
            )
            for name, target in self.targets.items()
        ]
        return torch.stack(losses).sum()

    def has_target(self, name: str, batch: Batch) -> Bool[Tensor, "B"]:
        """Return True for rows that have this target."""
        mask = self.targets[name].has_target(batch[name])
        return mask & batch.present[name] if name in batch.present else mask


def mix_tokens(t: Tokens, permutation: Int[Tensor, "B"], weight: float) -> Tokens:
    """Mix each row's tokens with those of another row; tokens that either row lacks stay.

    Args:
        t: Tokens of a modality.
        permutation: The other row of each row.
        weight: Weight of a row's own tokens.
    """
    both_valid = (valid_mask(t) & valid_mask(t)[permutation])[..., None]
    mixed = weight * t.x + (1 - weight) * t.x[permutation]
    return replace(t, x=torch.where(both_valid, mixed, t.x))


def cross_modal_infonce(parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, ""]:
    """Return the mean InfoNCE loss over all pairs of modalities, on rows that have both."""
    losses: list[Tensor] = []
    for a, b in combinations(parts.values(), 2):
        rows = (valid_mask(a).any(1) & valid_mask(b).any(1)).nonzero().squeeze(1)
        if len(rows) > 1:
            embeddings_a = l2_normalize(mean_pool(a)[rows])
            embeddings_b = l2_normalize(mean_pool(b)[rows])
            logits = embeddings_a @ embeddings_b.T / INFONCE_TEMPERATURE
            positives = torch.eye(len(rows), dtype=torch.bool, device=logits.device)
            losses.append((infonce(logits, positives) + infonce(logits.T, positives)) / 2)
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _logit(p: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    return _tensor(np.log(p / (1 - p)))


def _tensor(values: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    """Convert an array from NumPy; PyTorch's arithmetic would load its compiler in a dry build.

    See `nn.linear.normal_parameter`.
    """
    return torch.tensor(values)


def _masked_mean(losses: Float[Tensor, "B"], mask: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
    """Return the mean over the rows where `mask` is True; zero without any."""
    return (losses * mask).sum() / mask.sum().clamp(min=1)


def _sample_beta(alpha: float) -> float:
    """Sample from the beta distribution with both parameters `alpha`."""
    return torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample().item()
