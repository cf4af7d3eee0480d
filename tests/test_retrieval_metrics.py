"""Tests of retrieval, classification and speech metrics, by hand and by identity."""

import pytest
import torch

from sensorium.metrics.retrieval import (
    accuracy,
    random_recall,
    recall_at_k,
    recall_metrics,
    retrieval_metrics,
    retrieval_ranks,
)
from sensorium.metrics.speech import word_error_rate
from sensorium.nn.tokens import l2_normalize

IDENTITY = torch.eye(4, dtype=torch.bool)


def test_perfect_embeddings_have_recall_1() -> None:
    vectors = l2_normalize(torch.randn(4, 8))
    assert retrieval_metrics(vectors, vectors, IDENTITY, ("image", "text"))["recall@1"] == 1.0


def test_retrieval_ranks_match_hand_computation() -> None:
    queries = torch.eye(2)
    candidates = l2_normalize(torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.0, 1.0]]))
    relevant = torch.tensor([[True, False, False], [False, False, True]])
    assert retrieval_ranks(queries, candidates, relevant).tolist() == [2, 1]


def test_ties_rank_last() -> None:
    equal_vectors = torch.ones(3, 2)
    assert retrieval_ranks(equal_vectors, equal_vectors, IDENTITY[:3, :3]).tolist() == [3, 3, 3]


def test_nan_ranks_last() -> None:
    nan = torch.full((3, 2), torch.nan)
    relevant = IDENTITY[:3, :3]
    assert retrieval_ranks(nan, nan, relevant).tolist() == [3, 3, 3]
    assert retrieval_metrics(nan, nan, relevant, ("image", "text"))["recall@1"] == 0.0
    vectors = torch.eye(3)
    vectors[1] = torch.nan
    assert retrieval_ranks(vectors, torch.eye(3), relevant).tolist() == [1, 3, 1]
    assert retrieval_ranks(torch.eye(3), vectors, relevant).tolist() == [2, 3, 2]


def test_accuracy_counts_nan_as_wrong() -> None:
    scores = torch.tensor([[0.1, 0.9], [torch.nan, 0.5], [torch.nan, torch.nan]])
    assert accuracy(scores, torch.tensor([1, 0, 0])) == pytest.approx(1 / 3)
    assert accuracy(scores, torch.tensor([1, 1, 1]), k=2) == pytest.approx(1 / 3)


def test_best_of_several_relevant_candidates_counts() -> None:
    candidates = torch.eye(3)
    relevant = torch.tensor([[True, False, True]])
    assert retrieval_ranks(candidates[2:], candidates, relevant).tolist() == [1]


def test_random_recall_matches_random_orders() -> None:
    assert random_recall(torch.eye(20, dtype=torch.bool), 5) == pytest.approx(0.25)
    relevant = torch.zeros(1, 10, dtype=torch.bool)
    relevant[0, :3] = True
    assert random_recall(relevant, 2) == pytest.approx(1 - 7 / 10 * 6 / 9)
    assert random_recall(relevant, 8) == pytest.approx(1.0)
    rng = torch.Generator().manual_seed(0)
    sampled = [
        recall_at_k(
            retrieval_ranks(
                torch.randn(1, 3, generator=rng), torch.randn(10, 3, generator=rng), relevant
            ),
            2,
        )
        for _ in range(4000)
    ]
    assert sum(sampled) / 4000 == pytest.approx(random_recall(relevant, 2), abs=0.03)


def test_recall_metrics_match_hand_computation() -> None:
    metrics = recall_metrics(torch.tensor([1, 3, 7, 100]))
    assert (metrics["recall@1"], metrics["recall@5"], metrics["recall@10"]) == (0.25, 0.5, 0.75)
    assert metrics["median rank"] == 3


def test_top_k_accuracy() -> None:
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2]])
    assert accuracy(scores, torch.tensor([1, 1])) == 0.5
    assert accuracy(scores, torch.tensor([1, 1]), k=5) == 1.0


def test_word_error_rate_counts_edits_of_normalized_words() -> None:
    assert word_error_rate(["It's  RED, and\u00a0big!", "Yes."], ["it's red and big", "yes"]) == 0
    assert word_error_rate(["a b c d"], ["b c x d e"]) == 3 / 5  # a inserted; x and e deleted
    assert word_error_rate(["", "one two"], ["three", "two one"]) == 1
    with pytest.raises(ValueError, match="no words"):
        word_error_rate(["a"], ["..."])
