"""Tests of prediction metrics: by hand, by identity, and where they are undefined."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sensorium.metrics.calibration import median_rank
from sensorium.metrics.prediction import (
    MetricValues,
    classification_metrics,
    multilabel_metrics,
    ordinal_metrics,
    regression_metrics,
)


def one_hot(y: Tensor, n: int) -> Tensor:
    return F.one_hot(y, n).float()


def reasons(metrics: MetricValues) -> str:
    return "; ".join(metrics.undefined)


# Classes


@pytest.mark.parametrize("n", [2, 3, 7])
def test_perfect_classifier_has_perfect_metrics(n: int) -> None:
    y = torch.arange(21) % n
    metrics = classification_metrics(one_hot(y, n), y)
    assert metrics.undefined == []
    assert metrics.values.pop("rows") == 21
    assert metrics.values.pop("log loss") == pytest.approx(0)
    assert metrics.values.pop("calibration error") == 0
    assert set(metrics.values.values()) == {1.0}
    assert ("average precision" in metrics.values) == (n == 2)


def test_classification_metrics_match_hand_computation() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    metrics = classification_metrics(p, torch.tensor([0, 1, 1, 0])).values
    assert metrics["accuracy"] == metrics["balanced accuracy"] == 0.75
    assert metrics["macro F1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert metrics["ROC AUC"] == 1
    assert metrics["average precision"] == 1
    assert metrics["log loss"] == pytest.approx(-np.mean(np.log([0.9, 0.4, 0.7, 0.8])))


def test_uniform_probabilities_score_as_random() -> None:
    y = torch.arange(30) % 3
    metrics = classification_metrics(torch.full((30, 3), 1 / 3), y).values
    assert metrics["ROC AUC"] == 0.5
    assert metrics["balanced accuracy"] == pytest.approx(1 / 3)
    assert metrics["log loss"] == pytest.approx(math.log(3))
    assert metrics["calibration error"] == pytest.approx(0, abs=1e-6)


def test_rows_of_one_class_leave_roc_auc_undefined() -> None:
    metrics = classification_metrics(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    assert metrics.values["accuracy"] == 0.5
    assert "ROC AUC" not in metrics.values
    assert reasons(metrics).count("all rows are of one class") == 2


def test_roc_auc_leaves_out_classes_without_rows() -> None:
    y, p = (
        torch.tensor([0, 0, 1]),
        torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]]),
    )
    assert classification_metrics(p, y).values["ROC AUC"] == pytest.approx((0.75 + 1) / 2)


def test_unseen_class_counts_as_wrong() -> None:
    y = torch.tensor([0, 1, 2])
    metrics = classification_metrics(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), y).values
    assert metrics["accuracy"] == metrics["balanced accuracy"] == pytest.approx(2 / 3)
    assert metrics["rows of unseen classes"] == 1
    assert metrics["ROC AUC"] == 1
    assert metrics["log loss"] == pytest.approx(-np.mean(np.log([0.9, 0.8])))
    none_seen = classification_metrics(torch.tensor([[0.9, 0.1]]), torch.tensor([2]))
    assert none_seen.values["accuracy"] == 0
    assert "log loss" not in none_seen.values


def test_no_rows_have_no_metrics() -> None:
    empty_rows = torch.zeros(0, 3)
    empty = [
        classification_metrics(empty_rows, empty_rows[:, 0].long()),
        ordinal_metrics(empty_rows, empty_rows[:, 0].long()),
        multilabel_metrics(empty_rows, empty_rows.bool()),
        regression_metrics(empty_rows[:, 0], empty_rows[:, 0], {}),
    ]
    for metrics in empty:
        assert metrics.values == {"rows": 0}
        assert "no rows" in reasons(metrics)


# Ranks


def test_ordinal_metrics_match_hand_computation() -> None:
    p = torch.tensor([[0.4, 0.2, 0.4], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert median_rank(p).tolist() == [1, 0, 2]
    metrics = ordinal_metrics(p, torch.tensor([0, 0, 2])).values
    assert metrics["accuracy"] == pytest.approx(2 / 3)
    assert metrics["MAE"] == pytest.approx(1 / 3)
    same, reversed_ranks = torch.arange(3), torch.tensor([2, 1, 0])
    assert ordinal_metrics(one_hot(same, 3), same).values["quadratic kappa"] == pytest.approx(1)
    assert ordinal_metrics(one_hot(reversed_ranks, 3), same).values[
        "quadratic kappa"
    ] == pytest.approx(-1)


def test_constant_and_unseen_ranks() -> None:
    constant = ordinal_metrics(one_hot(torch.tensor([1, 1]), 3), torch.tensor([1, 1]))
    assert constant.values["accuracy"] == 1
    assert "quadratic kappa" in reasons(constant)
    unseen = ordinal_metrics(one_hot(torch.tensor([1, 0]), 3), torch.tensor([1, 3]))
    assert unseen.values["rows of unseen ranks"] == 1
    assert unseen.values["accuracy"] == 1


# Tags


def test_multilabel_metrics_match_hand_computation() -> None:
    y = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    perfect = multilabel_metrics(y.float(), y).values
    assert {perfect[name] for name in ("micro F1", "macro F1", "subset accuracy", "mAP")} == {1}
    assert perfect["hamming loss"] == perfect["calibration error"] == 0
    p = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.7, 0.1], [0.2, 0.1, 0.1]])
    metrics = multilabel_metrics(p, y).values  # TP 2, FP 1, FN 1
    assert metrics["micro F1"] == pytest.approx(4 / 6)
    assert metrics["macro F1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert metrics["subset accuracy"] == pytest.approx(2 / 3)
    assert metrics["hamming loss"] == pytest.approx(2 / 9)
    assert metrics["mAP"] == 1


def test_unused_and_unseen_tags() -> None:
    y = torch.tensor([[1, 0, 0], [0, 0, 1]], dtype=torch.bool)  # the third is unseen
    metrics = multilabel_metrics(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), y)
    assert metrics.values["subset accuracy"] == 0.5
    assert metrics.values["rows with unseen tags"] == 1
    assert metrics.values["mAP"] == 1
    assert "no row has 1 of 2 tags" in reasons(metrics)
    empty_rows = multilabel_metrics(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert empty_rows.values["subset accuracy"] == 1
    assert "micro F1" not in empty_rows.values
    assert "mAP" not in empty_rows.values


# Numbers


def test_regression_metrics_match_hand_computation() -> None:
    y, predicted = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 3.0, 3.0, 4.0])
    intervals = {
        level: torch.stack([predicted - width, predicted + width], 1)
        for level, width in ((0.5, 1.0), (0.9, 2.0))
    }
    metrics = regression_metrics(predicted, y, intervals).values
    assert (metrics["MAE"], metrics["RMSE"], metrics["median AE"]) == pytest.approx(
        (0.75, math.sqrt(1.25), 0.5)
    )
    assert metrics["R2"] == pytest.approx(1 - 5 / 14)
    assert (metrics["coverage at 50%"], metrics["coverage at 90%"]) == (0.75, 1)
    assert (metrics["width at 50%"], metrics["width at 90%"]) == (2, 4)


def test_spearman_depends_on_ranks_only() -> None:
    y = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0])
    assert regression_metrics(y.exp(), y, {}).values["Spearman"] == pytest.approx(1)
    assert regression_metrics(-y, y, {}).values["Spearman"] == pytest.approx(-1)


def test_constant_numbers_leave_correlations_undefined() -> None:
    same, one = torch.full((3,), 2.0), torch.tensor([2.0])
    open_intervals = {0.9: torch.tensor([[-math.inf, math.inf]]).expand(3, 2)}
    flat = regression_metrics(torch.tensor([1.0, 2.0, 3.0]), same, open_intervals)
    assert flat.values["MAE"] == pytest.approx(2 / 3)
    assert {"R2", "Spearman"}.isdisjoint(flat.values)
    assert "too few" in reasons(flat)
    assert "all true values are the same" in reasons(flat)
    assert "Spearman" not in regression_metrics(same, torch.tensor([1.0, 2.0, 3.0]), {}).values
    assert regression_metrics(one, one, {}).values["MAE"] == 0
