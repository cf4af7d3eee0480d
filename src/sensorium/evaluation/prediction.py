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

from sensorium.data.cache.prepared import PreparedDataset
from sensorium.data.dataset import Dataset
from sensorium.data.splits import sample_evenly
from sensorium.errors import SensoriumError
from sensorium.evaluation.missing_values import (
    MISSING_FRACTIONS,
    MissingValuePoint,
    evaluate_missing_values,
    keep_columns,
    relative_loss,
)
from sensorium.evaluation.prediction_plots import prediction_charts
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport
from sensorium.evaluation.validate_prediction import predict_rows
from sensorium.metrics import prediction as figures_of
from sensorium.metrics.calibration import conformal_sets
from sensorium.metrics.prediction import MetricValues
from sensorium.modalities.base import Modality
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.models.calibration import Calibration, predicted_class
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch

COVERAGE_LEVELS = (0.5, 0.8, 0.9, 0.95)
MAX_MASKED_ROWS = 2000  # rows of a split, at most, on which values are hidden
METRIC_DEFINITIONS = {
    "category": figures_of.CLASSIFICATION_METRICS_HELP,
    "ordinal": figures_of.ORDINAL_METRICS_HELP,
    "multilabel": figures_of.MULTILABEL_METRICS_HELP,
    "numeric": figures_of.REGRESSION_METRICS_HELP,
}
MAIN_METRICS = {"category": "accuracy", "ordinal": "accuracy", "multilabel": "mAP", "numeric": "R2"}
HEADLINE_METRICS = {
    "category": ("accuracy", "balanced accuracy", "macro F1", "ROC AUC", "log loss"),
    "ordinal": ("MAE", "accuracy", "quadratic kappa"),
    "multilabel": ("mAP", "micro F1", "macro F1"),
    "numeric": ("MAE", "RMSE", "R2", "Spearman"),
}
BASELINE_METRICS = {
    "category": ("accuracy", "log loss"),
    "ordinal": ("MAE", "accuracy"),
    "multilabel": ("mAP", "hamming loss"),
    "numeric": ("MAE", "RMSE"),
}
COMMON_DEFINITIONS = """\
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
Evaluator = Callable[..., EvaluationReport]


def prediction_evaluator(targets: Mapping[str, Modality]) -> Evaluator:
    """A judge of what is predicted of these columns."""

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 100_000,
        ablate_columns: bool = False,
    ) -> EvaluationReport:
        """most: rows of a split that are judged, evenly spaced. ablate: also with each column alone."""
        assert isinstance(fused := model.module, MultimodalPredictor)
        columns = [name for name in model.recipe.data.columns if isinstance(name, str)]
        lacking = [name for name in columns if name not in dataset.table.columns]
        if wrong := [name for name in lacking if name in targets]:
            raise SensoriumError(
                f"{dataset.name} has no column {wrong[0]!r}: without it there is nothing to judge by"
            )
        kept = [name for name in columns if name not in lacking]
        prepared = dataset.prepare(model.schema, kept)
        reads = {name: model.schema[name] for name in kept if name not in targets}
        found = _PredictionEvaluation(fused, prepared, reads, targets)
        for split in splits:
            found.evaluate_split(
                split, sample_evenly(dataset.splits[split], max_samples), ablate_columns
            )
        notes = [f"no column {name}: judged without it" for name in lacking] + found.notes
        kinds = dict.fromkeys(of.kind for of in targets.values())
        told = "\n\n".join([*(METRIC_DEFINITIONS[kind] for kind in kinds), COMMON_DEFINITIONS])
        return EvaluationReport(
            found.metrics,
            {"target": ", ".join(targets)},
            "prediction",
            found.headline_metrics(),
            told,
            notes,
            found.charts,
        )

    return evaluate


class _PredictionEvaluation:
    """What was found so far."""

    def __init__(
        self,
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        inputs: Mapping[str, Modality],
        targets: Mapping[str, Modality],
    ):
        self.model, self.prepared, self.inputs, self.targets = model, prepared, inputs, targets
        self.metrics: dict[str, dict[str, float]] = {}
        self.charts: dict[str, str] = {}
        self.notes: list[str] = []

    def evaluate_split(self, split: str, rows: np.ndarray, ablate_columns: bool) -> None:
        """Judge every target on these rows."""
        if not len(rows):
            return
        seen = self._predict_targets(rows, lambda batch: batch)
        points = list(
            evaluate_missing_values(
                self.model,
                self.prepared,
                sample_evenly(rows, MAX_MASKED_ROWS),
                self.inputs,
                [*self.targets],
                self._main_metrics,
            )
        )
        alone = self._ablation_metrics(rows) if ablate_columns else {}
        self.metrics[split] = {}
        for number, (name, one) in enumerate(seen.items()):
            found = one.compute_metrics()
            self.notes += [f"{split}, {name}: {why}" for why in found.undefined]
            main = MAIN_METRICS[one.modality.kind]
            told = (
                found.values
                | _missing_value_metrics(points, name, main)
                | {
                    f"{part} alone {main}": scores[name]
                    for part, scores in alone.items()
                    if name in scores
                }
            )
            self.metrics[split] |= {
                self._metric_name(name, what): value for what, value in told.items()
            }
            drawn = prediction_charts(
                name,
                one.modality,
                self.model.get_calibration(name),
                one.logits,
                one.y,
                points,
                main,
            )
            self.charts |= {
                f"evaluation/{split}-{number}-{what}.svg": svg for what, svg in drawn.items()
            }

    def headline_metrics(self) -> list[str]:
        """The figures that matter most, of all targets."""
        after = ("coverage at 90%", "calibration error", "lost")
        return [
            self._metric_name(name, what)
            for name, of in self.targets.items()
            for what in (
                *(w for one in HEADLINE_METRICS[of.kind] for w in (one, f"prior {one}")),
                *after,
                *(f"{MAIN_METRICS[of.kind]} at 50% missing{how}" for how in ("", ", imputed")),
            )
        ]

    def _metric_name(self, target: str, metric: str) -> str:
        return metric if len(self.targets) == 1 else f"{target}: {metric}"

    def _predict_targets(
        self, rows: np.ndarray, transform: Callable[[Batch], Batch]
    ) -> dict[str, _TargetPredictions]:
        return self._labelled_targets(
            *predict_rows(self.model, self.prepared, rows, [*self.targets], transform)
        )

    def _labelled_targets(
        self, logits: Mapping[str, Tensor], labels: Batch
    ) -> dict[str, _TargetPredictions]:
        """Of each target the rows that have it."""
        prior = self.model.predict_targets({}, 1)
        found = {}
        for name, of in self.targets.items():
            known = labels.presence(name)
            found[name] = _TargetPredictions(
                of,
                self.model.get_calibration(name),
                logits[name][known],
                labels[name][known],
                prior[name],
            )
        return found

    def _main_metrics(self, logits: Mapping[str, Tensor], labels: Batch) -> dict[str, float]:
        """The main figure of each target, where it is defined."""
        found = {
            name: one.basic_metrics(one.calibration).values.get(MAIN_METRICS[one.modality.kind])
            for name, one in self._labelled_targets(logits, labels).items()
        }
        return {name: value for name, value in found.items() if value is not None}

    def _ablation_metrics(self, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """{part: {target: main figure}} with nothing but that part."""
        parts = {name: [name] for name in self.model.encoder_columns}
        if self.model.tabular is not None:
            row = "row" if "row" not in parts else "row (all single values)"
            parts |= {row: self.model.columns[len(self.model.encoder_columns) :]}
        if len(parts) < 2:
            self.notes.append("there is one part alone: nothing to take away")
            return {}
        return {
            part: self._main_metrics(
                *predict_rows(
                    self.model,
                    self.prepared,
                    rows,
                    [*self.targets],
                    keep_columns(self.model, names),
                )
            )
            for part, names in parts.items()
        }


@dataclass(frozen=True)
class _TargetPredictions:
    """One target: what was said of rows that have it, and what was true."""

    modality: Modality
    calibration: Calibration
    logits: Float[Tensor, "N K"]
    y: Tensor
    prior: Float[Tensor, "1 K"]

    def compute_metrics(self) -> MetricValues:
        """All of them."""
        found, bare = self.basic_metrics(self.calibration), self.basic_metrics(Calibration())
        prior = target_metrics(
            self.modality, Calibration(), self.prior.expand(len(self.y), -1), self.y, {}
        )
        found.values |= {
            f"prior {name}": prior.values[name]
            for name in BASELINE_METRICS[self.modality.kind]
            if name in prior.values
        }
        found.values |= {
            f"uncalibrated {name}": bare.values[name]
            for name in bare.values
            if name
            in (
                "calibration error",
                "log loss",
                *(f"coverage at {level:.0%}" for level in COVERAGE_LEVELS),
            )
        }
        if isinstance(self.modality, Category) and len(self.y):
            self._add_set_metrics(self.modality, found)
            self._add_selective_metrics(self.modality, found)
        return found

    def basic_metrics(self, calibration: Calibration) -> MetricValues:
        """Those that need nothing beside what was said."""
        fitted = calibration is self.calibration
        bounds = {
            level: calibration.conformal_quantile(level)
            if fitted
            else NormalDist().inv_cdf((1 + level) / 2)
            for level in COVERAGE_LEVELS
        }
        return target_metrics(self.modality, calibration, self.logits, self.y, bounds)

    def _add_set_metrics(self, modality: Category, metrics: MetricValues) -> None:
        p = self.calibration.probabilities(modality, self.logits)
        for level in COVERAGE_LEVELS:
            sets = conformal_sets(p, self.calibration.conformal_quantile(level))
            held = torch.cat([sets, torch.zeros_like(sets[:, :1])], 1).gather(1, self.y[:, None])
            metrics.add(f"coverage at {level:.0%}", lambda held=held: held.double().mean())
            metrics.add(
                f"classes in a set at {level:.0%}", lambda sets=sets: sets.double().sum(1).mean()
            )

    def _add_selective_metrics(self, modality: Category, metrics: MetricValues) -> None:
        p = self.calibration.probabilities(modality, self.logits)
        answer = predicted_class(modality, p)
        sure = p.gather(1, answer[:, None])[:, 0]
        for level in COVERAGE_LEVELS:
            kept = sure >= self.calibration.selective_threshold(level)
            metrics.add(f"answered at {level:.0%}", lambda kept=kept: kept.double().mean())
            if kept.any():
                metrics.add(
                    f"right of those answered at {level:.0%}",
                    lambda kept=kept: (answer == self.y)[kept].double().mean(),
                )


def target_metrics(
    modality: Modality,
    calibration: Calibration,
    logits: Float[Tensor, "N K"],
    y: Tensor,
    conformal_quantiles: Mapping[float, float],
) -> MetricValues:
    """By kind of target, numbers in their column's own unit."""
    match modality:
        case Ordinal():
            return figures_of.ordinal_metrics(calibration.probabilities(modality, logits), y)
        case Category():
            return figures_of.classification_metrics(calibration.probabilities(modality, logits), y)
        case Multilabel():
            return figures_of.multilabel_metrics(
                calibration.probabilities(modality, logits), y > 0.5
            )
        case Numeric():
            found = calibration.distribution(logits)
            return figures_of.regression_metrics(
                found.mean.double() * modality.std + modality.mean,
                y.double() * modality.std + modality.mean,
                found.std * modality.std,
                conformal_quantiles,
            )
    raise TypeError(f"a {modality.kind} cannot be predicted")


def _missing_value_metrics(
    points: Sequence[MissingValuePoint], target: str, metric: str
) -> dict[str, float]:
    """The main figure with values hidden, and what part of filling-in's loss is lost."""
    found = {}
    for p in points:
        if target in p.masked and target in p.imputed:
            found |= {
                f"{metric} at {p.missing_fraction:.0%} missing": p.masked[target],
                f"{metric} at {p.missing_fraction:.0%} missing, imputed": p.imputed[target],
            }
    loss = relative_loss(points, target) if len(found) == 2 * len(MISSING_FRACTIONS) else None
    return found if loss is None else {**found, "lost": loss}
