"""Figures of predictions: by hand, by identity, and where the rows cannot tell."""

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


def sure(y: Tensor, n: int) -> Tensor:
    return F.one_hot(y, n).float()


def reasons(found: MetricValues) -> str:
    return "; ".join(found.undefined)


# Classes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_perfect_classifier(n: int) -> None:
    y = torch.arange(21) % n
    found = classification_metrics(sure(y, n), y)
    assert found.undefined == []
    assert found.values.pop("rows") == 21
    assert found.values.pop("log loss") == pytest.approx(0)
    assert found.values.pop("calibration error") == 0
    assert set(found.values.values()) == {1.0}
    assert ("average precision" in found.values) == (n == 2)


def test_classes_by_hand() -> None:
    p = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    found = classification_metrics(p, torch.tensor([0, 1, 1, 0])).values
    assert found["accuracy"] == found["balanced accuracy"] == 0.75
    assert found["macro F1"] == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found["ROC AUC"] == 1
    assert found["average precision"] == 1
    assert found["log loss"] == pytest.approx(-np.mean(np.log([0.9, 0.4, 0.7, 0.8])))


def test_what_says_nothing_separates_nothing() -> None:
    y = torch.arange(30) % 3
    found = classification_metrics(torch.full((30, 3), 1 / 3), y).values
    assert found["ROC AUC"] == 0.5
    assert found["balanced accuracy"] == pytest.approx(1 / 3)
    assert found["log loss"] == pytest.approx(math.log(3))
    assert found["calibration error"] == pytest.approx(0, abs=1e-6)


def test_one_class_alone_leaves_out_what_it_cannot_tell() -> None:
    found = classification_metrics(torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 0]))
    assert found.values["accuracy"] == 0.5
    assert "ROC AUC" not in found.values
    assert reasons(found).count("all of one class") == 2


def test_a_class_that_is_not_among_the_rows_is_no_part_of_the_area() -> None:
    y, p = (
        torch.tensor([0, 0, 1]),
        torch.tensor([[0.7, 0.2, 0.1], [0.1, 0.2, 0.7], [0.1, 0.8, 0.1]]),
    )
    assert classification_metrics(p, y).values["ROC AUC"] == pytest.approx((0.75 + 1) / 2)


def test_a_class_never_seen_in_training_counts_as_wrong() -> None:
    y = torch.tensor([0, 1, 2])
    found = classification_metrics(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]), y).values
    assert found["accuracy"] == found["balanced accuracy"] == pytest.approx(2 / 3)
    assert found["rows of classes never seen"] == 1
    assert found["ROC AUC"] == 1
    assert found["log loss"] == pytest.approx(-np.mean(np.log([0.9, 0.8])))
    none_seen = classification_metrics(torch.tensor([[0.9, 0.1]]), torch.tensor([2]))
    assert none_seen.values["accuracy"] == 0
    assert "log loss" not in none_seen.values


def test_no_row_has_no_figures() -> None:
    nothing = torch.zeros(0, 3)
    empty = [
        classification_metrics(nothing, nothing[:, 0].long()),
        ordinal_metrics(nothing, nothing[:, 0].long()),
        multilabel_metrics(nothing, nothing.bool()),
        regression_metrics(*[nothing[:, 0]] * 3, {}),
    ]
    assert all(found.values == {"rows": 0} and "no row" in reasons(found) for found in empty)


# Ranks ----------------------------------------------------------------------------------------------------------------


def test_ranks_by_hand() -> None:
    p = torch.tensor([[0.4, 0.2, 0.4], [0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    assert median_rank(p).tolist() == [1, 0, 2]
    found = ordinal_metrics(p, torch.tensor([0, 0, 2])).values
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["MAE"] == pytest.approx(1 / 3)
    same, turned = torch.arange(3), torch.tensor([2, 1, 0])
    assert ordinal_metrics(sure(same, 3), same).values["quadratic kappa"] == pytest.approx(1)
    assert ordinal_metrics(sure(turned, 3), same).values["quadratic kappa"] == pytest.approx(-1)


def test_ranks_that_cannot_tell() -> None:
    alone = ordinal_metrics(sure(torch.tensor([1, 1]), 3), torch.tensor([1, 1]))
    assert alone.values["accuracy"] == 1
    assert "quadratic kappa" in reasons(alone)
    unseen = ordinal_metrics(sure(torch.tensor([1, 0]), 3), torch.tensor([1, 3]))
    assert unseen.values["rows of ranks never seen"] == 1
    assert unseen.values["accuracy"] == 1


# Tags -----------------------------------------------------------------------------------------------------------------


def test_tags_by_hand() -> None:
    y = torch.tensor([[1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    perfect = multilabel_metrics(y.float(), y).values
    assert {perfect[name] for name in ("micro F1", "macro F1", "subset accuracy", "mAP")} == {1}
    assert perfect["hamming loss"] == perfect["calibration error"] == 0
    p = torch.tensor([[0.9, 0.6, 0.2], [0.1, 0.7, 0.1], [0.2, 0.1, 0.1]])
    found = multilabel_metrics(p, y).values  # TP 2, FP 1, FN 1
    assert found["micro F1"] == pytest.approx(4 / 6)
    assert found["macro F1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert found["subset accuracy"] == pytest.approx(2 / 3)
    assert found["hamming loss"] == pytest.approx(2 / 9)
    assert found["mAP"] == 1


def test_tags_that_are_on_no_row_or_were_never_seen() -> None:
    y = torch.tensor([[1, 0, 0], [0, 0, 1]], dtype=torch.bool)  # the third was never seen
    found = multilabel_metrics(torch.tensor([[0.9, 0.1], [0.2, 0.3]]), y)
    assert found.values["subset accuracy"] == 0.5
    assert found.values["rows with tags never seen"] == 1
    assert found.values["mAP"] == 1
    assert "1 of 2 tags are on no row" in reasons(found)
    nothing = multilabel_metrics(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool))
    assert nothing.values["subset accuracy"] == 1
    assert "micro F1" not in nothing.values
    assert "mAP" not in nothing.values


# Numbers --------------------------------------------------------------------------------------------------------------


def test_numbers_by_hand() -> None:
    y, said = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([1.0, 3.0, 3.0, 4.0])
    found = regression_metrics(said, y, torch.ones(4), {0.5: 1.0, 0.9: 2.0}).values
    assert (found["MAE"], found["RMSE"], found["median AE"]) == pytest.approx(
        (0.75, math.sqrt(1.25), 0.5)
    )
    assert found["R2"] == pytest.approx(1 - 5 / 14)
    assert (found["coverage at 50%"], found["coverage at 90%"]) == (0.75, 1)
    assert (found["width at 50%"], found["width at 90%"]) == (2, 4)


def test_ranks_of_numbers_not_their_size_make_spearman() -> None:
    y = torch.tensor([3.0, 1.0, 4.0, 1.5, 9.0])
    assert regression_metrics(y.exp(), y, y, {}).values["Spearman"] == pytest.approx(1)
    assert regression_metrics(-y, y, y, {}).values["Spearman"] == pytest.approx(-1)


def test_numbers_that_cannot_tell() -> None:
    same, one = torch.full((3,), 2.0), torch.tensor([2.0])
    flat = regression_metrics(torch.tensor([1.0, 2.0, 3.0]), same, same, {0.9: math.inf})
    assert flat.values["MAE"] == pytest.approx(2 / 3)
    assert {"R2", "Spearman"}.isdisjoint(flat.values)
    assert "too few" in reasons(flat)
    assert "all the same" in reasons(flat)
    assert (
        "Spearman" not in regression_metrics(same, torch.tensor([1.0, 2.0, 3.0]), same, {}).values
    )
    assert regression_metrics(one, one, one, {}).values["MAE"] == 0
