"""Metrics of predictions by type of target, computed by scikit-learn.

N rows   C classes   K tags   E tags including those that training did not see

A metric that is undefined on the given rows (one class only, no variance) is left out, with the
reason; it is never zero or NaN.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import SupportsFloat

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.metrics.calibration import compute_reliability, median_rank, top_class

CLASSIFICATION_METRICS_HELP = """\
accuracy: share of rows whose most likely class is the true one. balanced accuracy: mean recall over
the true classes. macro F1: mean F1 over all classes that are true or predicted somewhere. ROC AUC:
one class against the rest, mean over classes; for two classes, of the second. average precision:
for two classes, of the second. log loss: mean -log of the true class's probability. calibration
error: expected calibration error (ECE) of the most likely class, 15 bins of equal width. Rows of
classes that training did not see count as wrong; ROC AUC, average precision and log loss leave them
out."""
MULTILABEL_METRICS_HELP = """\
A tag is predicted at a probability of 0.5 or more. micro F1: F1 over all tags of all rows. macro
F1: mean F1 over all tags that are true or predicted somewhere. subset accuracy: share of rows with
exactly the true tags. mAP: mean average precision over tags. hamming loss: share of wrong
decisions. calibration error: ECE over all decisions. Tags that training did not see count as
missed."""
REGRESSION_METRICS_HELP = """\
MAE, RMSE, median AE: mean absolute, root mean squared and median absolute error, in the column's
unit. R2: coefficient of determination. Spearman: rank correlation. coverage at L: share of true
values inside the interval of level L; width at L: mean width of that interval."""
ORDINAL_METRICS_HELP = """\
The median rank is predicted. accuracy: share of rows with exactly that rank. MAE: mean absolute
error in ranks. quadratic kappa: Cohen's kappa with quadratic weights (Cohen 1968). log loss,
calibration error: as for classes. Rows of ranks that training did not see are left out."""

_NO_ROWS = "all metrics: there are no rows"


@dataclass
class MetricValues:
    """The metrics of one target.

    Attributes:
        values: Metrics by name.
        undefined: Metrics that are not defined on these rows, each as "name: reason".
    """

    values: dict[str, float] = field(default_factory=dict)
    undefined: list[str] = field(default_factory=list)

    def add(
        self, name: str, compute: Callable[[], SupportsFloat], *, undefined_reason: str = ""
    ) -> None:
        """Add a metric, or record why it is undefined.

        Args:
            name: Name of the metric.
            compute: Returns its value; not called if it is undefined.
            undefined_reason: Why it is undefined; empty if it is not.
        """
        if undefined_reason:
            self.undefined.append(f"{name}: {undefined_reason}")
        else:
            self.values[name] = float(compute())


def classification_metrics(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> MetricValues:
    """Return the metrics of a categorical target.

    Args:
        probabilities: Probability of each class.
        y: True classes; C is a class that training did not see.
    """
    sk = _import_sklearn_metrics()
    metrics = MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, [_NO_ROWS])
    true = y.numpy()
    predicted = probabilities.argmax(1).numpy()
    is_known = (y < probabilities.shape[1]).numpy()
    known_true = true[is_known]
    known_p = probabilities.numpy()[is_known]
    _add_row_counts(metrics, is_known, "rows of unseen classes")
    metrics.add("accuracy", lambda: sk.accuracy_score(true, predicted))
    metrics.add(
        "balanced accuracy",
        lambda: sk.recall_score(
            true, predicted, labels=np.unique(true), average="macro", zero_division=0
        ),
    )
    metrics.add("macro F1", lambda: sk.f1_score(true, predicted, average="macro", zero_division=0))
    has_classes = len(np.unique(known_true)) > 1
    undefined_reason = "" if has_classes else "all rows are of one class"
    metrics.add(
        "ROC AUC",
        lambda: np.mean(list(_iter_roc_auc(known_true, known_p))),
        undefined_reason=undefined_reason,
    )
    if probabilities.shape[1] == 2:
        metrics.add(
            "average precision",
            lambda: sk.average_precision_score(known_true, known_p[:, 1]),
            undefined_reason=undefined_reason,
        )
    _add_probability_metrics(metrics, probabilities, y, is_known)
    return metrics


def ordinal_metrics(probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]) -> MetricValues:
    """Return the metrics of an ordinal target.

    Args:
        probabilities: Probability of each rank.
        y: True ranks; C is one that training did not see.
    """
    sk = _import_sklearn_metrics()
    metrics = MetricValues()
    is_known = (y < probabilities.shape[1]).numpy()
    if not is_known.any():
        reason = "all metrics: there are no rows of a rank that training saw"
        return MetricValues({"rows": float(len(y))}, [reason])
    true = y.numpy()[is_known]
    predicted = median_rank(probabilities).numpy()[is_known]
    _add_row_counts(metrics, is_known, "rows of unseen ranks")
    metrics.add("accuracy", lambda: np.mean(true == predicted))
    metrics.add("MAE", lambda: np.abs(true - predicted).mean())
    has_ranks = len(np.unique(np.append(true, predicted))) > 1
    metrics.add(
        "quadratic kappa",
        lambda: sk.cohen_kappa_score(true, predicted, weights="quadratic"),
        undefined_reason="" if has_ranks else "all true and predicted ranks are the same",
    )
    _add_probability_metrics(metrics, probabilities[is_known], y[is_known], is_known[is_known])
    return metrics


def multilabel_metrics(probabilities: Float[Tensor, "N K"], y: Bool[Tensor, "N E"]) -> MetricValues:
    """Return the metrics of a multilabel target.

    Args:
        probabilities: Probability of each tag.
        y: Whether a row has each tag; the columns after the K-th are tags that training did not
            see.
    """
    sk = _import_sklearn_metrics()
    metrics = MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, [_NO_ROWS])
    num_tags = probabilities.shape[1]
    true = y.numpy()
    predicted = np.zeros(y.shape, bool)
    predicted[:, :num_tags] = probabilities.numpy() >= 0.5
    known_true = true[:, :num_tags]
    is_known = np.logical_not(true[:, num_tags:].any(1))
    _add_row_counts(metrics, is_known, "rows with unseen tags")
    used_tags = np.flatnonzero(true.any(0) | predicted.any(0))
    undefined_reason = "" if len(used_tags) else "no row has a tag, and none is predicted"
    for average in ("micro", "macro"):
        metrics.add(
            f"{average} F1",
            lambda average=average: sk.f1_score(
                true, predicted, average=average, zero_division=0, labels=used_tags
            ),
            undefined_reason=undefined_reason,
        )
    metrics.add("subset accuracy", lambda: (true == predicted).all(1).mean())
    _add_mean_average_precision(metrics, known_true, probabilities.numpy())
    metrics.add("hamming loss", lambda: (true != predicted).mean())
    metrics.add(
        "calibration error",
        lambda: (
            compute_reliability(
                probabilities.flatten(), y[:, :num_tags].flatten()
            ).expected_calibration_error
        ),
    )
    return metrics


def _add_mean_average_precision(
    metrics: MetricValues, true: np.ndarray, probabilities: np.ndarray
) -> None:
    """Add the mean average precision over the tags that occur in any row."""
    sk = _import_sklearn_metrics()
    has_rows: np.ndarray = np.any(true, 0)
    metrics.add(
        "mAP",
        lambda: np.mean(
            [
                sk.average_precision_score(true[:, k], probabilities[:, k])
                for k in np.flatnonzero(has_rows)
            ]
        ),
        undefined_reason="" if has_rows.any() else "no row has a tag",
    )
    if has_rows.any() and not has_rows.all():
        metrics.undefined.append(f"mAP: no row has {(~has_rows).sum()} of {len(has_rows)} tags")


def regression_metrics(
    mean: Float[Tensor, "N"],
    y: Float[Tensor, "N"],
    intervals: Mapping[float, Float[Tensor, "N 2"]],
) -> MetricValues:
    """Return the metrics of a numeric target.

    Args:
        mean: Predictions in the column's unit.
        y: True values.
        intervals: For each level, the lower and upper bounds of the predictions.
    """
    sk = _import_sklearn_metrics()
    metrics = MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, [_NO_ROWS])
    predicted = mean.double().numpy()
    true = y.double().numpy()
    errors = np.abs(true - predicted)
    constant_reason = "" if np.ptp(true) else "all true values are the same"
    spearman_reason = constant_reason
    if not spearman_reason and not np.ptp(predicted):
        spearman_reason = "all predicted values are the same"
    metrics.add("rows", lambda: len(true))
    metrics.add("MAE", lambda: errors.mean())
    metrics.add("RMSE", lambda: np.sqrt((errors**2).mean()))
    metrics.add("median AE", lambda: np.median(errors))
    metrics.add("R2", lambda: sk.r2_score(true, predicted), undefined_reason=constant_reason)
    metrics.add("Spearman", lambda: _spearman(true, predicted), undefined_reason=spearman_reason)
    for level, bounds in intervals.items():
        _add_interval_metrics(metrics, level, true, bounds.double().numpy())
    return metrics


def _add_interval_metrics(
    metrics: MetricValues, level: float, true: np.ndarray, bounds: np.ndarray
) -> None:
    """Add the coverage and width of the intervals of one level."""
    is_finite = bool(np.isfinite(bounds).all())
    undefined_reason = "" if is_finite else "there are too few validation rows for an interval"
    metrics.add(
        f"coverage at {level:.0%}",
        lambda: ((bounds[:, 0] <= true) & (true <= bounds[:, 1])).mean(),
        undefined_reason=undefined_reason,
    )
    metrics.add(
        f"width at {level:.0%}",
        lambda: (bounds[:, 1] - bounds[:, 0]).mean(),
        undefined_reason=undefined_reason,
    )


def _add_row_counts(
    metrics: MetricValues, is_known: Bool[np.ndarray, "N"], unseen_label: str
) -> None:
    """Add the number of rows, and of those with values that training did not see, if any."""
    metrics.add("rows", lambda: len(is_known))
    if not is_known.all():
        metrics.add(unseen_label, lambda: (~is_known).sum())


def _add_probability_metrics(
    metrics: MetricValues, probabilities: Tensor, y: Tensor, is_known: np.ndarray
) -> None:
    """Add the log loss over rows of known classes, and the calibration error."""
    sk = _import_sklearn_metrics()
    true = y.numpy()[is_known]
    num_classes = probabilities.shape[1]
    undefined_reason = ""
    if num_classes < 2:
        undefined_reason = "there are fewer than two classes"
    elif not is_known.any():
        undefined_reason = "there are no rows of a class that training saw"
    metrics.add(
        "log loss",
        lambda: sk.log_loss(
            true, _normalize_rows(probabilities)[is_known], labels=range(num_classes)
        ),
        undefined_reason=undefined_reason,
    )
    metrics.add(
        "calibration error",
        lambda: compute_reliability(*top_class(probabilities, y)).expected_calibration_error,
    )


def _iter_roc_auc(true: np.ndarray, probabilities: np.ndarray) -> Iterator[float]:
    """Yield the one-vs-rest ROC AUC of each class among the rows; of two classes, the second."""
    sk = _import_sklearn_metrics()
    classes = [1] if probabilities.shape[1] == 2 else np.unique(true)
    for index in classes:
        yield sk.roc_auc_score(true == index, probabilities[:, index])


def _normalize_rows(probabilities: Tensor) -> np.ndarray:
    """Return float64 probabilities that sum to 1 exactly enough for log_loss."""
    rows = probabilities.double().numpy()
    return rows / rows.sum(1, keepdims=True)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Return the rank correlation, with ties."""
    from scipy.stats import rankdata  # a dependency of scikit-learn

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _import_sklearn_metrics() -> ModuleType:
    """Import sklearn.metrics.

    Raises:
        SensoriumError: If scikit-learn is not installed.
    """
    try:
        from sklearn import metrics
    except ImportError as e:
        raise SensoriumError(
            "Metrics of predictions need scikit-learn, which is not installed. Install it with: "
            'pip install "sensorium[predict]"'
        ) from e
    return metrics
