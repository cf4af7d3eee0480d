"""Evaluator of predictors: metrics of each target, calibration, coverage and missing values.

N rows
"""

from collections.abc import Mapping, Sequence

import numpy as np
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
from sensorium.evaluation.prediction_baselines import BASELINE_PARTS, baseline_metrics
from sensorium.evaluation.prediction_metrics import (
    HEADLINE_METRICS,
    MAIN_METRICS,
    METRIC_DEFINITIONS,
    TargetPredictions,
)
from sensorium.evaluation.prediction_plots import prediction_charts
from sensorium.evaluation.protocol import Trained
from sensorium.evaluation.report import EvaluationReport, ReportTable
from sensorium.evaluation.spec import Evaluator, picklable
from sensorium.evaluation.validate_prediction import predict_rows
from sensorium.modalities.base import Modality
from sensorium.models.multimodal_predictor import MultimodalPredictor
from sensorium.nn.tokens import Batch

IMPORTANCE_REPEATS = 5  # shuffles of each column
MAX_MASKED_ROWS = 2000  # rows of a split that are evaluated with values hidden
COMMON_DEFINITIONS = """\
baseline: the metric of a constant prediction, the output without any input: the most common class,
the mean, each tag as often as in training. linear baseline: of ridge or logistic regression on
simple features alone (TF-IDF, one-hot classes, scaled numbers, statistics of images and series).
boosting baseline: of boosted trees on such features alone. uncalibrated: before temperature
scaling (of numbers, a factor of the standard deviation) on the validation rows; intervals are
those of a normal distribution with the predicted standard deviation. coverage at L: fraction of
true values within the interval, or of true classes within the prediction set, of nominal coverage
L (split conformal, from the validation rows; exact for rows from the same distribution, but for
the choice of the best weights on them). set size at L: mean number of classes in the set. coverage
at L accuracy: fraction of rows that are answered if the confidence threshold is set for accuracy
L, by the validation rows; selective accuracy at L: accuracy of these rows. at S missing: the main
metric with that fraction of the values hidden at random and masked; imputed: with the mean, the
most common class, an image of the mean color or an empty text instead. relative loss: what masking
loses with half of the values hidden, divided by what imputation loses. only NAME: with that
column, or all single values (row), as the only input."""
BOUNDS_DEFINITION = "Predicted numbers and intervals stay within the natural bounds of the target."


@picklable
def prediction_evaluator(targets: Mapping[str, Modality]) -> Evaluator:
    """Return an evaluator of the predictions of these columns.

    Args:
        targets: modality of each target column.
    """

    def evaluate(
        model: Trained,
        dataset: Dataset,
        splits: Sequence[str],
        *,
        max_samples: int = 100_000,
        ablate_columns: bool = False,
        importance_repeats: int = IMPORTANCE_REPEATS,
        seed: int = 0,
    ) -> EvaluationReport:
        """Evaluate predictions.

        Args:
            model: the predictor.
            dataset: the dataset; input columns may be absent, targets may not.
            splits: names of the splits.
            max_samples: rows per split, evenly spaced.
            ablate_columns: also evaluate with each column as the only input.
            importance_repeats: shuffles of each column in the permutation importance; 0: none.
            seed: seed of the shuffles.

        Raises:
            SensoriumError: if a target column is missing.
        """
        predictor = model.module
        if not isinstance(predictor, MultimodalPredictor):
            raise TypeError(f"{type(predictor).__name__} is not a MultimodalPredictor.")
        present, absent = _match_columns(model, dataset, targets)
        prepared = dataset.prepare(model.schema, present)
        inputs = {name: model.schema[name] for name in present if name not in targets}
        evaluation = _PredictionEvaluation(predictor, prepared, inputs, targets)
        for split in splits:
            rows = sample_evenly(dataset.splits[split], max_samples)
            evaluation.evaluate_split(split, rows, ablate_columns)
            evaluation.add_importance(split, rows, importance_repeats, seed)
        absent_notes = [f"no column {name}: evaluated without it" for name in absent]
        return EvaluationReport(
            evaluation.metrics,
            {"target": ", ".join(targets)},
            task="prediction",
            headline_metrics=evaluation.headline_metrics(),
            definitions=_definitions(targets),
            notes=absent_notes + evaluation.notes,
            charts=evaluation.charts,
            tables=evaluation.tables,
        )

    return evaluate


def _definitions(targets: Mapping[str, Modality]) -> str:
    """Return the definitions of all metrics of these targets."""
    from sensorium.evaluation.column_importance import IMPORTANCE_DEFINITION

    metrics = dict.fromkeys(METRIC_DEFINITIONS[m.kind] for m in targets.values())
    return "\n\n".join([*metrics, COMMON_DEFINITIONS, BOUNDS_DEFINITION, IMPORTANCE_DEFINITION])


def _match_columns(
    model: Trained, dataset: Dataset, targets: Mapping[str, Modality]
) -> tuple[list[str], list[str]]:
    """Return the columns of the model that the dataset has, and those that it lacks."""
    columns = [name for name in model.recipe.data.columns if isinstance(name, str)]
    present = [name for name in columns if name in dataset.table.columns]
    absent = [name for name in columns if name not in present]
    for name in absent:
        if name in targets:
            raise SensoriumError(
                f"{dataset.name} has no column {name!r}, a target of this model. "
                "Evaluate on data with that column."
            )
    return present, absent


class _PredictionEvaluation:
    """Metrics, charts and notes of the splits evaluated so far."""

    def __init__(
        self,
        model: MultimodalPredictor,
        prepared: PreparedDataset,
        inputs: Mapping[str, Modality],
        targets: Mapping[str, Modality],
    ):
        self.model = model
        self.prepared = prepared
        self.inputs = inputs
        self.targets = targets
        self.metrics: dict[str, dict[str, float]] = {}
        self.charts: dict[str, str] = {}
        self.notes: list[str] = []
        self.tables: list[ReportTable] = []
        self.ablation: dict[str, dict[str, float]] = {}

    def evaluate_split(self, split: str, rows: np.ndarray, ablate_columns: bool) -> None:
        """Evaluate every target on these rows."""
        if not len(rows):
            return
        outputs, labels = predict_rows(self.model, self.prepared, rows, [*self.targets])
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
        self.ablation = self._ablation_metrics(rows) if ablate_columns else {}
        baselines = baseline_metrics(self.model, self.prepared, rows, self.targets)
        self.metrics[split] = {}
        for number, (name, predictions) in enumerate(self._by_target(outputs, labels).items()):
            result = predictions.compute_metrics()
            self.notes += [f"{split}, {name}: {reason}" for reason in result.undefined]
            main = MAIN_METRICS[predictions.modality.kind]
            values = result.values | baselines[name] | _missing_value_metrics(points, name, main)
            for part, scores in self.ablation.items():
                if name in scores:
                    values[f"only {part} {main}"] = scores[name]
            for metric, value in values.items():
                self.metrics[split][self._metric_name(name, metric)] = value
            charts = prediction_charts(
                name,
                predictions.modality,
                predictions.calibration,
                predictions.logits,
                predictions.y,
                points,
                main,
            )
            for chart, svg in charts.items():
                self.charts[f"evaluation/{split}-{number}-{chart}.svg"] = svg

    def add_importance(self, split: str, rows: np.ndarray, repeats: int, seed: int) -> None:
        """Add the table of the columns' importance on these rows."""
        from sensorium.evaluation import column_importance as importance  # training has no use

        columns = [name for name in self.inputs if name in self.model.columns]
        if repeats < 1 or not len(rows) or len(columns) < 2:
            return
        sample = importance.importance_rows(self.model, rows, len(columns), repeats)
        result = importance.permutation_importance(
            self.model, self.prepared, sample, columns, self._main_metrics, repeats, seed
        )
        metrics = {name: MAIN_METRICS[modality.kind] for name, modality in self.targets.items()}
        sizes = (len(sample), len(rows))
        table = importance.importance_table(split, result, metrics, self.ablation, sizes)
        self.tables.append(table)

    def headline_metrics(self) -> list[str]:
        """Return the most important metrics of all targets."""
        names = []
        for target, modality in self.targets.items():
            main = MAIN_METRICS[modality.kind]
            metrics = [m for name in HEADLINE_METRICS[modality.kind] for m in _with_baseline(name)]
            metrics += ["coverage at 90%", "calibration error", "relative loss"]
            metrics += [f"{main} at 50% missing", f"{main} at 50% missing, imputed"]
            shown = self.inputs if self.tables else ()  # these are in the table of importance
            metrics += [f"only {part} {main}" for part in self.ablation if part not in shown]
            names += [self._metric_name(target, metric) for metric in metrics]
        return names

    def _metric_name(self, target: str, metric: str) -> str:
        """Return the name in the report; that of the target is left out where there is only one."""
        return metric if len(self.targets) == 1 else f"{target}: {metric}"

    def _by_target(
        self, outputs: Mapping[str, Tensor], labels: Batch
    ) -> dict[str, TargetPredictions]:
        """Return the predictions of each target for the rows that have it."""
        prior = self.model.predict_targets({}, 1)
        predictions = {}
        for name, modality in self.targets.items():
            labelled = labels.presence(name)
            predictions[name] = TargetPredictions(
                modality,
                self.model.get_calibration(name),
                outputs[name][labelled],
                labels[name][labelled],
                prior[name],
            )
        return predictions

    def _main_metrics(self, outputs: Mapping[str, Tensor], labels: Batch) -> dict[str, float]:
        """Return the main metric of each target, where it is defined."""
        scores = {}
        for name, predictions in self._by_target(outputs, labels).items():
            values = predictions.basic_metrics(predictions.calibration).values
            main = MAIN_METRICS[predictions.modality.kind]
            if main in values:
                scores[name] = values[main]
        return scores

    def _ablation_metrics(self, rows: np.ndarray) -> dict[str, dict[str, float]]:
        """Return {part: {target: main metric}} with that part as the only input."""
        parts = {name: [name] for name in self.model.encoder_columns}
        if self.model.tabular is not None:
            row_name = "row" if "row" not in parts else "row (all single values)"
            scalars = self.model.columns[len(self.model.encoder_columns) :]
            parts |= {row_name: scalars} | {name: [name] for name in scalars}
        if len(parts) < 2:
            self.notes.append("the model has a single input: nothing to ablate")
            return {}
        scores = {}
        for part, names in parts.items():
            keep = keep_columns(self.model, names)
            outputs = predict_rows(self.model, self.prepared, rows, [*self.targets], keep)
            scores[part] = self._main_metrics(*outputs)
        return scores


def _with_baseline(metric: str) -> list[str]:
    parts = [f"{part} baseline {metric}" for part in BASELINE_PARTS]
    return [metric, f"baseline {metric}", *parts]


def _missing_value_metrics(
    points: Sequence[MissingValuePoint], target: str, metric: str
) -> dict[str, float]:
    """Return the main metric with values hidden, and the relative loss."""
    values = {}
    for point in points:
        if target in point.masked and target in point.imputed:
            name = f"{metric} at {point.missing_fraction:.0%} missing"
            values[name] = point.masked[target]
            values[f"{name}, imputed"] = point.imputed[target]
    if len(values) < 2 * len(MISSING_FRACTIONS):
        return values
    loss = relative_loss(points, target)
    return values if loss is None else {**values, "relative loss": loss}
