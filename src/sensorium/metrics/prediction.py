"""How good are predictions? Figures by kind of target, by scikit-learn; what rows cannot tell is left out, and said.

    N rows   C classes   K tags   E tags, with those that training did not see

A figure that is not defined on the rows given (one class alone, no spread) is no zero and no NaN: it is not there.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.errors import SensoriumError
from sensorium.metrics.calibration import compute_reliability, median_rank, top_class

CLASSIFICATION_METRICS_HELP = """\
accuracy: share of rows whose likeliest class is the true one. balanced accuracy: the mean over the true classes of
the share that is found. macro F1: mean over classes, true or predicted, of 2 TP / (2 TP + FP + FN). ROC AUC: how
often a row of a class is given a higher probability of it than a row of another, the mean over classes; of two
classes, the second's. average precision: of the second of two classes, sum of precision times gain in recall. log
loss: mean of -log of the true class's probability. calibration error (ECE): 15 bins of equal width of the likeliest
class's probability, mean distance from how often it is right, by share. Rows of classes that training did not see
count as wrong; of ROC AUC, average precision and log loss they are no part."""
MULTILABEL_METRICS_HELP = """\
A tag is predicted from a probability of 0.5 on. micro F1: 2 TP / (2 TP + FP + FN) over all tags of all rows; macro
F1: the mean over tags, true or predicted somewhere. subset accuracy: share of rows with exactly the true tags. mAP:
mean over tags of average precision. hamming loss: share of wrong decisions. calibration error: over all decisions.
Tags that training did not see are missed."""
REGRESSION_METRICS_HELP = """\
MAE, RMSE, median AE: mean, root of the mean of squares, median of the absolute error, in the column's own unit. R2:
the share of the spread of the true values that is told, 1 - squared errors / squares around their mean. Spearman:
correlation of ranks. coverage at L: share of true values within the interval for L; width: its mean width."""
ORDINAL_METRICS_HELP = """\
The median rank is predicted. accuracy: share of rows of exactly that rank. MAE: mean distance in ranks. quadratic
kappa: agreement beyond chance, an error weighed by the square of its distance (Cohen 1968). log loss, calibration
error: of the ranks as classes. Rows of ranks that training did not see are left out."""


@dataclass
class MetricValues:
    """Figures by name, and what is not among them, each with the reason."""

    values: dict[str, float] = field(default_factory=dict)
    undefined: list[str] = field(default_factory=list)

    def add(self, name: str, compute: Callable[[], Any], *, undefined_reason: str = "") -> None:
        """Add a figure; with a reason why it is not defined here, say that instead."""
        if undefined_reason:
            self.undefined.append(f"{name}: {undefined_reason}")
        else:
            self.values[name] = float(compute())


def classification_metrics(
    probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]
) -> MetricValues:
    """Of probabilities of classes; y = C is a class that training did not see."""
    sk, found = _import_sklearn_metrics(), MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, ["all figures: there is no row"])
    likeliest, seen = probabilities.argmax(1).numpy(), (y < probabilities.shape[1]).numpy()
    true, all_p = y.numpy(), probabilities.numpy()
    _add_row_counts(found, seen, "rows of classes never seen")
    found.add("accuracy", lambda: sk.accuracy_score(true, likeliest))
    found.add(
        "balanced accuracy",
        lambda: sk.recall_score(
            true, likeliest, labels=np.unique(true), average="macro", zero_division=0
        ),
    )
    found.add("macro F1", lambda: sk.f1_score(true, likeliest, average="macro", zero_division=0))
    one = "" if len(np.unique(true[seen])) > 1 else "the rows are all of one class"
    found.add(
        "ROC AUC",
        lambda: np.mean(list(_iter_roc_auc(true[seen], all_p[seen]))),
        undefined_reason=one,
    )
    if probabilities.shape[1] == 2:
        found.add(
            "average precision",
            lambda: sk.average_precision_score(true[seen], all_p[seen, 1]),
            undefined_reason=one,
        )
    _add_probability_metrics(found, probabilities, y, seen)
    return found


def ordinal_metrics(probabilities: Float[Tensor, "N C"], y: Int[Tensor, "N"]) -> MetricValues:
    """Of probabilities of classes that stand in a row; y = C is one that training did not see."""
    sk, found = _import_sklearn_metrics(), MetricValues()
    seen = (y < probabilities.shape[1]).numpy()
    if not seen.any():
        return MetricValues(
            {"rows": float(len(y))}, ["all figures: there is no row of a rank that training saw"]
        )
    true, said = y.numpy()[seen], median_rank(probabilities).numpy()[seen]
    _add_row_counts(found, seen, "rows of ranks never seen")
    found.add("accuracy", lambda: np.mean(true == said))
    found.add("MAE", lambda: np.abs(true - said).mean())
    found.add(
        "quadratic kappa",
        lambda: sk.cohen_kappa_score(true, said, weights="quadratic"),
        undefined_reason=""
        if len(np.unique(np.append(true, said))) > 1
        else "all are of one rank, as is predicted",
    )
    _add_probability_metrics(found, probabilities[seen], y[seen], seen[seen])
    return found


def multilabel_metrics(probabilities: Float[Tensor, "N K"], y: Bool[Tensor, "N E"]) -> MetricValues:
    """Of the probability of each tag; the columns of y after the K-th are tags that training did not see."""
    sk, found = _import_sklearn_metrics(), MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, ["all figures: there is no row"])
    true, said = y.numpy(), np.zeros(y.shape, bool)
    said[:, : probabilities.shape[1]] = probabilities.numpy() >= 0.5
    known, seen = (
        true[:, : probabilities.shape[1]],
        np.logical_not(true[:, probabilities.shape[1] :].any(1)),
    )
    some: np.ndarray = np.any(known, 0)
    _add_row_counts(found, seen, "rows with tags never seen")
    none = "" if true.any() or said.any() else "no row has a tag, and none is predicted"
    there = np.flatnonzero(true.any(0) | said.any(0))
    found.add(
        "micro F1",
        lambda: sk.f1_score(true, said, average="micro", zero_division=0, labels=there),
        undefined_reason=none,
    )
    found.add(
        "macro F1",
        lambda: sk.f1_score(true, said, average="macro", zero_division=0, labels=there),
        undefined_reason=none,
    )
    found.add("subset accuracy", lambda: (true == said).all(1).mean())
    found.add(
        "mAP",
        lambda: np.mean(
            [
                sk.average_precision_score(known[:, k], probabilities[:, k].numpy())
                for k in np.flatnonzero(some)
            ]
        ),
        undefined_reason="" if some.any() else "no row has a tag",
    )
    if some.any() and not some.all():
        found.undefined.append(f"mAP: {(~some).sum()} of {len(some)} tags are on no row")
    found.add("hamming loss", lambda: (true != said).mean())
    found.add(
        "calibration error",
        lambda: (
            compute_reliability(
                probabilities.flatten(), y[:, : probabilities.shape[1]].flatten()
            ).expected_calibration_error
        ),
    )
    return found


def regression_metrics(
    mean: Float[Tensor, "N"],
    y: Float[Tensor, "N"],
    std: Float[Tensor, "N"],
    conformal_quantiles: Mapping[float, float],
) -> MetricValues:
    """Of numbers in the column's own unit. bounds: {level: how many spreads to each side its interval reaches}."""
    sk, found = _import_sklearn_metrics(), MetricValues()
    if not len(y):
        return MetricValues({"rows": 0.0}, ["all figures: there is no row"])
    said, true = mean.double().numpy(), y.double().numpy()
    errors, flat = np.abs(true - said), "" if np.ptp(true) else "the true values are all the same"
    found.add("rows", lambda: len(true))
    found.add("MAE", lambda: errors.mean())
    found.add("RMSE", lambda: np.sqrt((errors**2).mean()))
    found.add("median AE", lambda: np.median(errors))
    found.add("R2", lambda: sk.r2_score(true, said), undefined_reason=flat)
    found.add(
        "Spearman",
        lambda: _spearman(true, said),
        undefined_reason=flat or ("" if np.ptp(said) else "the predicted values are all the same"),
    )
    for level, reach in conformal_quantiles.items():
        _add_interval_metrics(found, level, errors, reach * std.double().numpy())
    return found


def _add_interval_metrics(
    metrics: MetricValues, level: float, errors: np.ndarray, half_width: np.ndarray
) -> None:
    endless = "" if np.isfinite(half_width).all() else "too few validation rows to bound it"
    metrics.add(
        f"coverage at {level:.0%}", lambda: (errors <= half_width).mean(), undefined_reason=endless
    )
    metrics.add(f"width at {level:.0%}", lambda: 2 * half_width.mean(), undefined_reason=endless)


def _add_row_counts(
    metrics: MetricValues, is_known: Bool[np.ndarray, "N"], unseen_label: str
) -> None:
    metrics.add("rows", lambda: len(is_known))
    if not is_known.all():
        metrics.add(unseen_label, lambda: (~is_known).sum())


def _add_probability_metrics(
    metrics: MetricValues, probabilities: Tensor, y: Tensor, is_known: np.ndarray
) -> None:
    """Log loss over the classes that were seen, and the calibration error."""
    sk, true = _import_sklearn_metrics(), y.numpy()[is_known]
    metrics.add(
        "log loss",
        lambda: sk.log_loss(
            true, _normalize_rows(probabilities)[is_known], labels=range(probabilities.shape[1])
        ),
        undefined_reason=""
        if is_known.any() and probabilities.shape[1] > 1
        else "there are no two classes, or none was seen in training",
    )
    metrics.add(
        "calibration error",
        lambda: compute_reliability(*top_class(probabilities, y)).expected_calibration_error,
    )


def _iter_roc_auc(true: np.ndarray, probabilities: np.ndarray) -> Iterator[float]:
    """The area under the ROC curve of each class that some rows have and others have not; of two classes, one."""
    for c in [1] if probabilities.shape[1] == 2 else np.unique(true):
        yield _import_sklearn_metrics().roc_auc_score(true == c, probabilities[:, c])


def _normalize_rows(probabilities: Tensor) -> np.ndarray:
    """In float64, and of sum 1 to its precision, as log loss wants them."""
    rows = probabilities.double().numpy()
    return rows / rows.sum(1, keepdims=True)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata  # comes with scikit-learn

    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _import_sklearn_metrics() -> Any:
    try:
        from sklearn import metrics

        return metrics
    except ImportError as e:
        raise SensoriumError(
            'figures of predictions need scikit-learn: pip install "sensorium[predict]"'
        ) from e
