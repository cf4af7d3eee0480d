"""Supervised losses of prediction targets: classes, ranks, tag sets and numbers.

B batch   K outputs of a head   C classes   L tags   E tags and one for all unseen ones
"""

from collections.abc import Mapping, Sequence
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
        contrastive_loss = torch.zeros(())
        if self.contrastive_weight:
            contrastive_loss = self.contrastive_weight * cross_modal_infonce(parts)
        return {"model": self._prediction_loss(model, parts, batch) + contrastive_loss}

    def accumulate(self, model: MultimodalPredictor, batches: Sequence[Batch]) -> dict[str, Tensor]:
        """Add the gradients of one large batch, given as micro-batches, to the parameters.

        Each target's loss is divided by the number of rows with this target in all micro-batches.
        The contrastive loss compares the rows of all micro-batches (GradCache, Gao et al. 2021).

        Returns:
            The loss of the large batch, without a graph.
        """
        counts = {
            name: torch.stack([self.has_target(name, batch).sum() for batch in batches]).sum()
            for name in self.targets
        }
        rng_states: list[Tensor] = []
        pooled_grads: list[dict[ColumnKey, Tensor]] = [{} for _ in batches]
        total = torch.zeros(())
        if self.contrastive_weight:
            rng_states, pooled = _pool_without_graph(model, batches)
            contrastive_loss, pooled_grads = _contrastive_gradients(pooled, self.contrastive_weight)
            total = total + contrastive_loss
        for i, batch in enumerate(batches):
            if rng_states:
                torch.set_rng_state(rng_states[i])  # the dropout of the first pass
            parts = model.encode_inputs(batch)
            loss = self._prediction_loss(model, parts, batch, counts)
            total = total + loss.detach()
            for key, grad in pooled_grads[i].items():
                loss = loss + (mean_pool(parts[key]) * grad).sum()
            if loss.requires_grad:
                torch.autograd.backward(loss)
        return {"model": total}

    def _prediction_loss(
        self,
        model: MultimodalPredictor,
        parts: Mapping[ColumnKey, Tokens],
        batch: Batch,
        counts: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the targets, predicted from the encoded parts of a batch."""
        num_rows = len(batch)
        if not (model.training and self.mixup):
            return self.compute_loss(model.predict_targets(parts, num_rows), batch, counts)
        weight = _sample_beta(self.mixup)
        permutation = torch.randperm(num_rows)
        mixed = {name: mix_tokens(t, permutation, weight) for name, t in parts.items()}
        outputs = model.predict_targets(mixed, num_rows)
        own_loss = self.compute_loss(outputs, batch, counts)
        other_loss = self.compute_loss(outputs, batch.take(permutation), counts)
        return weight * own_loss + (1 - weight) * other_loss

    def compute_loss(
        self,
        outputs: Mapping[str, Tensor],
        batch: Batch,
        counts: Mapping[str, Tensor] | None = None,
    ) -> Float[Tensor, ""]:
        """Return the loss of the predictions of each target.

        Args:
            outputs: Outputs of each target's head.
            batch: The rows, with their targets.
            counts: What the loss of each target is divided by; by default the rows that have it.
        """
        losses: list[Tensor] = []
        for name, target in self.targets.items():
            mask = self.has_target(name, batch)
            row_losses = target.loss(outputs[name].float(), batch[name])
            count = mask.sum() if counts is None else counts[name]
            losses.append((row_losses * mask).sum() / count.clamp(min=1))
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


_PooledParts = dict[ColumnKey, tuple[Tensor, Tensor]]
"""The mean token of each part, [B D], and the rows that have one, [B]."""


def _pool_parts(parts: Mapping[ColumnKey, Tokens]) -> _PooledParts:
    """Return the mean token of each part, and which rows have the part."""
    return {key: (mean_pool(t), valid_mask(t).any(1)) for key, t in parts.items()}


def cross_modal_infonce(parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, ""]:
    """Return the mean InfoNCE loss over all pairs of modalities, on rows that have both."""
    return _pooled_infonce(_pool_parts(parts))


def _pooled_infonce(parts: _PooledParts) -> Float[Tensor, ""]:
    losses: list[Tensor] = []
    for (a, present_a), (b, present_b) in combinations(parts.values(), 2):
        rows = (present_a & present_b).nonzero().squeeze(1)
        if len(rows) > 1:
            logits = l2_normalize(a[rows]) @ l2_normalize(b[rows]).T / INFONCE_TEMPERATURE
            positives = torch.eye(len(rows), dtype=torch.bool, device=logits.device)
            losses.append((infonce(logits, positives) + infonce(logits.T, positives)) / 2)
    return torch.stack(losses).mean() if losses else torch.zeros(())


@torch.no_grad()
def _pool_without_graph(
    model: MultimodalPredictor, batches: Sequence[Batch]
) -> tuple[list[Tensor], list[_PooledParts]]:
    """Return the random state before each micro-batch, and its pooled parts."""
    rng_states: list[Tensor] = []
    pooled: list[_PooledParts] = []
    for batch in batches:
        rng_states.append(torch.get_rng_state())
        pooled.append(_pool_parts(model.encode_inputs(batch)))
    return rng_states, pooled


def _contrastive_gradients(
    pooled: Sequence[_PooledParts], weight: float
) -> tuple[Tensor, list[dict[ColumnKey, Tensor]]]:
    """Return the contrastive loss of all micro-batches, and its gradients by micro-batch and part.

    A micro-batch lacks a part that none of its rows has.
    """
    sizes = [len(next(iter(parts.values()))[1]) if parts else 0 for parts in pooled]
    leaves: list[dict[ColumnKey, Tensor]] = [
        {key: x.detach().requires_grad_() for key, (x, _) in parts.items()} for parts in pooled
    ]
    whole: _PooledParts = {}
    for key, width in {key: x.shape[1] for parts in leaves for key, x in parts.items()}.items():
        x = [leaf.get(key, torch.zeros(n, width)) for leaf, n in zip(leaves, sizes, strict=True)]
        present = [
            parts[key][1] if key in parts else torch.zeros(n, dtype=torch.bool)
            for parts, n in zip(pooled, sizes, strict=True)
        ]
        whole[key] = (torch.cat(x), torch.cat(present))
    loss = weight * _pooled_infonce(whole)
    if loss.requires_grad:
        torch.autograd.backward(loss)
    grads = [{key: x.grad for key, x in parts.items() if x.grad is not None} for parts in leaves]
    return loss.detach(), grads


def _logit(p: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    return _tensor(np.log(p / (1 - p)))


def _tensor(values: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    """Convert an array from NumPy; PyTorch's arithmetic would load its compiler in a dry build.

    See `nn.linear.normal_parameter`.
    """
    return torch.tensor(values)


def _sample_beta(alpha: float) -> float:
    """Sample from the beta distribution with both parameters `alpha`."""
    return torch.distributions.Beta(torch.tensor(alpha), torch.tensor(alpha)).sample().item()
