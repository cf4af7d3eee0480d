"""How well a model predicts: each target on each split, beside the prior, before calibration, with values missing.

    N rows   C classes or tags   K numbers that a head says
"""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.calibrate import Calibration, answered
from sensorium.data.cache import Prepared
from sensorium.data.dataset import Dataset
from sensorium.data.splits import spaced
from sensorium.errors import SensoriumError
from sensorium.fused import Fused
from sensorium.metrics import predictions as figures_of
from sensorium.metrics.calibration import class_sets
from sensorium.metrics.predictions import Figures
from sensorium.modalities.modality import Modality
from sensorium.modalities.table import Category, Number, Ordinal
from sensorium.modalities.tags import Tags
from sensorium.recipes.judge_missing import SHARES, Point, against_missing, lost, only
from sensorium.recipes.judge_pages import pages
from sensorium.recipes.prediction import said_of
from sensorium.recipes.protocol import Trained
from sensorium.report import Report
from sensorium.tokens import Batch

LEVELS = (0.5, 0.8, 0.9, 0.95)
HIDDEN = 2000                               # rows of a split, at most, on which values are hidden
DEFINED = {"category": figures_of.CLASSES, "ordinal": figures_of.RANKS, "set": figures_of.TAGS,
           "number": figures_of.NUMBERS}
MAIN = {"category": "accuracy", "ordinal": "accuracy", "set": "mAP", "number": "R2"}
SHOWN = {"category": ("accuracy", "balanced accuracy", "macro F1", "ROC AUC", "log loss"),
         "ordinal": ("MAE", "accuracy", "quadratic kappa"), "set": ("mAP", "micro F1", "macro F1"),
         "number": ("MAE", "RMSE", "R2", "Spearman")}
PLAIN = {"category": ("accuracy", "log loss"), "ordinal": ("MAE", "accuracy"), "set": ("mAP", "hamming loss"),
         "number": ("MAE", "RMSE")}
ALWAYS = """\
prior: the same figure where every row gets what is said when nothing is known: the most common class, the mean, each
tag as often as in training. uncalibrated: what was learned, before the temperature (a factor for spreads) fitted on
the validation rows, and, of numbers, intervals of a normal distribution with the spread that was learned. coverage at
L: share of true values within the interval, or of true classes within the set, that should hold them with probability
L (split conformal, from the validation rows; exact for rows drawn like these, but for the choice of the best weights
on them). answered at L: share of rows sure enough that answers are right with probability L, as the validation rows
have it; right: share of these that are. at S missing: the main figure with that share of the values hidden at random,
masked as the model does it; filled: the same with the mean, the most common class, a picture of mean colour or an
empty text in their place. lost: what masking loses with half of the values hidden, over what filling in loses. NAME
alone: with that column, or all single values (row), alone."""
Judge = Callable[..., Report]


def predictions(targets: Mapping[str, Modality]) -> Judge:
    """A judge of what is predicted of these columns."""
    def judge(model: Trained, dataset: Dataset, splits: Sequence[str], *, most: int = 100_000,
              ablate: bool = False) -> Report:
        """most: rows of a split that are judged, evenly spaced. ablate: also with each column alone."""
        assert isinstance(fused := model.module, Fused)
        columns = [name for name in model.recipe.data.columns if isinstance(name, str)]
        lacking = [name for name in columns if name not in dataset.table.columns]
        if wrong := [name for name in lacking if name in targets]:
            raise SensoriumError(f"{dataset.name} has no column {wrong[0]!r}: without it there is nothing to judge by")
        kept = [name for name in columns if name not in lacking]
        prepared = dataset.prepare(model.schema, kept)
        reads = {name: model.schema[name] for name in kept if name not in targets}
        found = _Judging(fused, prepared, reads, targets)
        for split in splits:
            found.split(split, spaced(dataset.splits[split], most), ablate)
        notes = [f"no column {name}: judged without it" for name in lacking] + found.notes
        kinds = dict.fromkeys(of.kind for of in targets.values())
        told = "\n\n".join([*(DEFINED[kind] for kind in kinds), ALWAYS])
        return Report(found.figures, {"target": ", ".join(targets)}, "prediction", found.shown(), told, notes,
                      found.pictures)
    return judge


class _Judging:
    """What was found so far."""

    def __init__(self, model: Fused, prepared: Prepared, reads: Mapping[str, Modality],
                 targets: Mapping[str, Modality]):
        self.model, self.prepared, self.reads, self.targets = model, prepared, reads, targets
        self.figures: dict[str, dict[str, float]] = {}
        self.pictures: dict[str, str] = {}
        self.notes: list[str] = []

    def split(self, split: str, rows: np.ndarray, ablate: bool) -> None:
        """Judge every target on these rows."""
        if not len(rows):
            return
        seen = self._seen(rows, lambda batch: batch)
        points = list(against_missing(self.model, self.prepared, spaced(rows, HIDDEN), self.reads, [*self.targets],
                                      self._scores))
        alone = self._alone(rows) if ablate else {}
        self.figures[split] = {}
        for number, (name, one) in enumerate(seen.items()):
            found = one.figures()
            self.notes += [f"{split}, {name}: {why}" for why in found.left_out]
            main = MAIN[one.of.kind]
            told = found.values | _missing(points, name, main) | {
                f"{part} alone {main}": scores[name] for part, scores in alone.items() if name in scores}
            self.figures[split] |= {self._called(name, what): value for what, value in told.items()}
            drawn = pages(name, one.of, self.model.calibration(name), one.said, one.y, points, main)
            self.pictures |= {f"evaluation/{split}-{number}-{what}.svg": svg for what, svg in drawn.items()}

    def shown(self) -> list[str]:
        """The figures that matter most, of all targets."""
        after = ("coverage at 90%", "calibration error", "lost")
        return [self._called(name, what) for name, of in self.targets.items()
                for what in (*(w for one in SHOWN[of.kind] for w in (one, f"prior {one}")), *after,
                             *(f"{MAIN[of.kind]} at 50% missing{how}" for how in ("", ", filled")))]

    def _called(self, name: str, what: str) -> str:
        return what if len(self.targets) == 1 else f"{name}: {what}"

    def _seen(self, rows: np.ndarray, change: Callable[[Batch], Batch]) -> dict[str, _Seen]:
        return self._known(*said_of(self.model, self.prepared, rows, [*self.targets], change))

    def _known(self, said: Mapping[str, Tensor], true: Batch) -> dict[str, _Seen]:
        """Of each target the rows that have it."""
        prior = self.model.answer({}, 1)
        found = {}
        for name, of in self.targets.items():
            known = true.there(name)
            found[name] = _Seen(of, self.model.calibration(name), said[name][known], true[name][known], prior[name])
        return found

    def _scores(self, said: Mapping[str, Tensor], true: Batch) -> dict[str, float]:
        """The main figure of each target, where it is defined."""
        found = {name: one.plain(one.calibration).values.get(MAIN[one.of.kind])
                 for name, one in self._known(said, true).items()}
        return {name: value for name, value in found.items() if value is not None}

    def _alone(self, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """{part: {target: main figure}} with nothing but that part."""
        parts = {name: [name] for name in self.model.names}
        if self.model.row is not None:
            row = "row" if "row" not in parts else "row (all single values)"
            parts |= {row: self.model.columns[len(self.model.names):]}
        if len(parts) < 2:
            self.notes.append("there is one part alone: nothing to take away")
            return {}
        return {part: self._scores(*said_of(self.model, self.prepared, rows, [*self.targets], only(self.model, names)))
                for part, names in parts.items()}


@dataclass(frozen=True)
class _Seen:
    """One target: what was said of rows that have it, and what was true."""

    of: Modality
    calibration: Calibration
    said: Float[Tensor, "N K"]
    y: Tensor
    prior: Float[Tensor, "1 K"]

    def figures(self) -> Figures:
        """All of them."""
        found, bare = self.plain(self.calibration), self.plain(Calibration())
        prior = figures(self.of, Calibration(), self.prior.expand(len(self.y), -1), self.y, {})
        found.values |= {f"prior {name}": prior.values[name] for name in PLAIN[self.of.kind] if name in prior.values}
        found.values |= {f"uncalibrated {name}": bare.values[name] for name in bare.values
                         if name in {"calibration error", "log loss"} | {f"coverage at {level:.0%}" for level in LEVELS}}
        if isinstance(self.of, Category) and len(self.y):
            self._sets(self.of, found)
            self._abstaining(self.of, found)
        return found

    def plain(self, calibration: Calibration) -> Figures:
        """Those that need nothing beside what was said."""
        fitted = calibration is self.calibration
        bounds = {level: calibration.bound(level) if fitted else NormalDist().inv_cdf((1 + level) / 2)
                  for level in LEVELS}
        return figures(self.of, calibration, self.said, self.y, bounds)

    def _sets(self, of: Category, found: Figures) -> None:
        p = self.calibration.probabilities(of, self.said)
        for level in LEVELS:
            sets = class_sets(p, self.calibration.bound(level))
            held = torch.cat([sets, torch.zeros_like(sets[:, :1])], 1).gather(1, self.y[:, None])
            found.put(f"coverage at {level:.0%}", lambda held=held: held.double().mean())
            found.put(f"classes in a set at {level:.0%}", lambda sets=sets: sets.double().sum(1).mean())

    def _abstaining(self, of: Category, found: Figures) -> None:
        p = self.calibration.probabilities(of, self.said)
        answer = answered(of, p)
        sure = p.gather(1, answer[:, None])[:, 0]
        for level in LEVELS:
            kept = sure >= self.calibration.surely(level)
            found.put(f"answered at {level:.0%}", lambda kept=kept: kept.double().mean())
            if kept.any():
                found.put(f"right of those answered at {level:.0%}",
                          lambda kept=kept: (answer == self.y)[kept].double().mean())


def figures(of: Modality, calibration: Calibration, said: Float[Tensor, "N K"], y: Tensor,
            bounds: Mapping[float, float]) -> Figures:
    """By kind of target, numbers in their column's own unit."""
    match of:
        case Ordinal():
            return figures_of.rank_figures(calibration.probabilities(of, said), y)
        case Category():
            return figures_of.class_figures(calibration.probabilities(of, said), y)
        case Tags():
            return figures_of.tag_figures(calibration.probabilities(of, said), y > 0.5)
        case Number():
            found = calibration.amount(said)
            return figures_of.number_figures(found.mean.double() * of.std + of.mean, y.double() * of.std + of.mean,
                                             found.spread * of.std, bounds)
    raise TypeError(f"a {of.kind} cannot be predicted")


def _missing(points: Sequence[Point], name: str, what: str) -> dict[str, float]:
    """The main figure with values hidden, and what part of filling-in's loss is lost."""
    found = {}
    for p in points:
        if name in p.masked and name in p.filled:
            found |= {f"{what} at {p.share:.0%} missing": p.masked[name],
                      f"{what} at {p.share:.0%} missing, filled": p.filled[name]}
    loss = lost(points, name) if len(found) == 2 * len(SHARES) else None
    return found if loss is None else {**found, "lost": loss}
