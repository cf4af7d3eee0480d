"""Approximate nearest rows by faiss: for millions of rows, where a lone query must take well under a millisecond.

N rows   D width   B queries   k answers
"""

from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.search.exact import ExactEngine, Queries, Rows, TopK, Vectors

RECALL_QUERIES = 200  # queries that recall is measured with
TRAIN_ROWS_PER_CELL = 40  # rows a cell is learned from
MIN_ROWS_FOR_CELLS = 1000  # below this, scanning all rows is at least as quick


class FaissEngine:
    """Cells (IVF) of rows; it looks into the `probe` cells nearest to a query. Built anew once it has doubled."""

    def __init__(self, nprobe: int = 16) -> None:
        try:
            import faiss
        except ImportError:
            raise SensoriumError(
                'approximate search needs faiss: pip install "sensorium[search]"'
            ) from None
        self._faiss: Any = faiss
        self._index: Any = None
        self._nprobe, self._num_rows_at_build, self._num_rows = nprobe, 0, 0
        self._deleted: set[int] = set()
        self.recall = 1.0  # at 10, against exact search, when last built

    def add(self, vectors: Vectors) -> None:
        if self._index is None or len(vectors) > 2 * self._num_rows_at_build:
            self._build_index(vectors)
        else:
            self._index.add(np.ascontiguousarray(vectors[self._num_rows :]))
        self._num_rows = len(vectors)

    def remove(self, rows: Rows) -> None:
        self._deleted.update(np.asarray(rows).tolist())

    def search(self, queries: Queries, k: int) -> TopK:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if self._index is None or not self._num_rows or not len(queries):
            return scores, rows
        more = min(k + len(self._deleted), self._num_rows)
        found, where = self._index.search(np.ascontiguousarray(queries, np.float32), more)
        for i in range(len(queries)):
            keep = [
                j
                for j, row in enumerate(where[i].tolist())
                if row >= 0 and row not in self._deleted
            ][:k]
            scores[i, : len(keep)], rows[i, : len(keep)] = found[i, keep], where[i, keep]
        return scores, rows

    def _build_index(self, vectors: Vectors) -> None:
        """Learn the cells from a part of the rows, add all, and measure what looking into few of them misses."""
        dim, cells = (
            vectors.shape[1],
            max(1, min(round(2 * len(vectors) ** 0.5), len(vectors) // TRAIN_ROWS_PER_CELL)),
        )
        flat = self._faiss.IndexFlatIP(dim)
        self._index, self._num_rows_at_build = flat, len(vectors)
        if len(vectors) >= MIN_ROWS_FOR_CELLS:
            self._index = self._faiss.IndexIVFFlat(
                flat, dim, cells, self._faiss.METRIC_INNER_PRODUCT
            )
            self._index.nprobe = min(self._nprobe, cells)
            pick = np.random.default_rng(0).permutation(len(vectors))[: TRAIN_ROWS_PER_CELL * cells]
            self._index.train(np.ascontiguousarray(vectors[np.sort(pick)]))
        self._index.add(np.ascontiguousarray(vectors))
        if len(vectors) >= MIN_ROWS_FOR_CELLS:
            self._measure_recall(vectors)

    def _measure_recall(self, vectors: Vectors) -> None:
        rng, k = np.random.default_rng(1), 10
        trial = np.asarray(vectors)[rng.integers(0, len(vectors), RECALL_QUERIES)]
        trial = trial + rng.standard_normal(trial.shape, np.float32) * 0.5 / vectors.shape[1] ** 0.5
        exact = ExactEngine()
        exact.add(vectors)
        truth, found = exact.search(trial, k)[1], self._index.search(trial, k)[1]
        self.recall = float(
            np.mean([len(set(a) & set(b)) / k for a, b in zip(truth, found, strict=True)])
        )
        print(
            f"faiss: {self._index.nlist} cells, {self._index.nprobe} looked into; finds {self.recall:.1%} of the ten "
            f"nearest ({RECALL_QUERIES} rows changed a little, against exact search)"
        )
