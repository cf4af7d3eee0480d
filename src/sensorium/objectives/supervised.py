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

from sensorium.calibrate import NARROW, WIDE
from sensorium.fused import Fused
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number, Ordinal
from sensorium.modalities.tags import Tags
from sensorium.models import mean, unit
from sensorium.objectives.contrastive import infonce
from sensorium.tokens import Batch, ColumnKey, Tokens, present

BETA = 0.5                                  # how far a wide spread excuses an error (Seitzer et al. 2022)
TEMPERATURE = 0.1                           # at which parts of a row are told from those of others


@runtime_checkable
class Target(Protocol):
    """A kind of target: how its head's K numbers are learned and read."""

    def prior(self) -> Float[Tensor, "K"]:
        """What is said where nothing is known: as often as in training."""
        ...

    def known(self, y: Tensor) -> Bool[Tensor, "B"]:
        """Rows whose target can be learned from."""
        ...

    def loss(self, said: Float[Tensor, "B K"], y: Tensor) -> Float[Tensor, "B"]: ...


class Classes:
    """One logit a class; K = C. `balance`: every class weighs the same, however rare."""

    def __init__(self, of: Category, smoothing: float = 0.0, balance: bool = False):
        self.n, self.smoothing = max(1, len(of.classes)), smoothing
        self.counts = np.array(of.counts or (0,) * self.n, np.float32)
        self.weight = _tensor(self.counts.sum() / (self.n * self.counts.clip(1))) if balance else None

    def prior(self) -> Float[Tensor, "C"]:
        return _tensor(np.log((self.counts + 1) / (self.counts + 1).sum()))

    def known(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return y < self.n

    def loss(self, said: Float[Tensor, "B C"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        return F.cross_entropy(said, y.clamp(max=self.n - 1), self.weight, reduction="none",
                               label_smoothing=self.smoothing)


class Ranks:
    """One logit a cut between neighbours, P(y > k); K = C - 1 (Frank and Hall 2001). `decreasing` makes them agree."""

    def __init__(self, of: Ordinal):
        self.n = max(2, len(of.classes))
        self.counts = np.array(of.counts or (0,) * self.n, np.float32)

    def prior(self) -> Float[Tensor, "K"]:
        share = (self.counts + 1) / (self.counts + 1).sum()
        return _logit((1 - share.cumsum()[:-1]).clip(1e-6, 1 - 1e-6))

    def known(self, y: Int[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return y < self.n

    def loss(self, said: Float[Tensor, "B K"], y: Int[Tensor, "B"]) -> Float[Tensor, "B"]:
        above = (y[:, None] > torch.arange(self.n - 1, device=y.device)).to(said.dtype)
        return F.binary_cross_entropy_with_logits(said, above, reduction="none").mean(1)


class Choices:
    """One logit a tag; K tags. `balance`: a rare tag weighs more where it is there."""

    def __init__(self, of: Tags, balance: bool = False):
        self.n, self.rows = max(1, len(of.tags)), of.rows
        self.counts = np.array(of.counts or (0,) * self.n, np.float32)
        self.weight = _tensor(((of.rows - self.counts) / self.counts.clip(1)).clip(1, 100)) if balance else None

    def prior(self) -> Float[Tensor, "K"]:
        return _logit((self.counts + 1) / (self.rows + 2))

    def known(self, y: Float[Tensor, "B E"]) -> Bool[Tensor, "B"]:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, said: Float[Tensor, "B K"], y: Float[Tensor, "B E"]) -> Float[Tensor, "B"]:
        return F.binary_cross_entropy_with_logits(said, y[:, :self.n], reduction="none",
                                                  pos_weight=self.weight).mean(1)


class Amount:
    """Mean and logarithm of the variance of a standardised number; K = 2. An error counts less where it is expected."""

    def prior(self) -> Float[Tensor, "2"]:
        return torch.zeros(2)

    def known(self, y: Float[Tensor, "B"]) -> Bool[Tensor, "B"]:
        return torch.ones(len(y), dtype=torch.bool, device=y.device)

    def loss(self, said: Float[Tensor, "B 2"], y: Float[Tensor, "B"]) -> Float[Tensor, "B"]:
        spread = said[:, 1].clamp(NARROW, WIDE)
        likely = (spread + (y - said[:, 0]).square() * (-spread).exp()) / 2
        weighed = likely * (spread.detach() * BETA).exp()
        return weighed + (likely - weighed).detach()                        # the likelihood, with the other's gradient


def _logit(p: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    return _tensor(np.log(p / (1 - p)))


def _tensor(values: Float32[np.ndarray, "K"]) -> Float[Tensor, "K"]:
    """Worked out by NumPy: torch's own arithmetic loads its compiler where a run is planned (see `kernels.drawn`)."""
    return torch.tensor(values)


def target(of: Modality, *, smoothing: float = 0.0, balance: bool = False) -> Target:
    """How a column of this kind is predicted. Raises ValueError where it cannot be."""
    match of:
        case Ordinal():
            return Ranks(of)
        case Category():
            return Classes(of, smoothing, balance)
        case Tags():
            return Choices(of, balance)
        case Number():
            return Amount()
    raise ValueError(f"a column of kind {of.kind} cannot be predicted")


@dataclass(frozen=True)
class Supervised:
    """The sum of the targets' losses, each a mean over the rows that have it.

    mixup: how strongly two rows are mixed in what was read of each part, and in their loss (Zhang et al. 2018; the
    parameter of a beta distribution; 0: never). contrast: weight of a loss by which parts of one row find each other.
    """

    targets: Mapping[str, Target]
    mixup: float = 0.0
    contrast: float = 0.0

    def __call__(self, model: Fused, batch: Batch) -> dict[str, Tensor]:
        parts, rows = model.read(batch), len(batch)
        extra = self.contrast * together(parts) if self.contrast else torch.zeros(())
        if not (model.training and self.mixup):
            return {"model": self.of(model.answer(parts, rows), batch) + extra}
        share, other = _drawn(self.mixup), torch.randperm(rows)
        said = model.answer({name: mixed(t, other, share) for name, t in parts.items()}, rows)
        return {"model": share * self.of(said, batch) + (1 - share) * self.of(said, batch.take(other)) + extra}

    def of(self, said: Mapping[str, Tensor], batch: Batch) -> Float[Tensor, ""]:
        """The loss of what is said of each target."""
        losses = [_mean(kind.loss(said[name].float(), batch[name]), self.known(name, batch))
                  for name, kind in self.targets.items()]
        return torch.stack(losses).sum()

    def known(self, name: str, batch: Batch) -> Bool[Tensor, "B"]:
        """Rows that have this target."""
        known = self.targets[name].known(batch[name])
        return known & batch.present[name] if name in batch.present else known


def mixed(t: Tokens, other: Int[Tensor, "B"], share: float) -> Tokens:
    """Each row's part and that of another row, token by token, where both are there; its own where only that is."""
    both = (present(t) & present(t)[other])[..., None]
    return replace(t, x=torch.where(both, share * t.x + (1 - share) * t.x[other], t.x))


def together(parts: Mapping[ColumnKey, Tokens]) -> Float[Tensor, ""]:
    """InfoNCE between all pairs of parts, over the rows that have both."""
    losses = []
    for a, b in combinations(parts.values(), 2):
        rows = (present(a).any(1) & present(b).any(1)).nonzero().squeeze(1)
        if len(rows) > 1:
            alike = unit(mean(a)[rows]) @ unit(mean(b)[rows]).T / TEMPERATURE
            same = torch.eye(len(rows), dtype=torch.bool, device=alike.device)
            losses.append((infonce(alike, same) + infonce(alike.T, same)) / 2)
    return torch.stack(losses).mean() if losses else torch.zeros(())


def _mean(losses: Float[Tensor, "B"], known: Bool[Tensor, "B"]) -> Float[Tensor, ""]:
    return (losses * known).sum() / known.sum().clamp(min=1)


def _drawn(strength: float) -> float:
    return torch.distributions.Beta(torch.tensor(strength), torch.tensor(strength)).sample().item()
