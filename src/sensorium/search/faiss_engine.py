"""Approximate nearest neighbours with faiss: for millions of rows and single fast queries.

N rows   D width   B queries   k results
"""

from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.search.exact import ExactEngine, Queries, Rows, TopK, Vectors

RECALL_QUERIES = 200
RECALL_K = 10
TRAIN_ROWS_PER_CELL = 40
MIN_ROWS_FOR_CELLS = 1000  # below this, scanning all rows is as fast


class FaissEngine:
    """An inverted file index (IVF): only the cells nearest to a query are scanned.

    It is rebuilt each time the number of rows has doubled.

    Args:
        nprobe: cells scanned for a query.

    Attributes:
        recall: recall at 10 against exact search, measured when it was last built.

    Raises:
        SensoriumError: faiss is not installed.
    """

    def __init__(self, nprobe: int = 16) -> None:
        try:
            import faiss
        except ImportError:
            raise SensoriumError(
                'Approximate search needs faiss. Install it: pip install "sensorium[search]".'
            ) from None
        self._faiss: Any = faiss
        self._index: Any = None
        self._nprobe = nprobe
        self._num_rows = 0
        self._num_rows_at_build = 0
        self._deleted: set[int] = set()
        self.recall = 1.0

    def add(self, vectors: Vectors) -> None:
        """Add the rows that are new since the last call."""
        if self._index is None or len(vectors) > 2 * self._num_rows_at_build:
            self._build_index(vectors)
        else:
            self._index.add(np.ascontiguousarray(vectors[self._num_rows :]))
        self._num_rows = len(vectors)

    def remove(self, rows: Rows) -> None:
        """Exclude rows from all later results."""
        self._deleted.update(np.asarray(rows).tolist())

    def search(self, queries: Queries, k: int) -> TopK:
        """Return scores and rows, best first; -inf and -1 where there are fewer than k."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if self._index is None or not self._num_rows or not len(queries):
            return scores, rows
        num_candidates = min(k + len(self._deleted), self._num_rows)
        contiguous = np.ascontiguousarray(queries, np.float32)
        all_scores, all_rows = self._index.search(contiguous, num_candidates)
        for i in range(len(queries)):
            positions = [
                position
                for position, row in enumerate(all_rows[i].tolist())
                if row >= 0 and row not in self._deleted
            ][:k]
            scores[i, : len(positions)] = all_scores[i, positions]
            rows[i, : len(positions)] = all_rows[i, positions]
        return scores, rows

    def _build_index(self, vectors: Vectors) -> None:
        """Train the cells on a part of the rows, add all rows, and measure the recall."""
        n, dim = vectors.shape
        self._index = self._faiss.IndexFlatIP(dim)
        self._num_rows_at_build = n
        if n < MIN_ROWS_FOR_CELLS:
            self._index.add(np.ascontiguousarray(vectors))
            return
        cells = max(1, min(round(2 * n**0.5), n // TRAIN_ROWS_PER_CELL))
        self._index = self._faiss.IndexIVFFlat(
            self._index, dim, cells, self._faiss.METRIC_INNER_PRODUCT
        )
        self._index.nprobe = min(self._nprobe, cells)
        sample = np.random.default_rng(0).permutation(n)[: TRAIN_ROWS_PER_CELL * cells]
        self._index.train(np.ascontiguousarray(vectors[np.sort(sample)]))
        self._index.add(np.ascontiguousarray(vectors))
        self._measure_recall(vectors)

    def _measure_recall(self, vectors: Vectors) -> None:
        """Search for slightly changed rows, and compare the results with exact search."""
        rng = np.random.default_rng(1)
        queries = np.asarray(vectors)[rng.integers(0, len(vectors), RECALL_QUERIES)]
        noise = rng.standard_normal(queries.shape, np.float32)
        queries = queries + noise * 0.5 / vectors.shape[1] ** 0.5
        exact = ExactEngine()
        exact.add(vectors)
        expected = exact.search(queries, RECALL_K)[1]
        approximate = self._index.search(queries, RECALL_K)[1]
        overlaps = [
            len(set(a) & set(b)) / RECALL_K for a, b in zip(expected, approximate, strict=True)
        ]
        self.recall = float(np.mean(overlaps))
        print(
            f"faiss: {self._index.nlist} cells, {self._index.nprobe} scanned; recall@{RECALL_K} "
            f"{self.recall:.1%} against exact search ({RECALL_QUERIES} queries)"
        )
