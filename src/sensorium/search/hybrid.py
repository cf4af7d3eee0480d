"""Merge the rows that match a text by words with those whose vectors are near.

The score of a row is that of its words plus that of its vector.

- Words: BM25, divided by that of the best row. If even that has little of the query, as where the
  query is in another language than the captions, all rows get less.
- Vectors: how many standard deviations z the cosine is above the mean of all rows. Of N unrelated
  rows the best is at about sqrt(2 ln N), so a model that cannot read the query stays below that:
  there z only orders rows of similar words. What is above `NOISE_FRACTION` of it counts in full.

So the better half leads, query by query. A row of which one caption is the query comes first. The
constants were chosen on held-out queries in six languages, beside reciprocal ranks and other scales
(benchmarks/search_hybrid.py, docs/benchmarks/retrieval.md).

N rows   n candidates
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from sensorium.search.results import Matched
from sensorium.search.word_index import WordMatches

FULL_WORD_SCORE = 0.4  # BM25 of the best row from which on it counts in full; the limit is 1
WEAK_VECTOR_WEIGHT = 0.05  # of a standard deviation
STRONG_VECTOR_WEIGHT = 1.0  # of a standard deviation above the noise
NOISE_FRACTION = 0.8
CANDIDATES_PER_RESULT = 3  # of each kind
MIN_CANDIDATES = 30
MIN_STD = 1e-6


class Ranking(NamedTuple):
    """The best rows of a query.

    Attributes:
        rows: their row numbers, best first.
        scores: their scores.
        matched: by what each was found.
    """

    rows: list[int]
    scores: list[float]
    matched: Sequence[Matched]


class VectorCandidates(NamedTuple):
    """What is known about the vectors of some rows.

    Attributes:
        rows: the rows.
        cosines: their cosine similarity with the query.
        sample: the cosines of a sample of all rows.
        nearest: the k rows with the highest cosine.
        num_rows: N.
    """

    rows: Int[np.ndarray, " n"]
    cosines: Float[np.ndarray, " n"]
    sample: Float[np.ndarray, " m"]
    nearest: Int[np.ndarray, " k"]
    num_rows: int


def num_candidates(k: int) -> int:
    """Return how many rows of each kind are merged for k results."""
    return max(CANDIDATES_PER_RESULT * k, MIN_CANDIDATES)


def rank_by_vectors(scores: Float[np.ndarray, " k"], rows: Int[np.ndarray, " k"]) -> Ranking:
    """Return the ranking of an engine's results; row -1 is none."""
    found = rows >= 0
    matched: list[Matched] = ["vectors"] * int(found.sum())
    return Ranking(rows[found].tolist(), scores[found].tolist(), matched)


def rank_by_words(matches: WordMatches, k: int) -> Ranking:
    """Return the k rows that match best by words."""
    rows = matches.best(k)
    rows, scores = _best(rows, _word_scores(matches, rows), matches.exact, k)
    matched: list[Matched] = ["words"] * len(rows)
    return Ranking(rows.tolist(), scores.tolist(), matched)


def rank_by_both(matches: WordMatches, vectors: VectorCandidates, k: int) -> Ranking:
    """Return the k best rows by words and vectors together."""
    scores = _word_scores(matches, vectors.rows) + _vector_scores(vectors)
    rows, scores = _best(vectors.rows, scores, matches.exact, k)
    has_words = matches.have_words(rows)
    is_near = np.isin(rows, vectors.nearest)
    matched: list[Matched] = [
        _name_match(bool(words), bool(near)) for words, near in zip(has_words, is_near, strict=True)
    ]
    return Ranking(rows.tolist(), scores.tolist(), matched)


def _name_match(has_words: bool, is_near: bool) -> Matched:
    """Return by what a row was found."""
    if has_words:
        return "both" if is_near else "words"
    return "vectors"


def _word_scores(matches: WordMatches, rows: np.ndarray) -> np.ndarray:
    """Return the scores of rows by words, at most 1."""
    return matches.scores[rows] / max(float(matches.scores.max(initial=0)), FULL_WORD_SCORE)


def _vector_scores(vectors: VectorCandidates) -> np.ndarray:
    """Return the scores of rows by vectors."""
    if not len(vectors.rows):
        return np.zeros(0)
    mean, std = vectors.sample.mean(), vectors.sample.std()
    z = np.maximum((vectors.cosines - mean) / max(std, MIN_STD), 0)
    noise = NOISE_FRACTION * math.sqrt(2 * math.log(max(vectors.num_rows, 2)))
    return WEAK_VECTOR_WEIGHT * z + STRONG_VECTOR_WEIGHT * np.maximum(z - noise, 0)


def _best(
    rows: np.ndarray, scores: np.ndarray, exact: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows and their scores from 0 to 1; a row with an exact caption has 1.

    Ties go to the lower row number.
    """
    is_exact = np.isin(rows, exact)
    order = np.lexsort((rows, -scores, ~is_exact))[:k]
    shown = np.where(is_exact, 1.0, scores / (1 + scores))
    return rows[order], shown[order]
