"""Postings of terms: which rows have a term and how often, and BM25 scores of all rows.

N rows   V terms   P postings (a term of a row)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

MAX_COUNT = 255  # of a term in a row
SATURATION = 1.2  # BM25's k1: how soon repetitions of a word stop to count
LENGTH_PENALTY = 0.75  # BM25's b
MIN_ROWS_FOR_FREQUENT = 10  # with fewer, no word is ignored for being in most rows


@dataclass(frozen=True)
class Postings:
    """Which of N rows have a term, ordered by term, then by row.

    Attributes:
        terms: the terms, ascending.
        starts: where the postings of each term start, and where the last ones end.
        rows: the row of each posting.
        counts: how often the row has the term.
        lengths: number of terms of each row.
    """

    terms: Int[np.ndarray, " V"]
    starts: Int[np.ndarray, " V1"]
    rows: Int[np.ndarray, " P"]
    counts: UInt8[np.ndarray, " P"]
    lengths: Int[np.ndarray, " N"]

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[int, int]]) -> "Postings":
        """Return the postings of rows, each given as the count of every term."""
        sizes = [len(counts) for counts in rows]
        total = sum(sizes)
        terms = np.fromiter((term for row in rows for term in row), np.int64, total)
        counts = np.fromiter((n for row in rows for n in row.values()), np.int64, total)
        row_numbers = np.repeat(np.arange(len(rows), dtype=np.int32), sizes)
        lengths = np.fromiter((sum(row.values()) for row in rows), np.int32, len(rows))
        return cls._sorted(terms, row_numbers, np.minimum(counts, MAX_COUNT), lengths)

    @classmethod
    def concatenate(cls, parts: "Sequence[Postings]") -> "Postings":
        """Return the postings of several ranges of rows, one after the other."""
        offsets = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int32)
        rows = [part.rows + offset for part, offset in zip(parts, offsets, strict=False)]
        return cls._sorted(
            _join([np.repeat(part.terms, np.diff(part.starts)) for part in parts], np.int64),
            _join(rows, np.int32),
            _join([part.counts for part in parts], np.uint8),
            _join([part.lengths for part in parts], np.int32),
        )

    @classmethod
    def _sorted(
        cls, terms: np.ndarray, rows: np.ndarray, counts: np.ndarray, lengths: np.ndarray
    ) -> "Postings":
        """Order postings, whose rows are ascending for each term, by term."""
        order = np.argsort(terms, kind="stable")
        distinct, starts = np.unique(terms[order], return_index=True)
        starts = np.append(starts, len(terms)).astype(np.int64)
        return cls(distinct, starts, rows[order], counts[order].astype(np.uint8), lengths)

    def __len__(self) -> int:
        return len(self.lengths)

    def check(self) -> None:
        """Check that these are postings.

        Raises:
            ValueError: they are not.
        """
        starts, num_postings = self.starts, len(self.rows)
        ordered = (np.diff(self.terms) > 0).all() and (np.diff(starts) >= 0).all()
        fits = len(starts) == len(self.terms) + 1 and len(self.counts) == num_postings
        if not (ordered and fits and starts[0] == 0 and starts[-1] == num_postings):
            raise ValueError("postings without order")
        if num_postings and not 0 <= self.rows.min() <= self.rows.max() < len(self):
            raise ValueError("rows out of range")

    def find(self, term: int) -> slice:
        """Return the postings of a term."""
        at = int(np.searchsorted(self.terms, term))
        if at == len(self.terms) or self.terms[at] != term:
            return slice(0, 0)
        return slice(int(self.starts[at]), int(self.starts[at + 1]))


class RowScorer:
    """BM25 scores of the rows that are not deleted; statistics leave deleted rows out.

    Args:
        postings: of all rows.
        alive: which rows are not deleted.
    """

    def __init__(self, postings: Postings, alive: Bool[np.ndarray, " N"]) -> None:
        self.postings = postings
        self._num_alive = int(alive.sum())
        self._alive = None if alive.all() else alive
        mean_length = float(postings.lengths[alive].mean()) if self._num_alive else 1.0
        relative_length = postings.lengths / np.float32(max(mean_length, 1.0))
        penalty = 1 - LENGTH_PENALTY + LENGTH_PENALTY * relative_length
        self._saturation = (SATURATION * penalty).astype(np.float32)

    def scores(self, weights: Mapping[int, float]) -> Float[np.ndarray, " N"]:
        """Return the scores of all rows, 0 without any of the terms.

        1 is the limit for a row that repeats the terms alone.

        Args:
            weights: terms with their weights.
        """
        scores = np.zeros(len(self.postings), np.float32)
        total = sum(weights.values())
        for term, weight in weights.items():
            found = self.postings.find(term)
            rows = self.postings.rows[found]
            counts = self.postings.counts[found].astype(np.float32)
            counts /= counts + self._saturation[rows]
            counts *= weight / total
            scores[rows] += counts
        if self._alive is not None:
            scores[~self._alive] = 0
        return scores

    def weights(self, terms: Sequence[int]) -> dict[int, float]:
        """Return the weight of each term: its inverse document frequency.

        Terms that most rows have are left out, unless there are no others.
        """
        num_rows = {term: self._num_rows_with(term) for term in terms}
        n = self._num_alive
        if n >= MIN_ROWS_FOR_FREQUENT:
            rare = {term: count for term, count in num_rows.items() if 2 * count <= n}
            num_rows = rare or num_rows
        return {
            term: float(np.log1p((n - count + 0.5) / (count + 0.5)))
            for term, count in num_rows.items()
        }

    def matched_share(
        self, weights: Mapping[int, float], rows: Int[np.ndarray, " n"]
    ) -> Float[np.ndarray, " n"]:
        """Return for each row the share of its terms in the weight of all terms.

        Args:
            weights: terms with their weights.
            rows: the rows.
        """
        shares = np.zeros(len(rows))
        for term, weight in weights.items():
            shares += weight * _contains(self.postings.rows[self.postings.find(term)], rows)
        return shares / max(sum(weights.values()), 1e-9)

    def rows_with(self, term: int | None) -> Int[np.ndarray, " n"]:
        """Return the rows that have a term and are not deleted."""
        rows = self.postings.rows[slice(0, 0) if term is None else self.postings.find(term)]
        return rows if self._alive is None else rows[self._alive[rows]]

    def _num_rows_with(self, term: int) -> int:
        """Return in how many rows a term is."""
        found = self.postings.find(term)
        if self._alive is None:
            return found.stop - found.start
        return int(self._alive[self.postings.rows[found]].sum())


def _join(arrays: Sequence[np.ndarray], dtype: type) -> np.ndarray:
    """Return arrays, perhaps none, as one."""
    return np.concatenate([np.zeros(0, dtype), *arrays], dtype=dtype)


def _contains(ascending: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return which values are in an ascending array."""
    at = np.searchsorted(ascending, values)
    found = at < len(ascending)
    found[found] = ascending[at[found]] == values[found]
    return found
