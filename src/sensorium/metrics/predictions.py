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
from sensorium.metrics.calibration import median_rank, reliability, top

CLASSES = """\
accuracy: share of rows whose likeliest class is the true one. balanced accuracy: the mean over the true classes of
the share that is found. macro F1: mean over classes, true or predicted, of 2 TP / (2 TP + FP + FN). ROC AUC: how
often a row of a class is given a higher probability of it than a row of another, the mean over classes; of two
classes, the second's. average precision: of the second of two classes, sum of precision times gain in recall. log
loss: mean of -log of the true class's probability. calibration error (ECE): 15 bins of equal width of the likeliest
class's probability, mean distance from how often it is right, by share. Rows of classes that training did not see
count as wrong; of ROC AUC, average precision and log loss they are no part."""
TAGS = """\
A tag is predicted from a probability of 0.5 on. micro F1: 2 TP / (2 TP + FP + FN) over all tags of all rows; macro
F1: the mean over tags, true or predicted somewhere. subset accuracy: share of rows with exactly the true tags. mAP:
mean over tags of average precision. hamming loss: share of wrong decisions. calibration error: over all decisions.
Tags that training did not see are missed."""
NUMBERS = """\
MAE, RMSE, median AE: mean, root of the mean of squares, median of the absolute error, in the column's own unit. R2:
the share of the spread of the true values that is told, 1 - squared errors / squares around their mean. Spearman:
correlation of ranks. coverage at L: share of true values within the interval for L; width: its mean width."""
RANKS = """\
The median rank is predicted. accuracy: share of rows of exactly that rank. MAE: mean distance in ranks. quadratic
kappa: agreement beyond chance, an error weighed by the square of its distance (Cohen 1968). log loss, calibration
error: of the ranks as classes. Rows of ranks that training did not see are left out."""


@dataclass
class Figures:
    """Figures by name, and what is not among them, each with the reason."""

    values: dict[str, float] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def put(self, name: str, value: Callable[[], Any], *, unless: str = "") -> None:
        """Add a figure; with a reason why it is not defined here, say that instead."""
        if unless:
            self.left_out.append(f"{name}: {unless}")
        else:
            self.values[name] = float(value())


def class_figures(p: Float[Tensor, "N C"], y: Int[Tensor, "N"]) -> Figures:
    """Of probabilities of classes; y = C is a class that training did not see."""
    sk, found = _sklearn(), Figures()
    if not len(y):
        return Figures({"rows": 0.0}, ["all figures: there is no row"])
    likeliest, seen = p.argmax(1).numpy(), (y < p.shape[1]).numpy()
    true, all_p = y.numpy(), p.numpy()
    _counted(found, seen, "rows of classes never seen")
    found.put("accuracy", lambda: sk.accuracy_score(true, likeliest))
    found.put("balanced accuracy", lambda: sk.recall_score(true, likeliest, labels=np.unique(true), average="macro",
                                                           zero_division=0))
    found.put("macro F1", lambda: sk.f1_score(true, likeliest, average="macro", zero_division=0))
    one = "" if len(np.unique(true[seen])) > 1 else "the rows are all of one class"
    found.put("ROC AUC", lambda: np.mean(list(_areas(true[seen], all_p[seen]))), unless=one)
    if p.shape[1] == 2:
        found.put("average precision", lambda: sk.average_precision_score(true[seen], all_p[seen, 1]), unless=one)
    _of_probabilities(found, p, y, seen)
    return found


def rank_figures(p: Float[Tensor, "N C"], y: Int[Tensor, "N"]) -> Figures:
    """Of probabilities of classes that stand in a row; y = C is one that training did not see."""
    sk, found = _sklearn(), Figures()
    seen = (y < p.shape[1]).numpy()
    if not seen.any():
        return Figures({"rows": float(len(y))}, ["all figures: there is no row of a rank that training saw"])
    true, said = y.numpy()[seen], median_rank(p).numpy()[seen]
    _counted(found, seen, "rows of ranks never seen")
    found.put("accuracy", lambda: np.mean(true == said))
    found.put("MAE", lambda: np.abs(true - said).mean())
    found.put("quadratic kappa", lambda: sk.cohen_kappa_score(true, said, weights="quadratic"),
              unless="" if len(np.unique(np.append(true, said))) > 1 else "all are of one rank, as is predicted")
    _of_probabilities(found, p[seen], y[seen], seen[seen])
    return found


def tag_figures(p: Float[Tensor, "N K"], y: Bool[Tensor, "N E"]) -> Figures:
    """Of the probability of each tag; the columns of y after the K-th are tags that training did not see."""
    sk, found = _sklearn(), Figures()
    if not len(y):
        return Figures({"rows": 0.0}, ["all figures: there is no row"])
    true, said = y.numpy(), np.zeros(y.shape, bool)
    said[:, :p.shape[1]] = p.numpy() >= 0.5
    known, seen = true[:, :p.shape[1]], np.logical_not(true[:, p.shape[1]:].any(1))
    some: np.ndarray = np.any(known, 0)
    _counted(found, seen, "rows with tags never seen")
    none = "" if true.any() or said.any() else "no row has a tag, and none is predicted"
    there = np.flatnonzero(true.any(0) | said.any(0))
    found.put("micro F1", lambda: sk.f1_score(true, said, average="micro", zero_division=0, labels=there), unless=none)
    found.put("macro F1", lambda: sk.f1_score(true, said, average="macro", zero_division=0, labels=there), unless=none)
    found.put("subset accuracy", lambda: (true == said).all(1).mean())
    found.put("mAP", lambda: np.mean([sk.average_precision_score(known[:, k], p[:, k].numpy())
                                      for k in np.flatnonzero(some)]), unless="" if some.any() else "no row has a tag")
    if some.any() and not some.all():
        found.left_out.append(f"mAP: {(~some).sum()} of {len(some)} tags are on no row")
    found.put("hamming loss", lambda: (true != said).mean())
    found.put("calibration error", lambda: reliability(p.flatten(), y[:, :p.shape[1]].flatten()).error)
    return found


def number_figures(mean: Float[Tensor, "N"], y: Float[Tensor, "N"], spread: Float[Tensor, "N"],
                   bounds: Mapping[float, float]) -> Figures:
    """Of numbers in the column's own unit. bounds: {level: how many spreads to each side its interval reaches}."""
    sk, found = _sklearn(), Figures()
    if not len(y):
        return Figures({"rows": 0.0}, ["all figures: there is no row"])
    said, true = mean.double().numpy(), y.double().numpy()
    errors, flat = np.abs(true - said), "" if np.ptp(true) else "the true values are all the same"
    found.put("rows", lambda: len(true))
    found.put("MAE", lambda: errors.mean())
    found.put("RMSE", lambda: np.sqrt((errors ** 2).mean()))
    found.put("median AE", lambda: np.median(errors))
    found.put("R2", lambda: sk.r2_score(true, said), unless=flat)
    found.put("Spearman", lambda: _spearman(true, said),
              unless=flat or ("" if np.ptp(said) else "the predicted values are all the same"))
    for level, reach in bounds.items():
        _interval(found, level, errors, reach * spread.double().numpy())
    return found


def _interval(found: Figures, level: float, errors: np.ndarray, half: np.ndarray) -> None:
    endless = "" if np.isfinite(half).all() else "too few validation rows to bound it"
    found.put(f"coverage at {level:.0%}", lambda: (errors <= half).mean(), unless=endless)
    found.put(f"width at {level:.0%}", lambda: 2 * half.mean(), unless=endless)


def _counted(found: Figures, seen: Bool[np.ndarray, "N"], called: str) -> None:
    found.put("rows", lambda: len(seen))
    if not seen.all():
        found.put(called, lambda: (~seen).sum())


def _of_probabilities(found: Figures, p: Tensor, y: Tensor, seen: np.ndarray) -> None:
    """Log loss over the classes that were seen, and the calibration error."""
    sk, true = _sklearn(), y.numpy()[seen]
    found.put("log loss", lambda: sk.log_loss(true, _shares(p)[seen], labels=range(p.shape[1])),
              unless="" if seen.any() and p.shape[1] > 1 else "there are no two classes, or none was seen in training")
    found.put("calibration error", lambda: reliability(*top(p, y)).error)


def _areas(true: np.ndarray, p: np.ndarray) -> Iterator[float]:
    """The area under the ROC curve of each class that some rows have and others have not; of two classes, one."""
    for c in [1] if p.shape[1] == 2 else np.unique(true):
        yield _sklearn().roc_auc_score(true == c, p[:, c])


def _shares(p: Tensor) -> np.ndarray:
    """In float64, and of sum 1 to its precision, as log loss wants them."""
    rows = p.double().numpy()
    return rows / rows.sum(1, keepdims=True)


def _spearman(a: np.ndarray, b: np.ndarray) -> float:
    from scipy.stats import rankdata  # comes with scikit-learn
    return float(np.corrcoef(rankdata(a), rankdata(b))[0, 1])


def _sklearn() -> Any:
    try:
        from sklearn import metrics
        return metrics
    except ImportError as e:
        raise SensoriumError('figures of predictions need scikit-learn: pip install "sensorium[predict]"') from e
