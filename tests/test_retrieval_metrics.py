"""Retrieval figures, by hand and by identity."""

import pytest
import torch

from sensorium.metrics.retrieval import (
    accuracy,
    chance_recall,
    recall_at_k,
    recall_metrics,
    retrieval_metrics,
    retrieval_ranks,
)
from sensorium.metrics.speech import word_error_rate
from sensorium.nn.tokens import l2_normalize

EYE = torch.eye(4, dtype=torch.bool)


def test_a_perfect_model() -> None:
    vectors = l2_normalize(torch.randn(4, 8))
    assert retrieval_metrics(vectors, vectors, EYE, ("image", "text"))["recall@1"] == 1.0


def test_ranks_by_hand() -> None:
    queries = torch.eye(2)
    candidates = l2_normalize(torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.0, 1.0]]))
    right = torch.tensor([[True, False, False], [False, False, True]])
    assert retrieval_ranks(queries, candidates, right).tolist() == [2, 1]


def test_ties_count_against() -> None:
    same = torch.ones(3, 2)
    assert retrieval_ranks(same, same, EYE[:3, :3]).tolist() == [3, 3, 3]


def test_any_duplicate_will_do() -> None:
    candidates = torch.eye(3)
    right = torch.tensor([[True, False, True]])
    assert retrieval_ranks(candidates[2:], candidates, right).tolist() == [1]


def test_chance_is_what_a_random_order_gets() -> None:
    assert chance_recall(torch.eye(20, dtype=torch.bool), 5) == pytest.approx(0.25)
    right = torch.zeros(1, 10, dtype=torch.bool)
    right[0, :3] = True
    assert chance_recall(right, 2) == pytest.approx(1 - 7 / 10 * 6 / 9)
    assert chance_recall(right, 8) == pytest.approx(1.0)
    rng = torch.Generator().manual_seed(0)
    drawn = [
        recall_at_k(
            retrieval_ranks(
                torch.randn(1, 3, generator=rng), torch.randn(10, 3, generator=rng), right
            ),
            2,
        )
        for _ in range(4000)
    ]
    assert sum(drawn) / 4000 == pytest.approx(chance_recall(right, 2), abs=0.03)


def test_recalls_and_median() -> None:
    figures = recall_metrics(torch.tensor([1, 3, 7, 100]))
    assert (figures["recall@1"], figures["recall@5"], figures["recall@10"]) == (0.25, 0.5, 0.75)
    assert figures["median_rank"] == 3


def test_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert accuracy(scores, torch.tensor([1, 1])) == 0.5
    assert accuracy(scores, torch.tensor([1, 1]), k=5) == 1.0


def test_words_are_counted_as_they_are_said() -> None:
    assert word_error_rate(["It's  RED, and\u00a0big!", "Yes."], ["it's red and big", "yes"]) == 0
    assert word_error_rate(["a b c d"], ["b c x d e"]) == 3 / 5  # a put in, x left out, e left out
    assert word_error_rate(["", "one two"], ["three", "two one"]) == 1
    with pytest.raises(ValueError, match="no word"):
        word_error_rate(["a"], ["..."])
