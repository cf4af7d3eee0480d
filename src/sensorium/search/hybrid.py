"""Merge the rows that match a text by words with those whose vectors are near.

Words and vectors are scored on scales of their own, so both are divided by their best row: the
score of a row is (w / max w + VECTOR_WEIGHT * v / max v) / (1 + VECTOR_WEIGHT), where w is BM25 and
v is how far the cosine is above that of an average row. A row of which one caption is the query
comes first. VECTOR_WEIGHT was chosen on held-out queries in six languages among reciprocal ranks
and other scales (`benchmarks/search_hybrid.py`, docs/benchmarks/retrieval.md).

N rows   n candidates
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sensorium.search.results import Matched
from sensorium.search.word_index import WordMatches

VECTOR_WEIGHT = 0.3
MIN_CANDIDATES = 100  # of each kind


class Ranking(NamedTuple):
    """The best rows of a query.

    Attributes:
        rows: their row numbers, best first.
        scores: their scores.
        matched: by what each was found.
    """

    rows: list[int]
    scores: list[float]
    matched: list[Matched]


class VectorCandidates(NamedTuple):
    """What is known about the vectors of some rows.

    Attributes:
        rows: the rows.
        cosines: their cosine similarity with the query.
        mean_cosine: that of an average row.
        nearest: the k rows with the highest cosine.
    """

    rows: Int[np.ndarray, " n"]
    cosines: Float[np.ndarray, " n"]
    mean_cosine: float
    nearest: Int[np.ndarray, " k"]


def num_candidates(k: int) -> int:
    """Return how many rows of each kind are merged for k results."""
    return max(k, MIN_CANDIDATES)


def rank_by_vectors(scores: Float[np.ndarray, " k"], rows: Int[np.ndarray, " k"]) -> Ranking:
    """Return the ranking of an engine's results; row -1 is none."""
    found = rows >= 0
    return Ranking(rows[found].tolist(), scores[found].tolist(), ["vectors"] * int(found.sum()))


def rank_by_words(matches: WordMatches, k: int) -> Ranking:
    """Return the k rows that match best by words."""
    rows = matches.best(k)
    scores = _exact_first(matches, rows, _share_of_best(matches, rows))
    return _top(rows, scores, ["words"] * len(rows), k)


def rank_by_both(matches: WordMatches, vectors: VectorCandidates, k: int) -> Ranking:
    """Return the k best rows by words and vectors together."""
    rows, mean = vectors.rows, vectors.mean_cosine
    best_cosine = float(vectors.cosines.max(initial=mean))
    nearness = (vectors.cosines - mean) / max(best_cosine - mean, 1e-9)
    scores = _share_of_best(matches, rows) + VECTOR_WEIGHT * np.maximum(nearness, 0)
    scores = _exact_first(matches, rows, scores / (1 + VECTOR_WEIGHT))
    ranking = _top(rows, scores, ["both"] * len(rows), k)
    best_rows = np.array(ranking.rows, np.int64)
    has_words = matches.have_words(best_rows).tolist()
    is_near = np.isin(best_rows, vectors.nearest).tolist()
    return ranking._replace(matched=[_name(*pair) for pair in zip(has_words, is_near, strict=True)])


def _name(has_words: bool, is_near: bool) -> Matched:
    """Return by what a row was found."""
    if has_words:
        return "both" if is_near else "words"
    return "vectors"


def _share_of_best(matches: WordMatches, rows: np.ndarray) -> np.ndarray:
    """Return the scores of rows by words, divided by that of the best row."""
    return matches.scores[rows] / max(float(matches.scores.max(initial=0)), 1e-9)


def _exact_first(matches: WordMatches, rows: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return scores from 0 to 1, and from 1 to 2 for rows with the query as a caption."""
    return scores + np.isin(rows, matches.exact)


def _top(rows: np.ndarray, scores: np.ndarray, matched: list[Matched], k: int) -> Ranking:
    """Return the k best rows; ties go to the lower row number."""
    order = np.lexsort((rows, -scores))[:k]
    shown = np.minimum(scores[order], 1.0)
    return Ranking(rows[order].tolist(), shown.tolist(), [matched[i] for i in order.tolist()])
