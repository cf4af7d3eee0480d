"""Approximate nearest rows by faiss: for millions of rows, where a lone query must take well under a millisecond.

    N rows   D width   B queries   k answers
"""
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.tasks.nearest import Exact, Found, Queries, Rows, Vectors

TRIAL = 200                                         # queries that recall is measured with
TRAIN = 40                                          # rows a cell is learned from
FEW = 1000                                          # below this, scanning all rows is at least as quick


class Faiss:
    """Cells (IVF) of rows; it looks into the `probe` cells nearest to a query. Built anew once it has doubled."""

    def __init__(self, probe: int = 16) -> None:
        try:
            import faiss
        except ImportError:
            raise SensoriumError('approximate search needs faiss: pip install "sensorium[search]"') from None
        self._faiss: Any = faiss
        self._index: Any = None
        self._probe, self._trained, self._size = probe, 0, 0
        self._dead: set[int] = set()
        self.recall = 1.0                           # at 10, against exact search, when last built

    def add(self, matrix: Vectors) -> None:
        if self._index is None or len(matrix) > 2 * self._trained:
            self._build(matrix)
        else:
            self._index.add(np.ascontiguousarray(matrix[self._size:]))
        self._size = len(matrix)

    def remove(self, rows: Rows) -> None:
        self._dead.update(np.asarray(rows).tolist())

    def search(self, queries: Queries, k: int) -> Found:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if self._index is None or not self._size or not len(queries):
            return scores, rows
        more = min(k + len(self._dead), self._size)
        found, where = self._index.search(np.ascontiguousarray(queries, np.float32), more)
        for i in range(len(queries)):
            keep = [j for j, row in enumerate(where[i].tolist()) if row >= 0 and row not in self._dead][:k]
            scores[i, :len(keep)], rows[i, :len(keep)] = found[i, keep], where[i, keep]
        return scores, rows

    def _build(self, matrix: Vectors) -> None:
        """Learn the cells from a part of the rows, add all, and measure what looking into few of them misses."""
        dim, cells = matrix.shape[1], max(1, min(round(2 * len(matrix) ** 0.5), len(matrix) // TRAIN))
        flat = self._faiss.IndexFlatIP(dim)
        self._index, self._trained = flat, len(matrix)
        if len(matrix) >= FEW:
            self._index = self._faiss.IndexIVFFlat(flat, dim, cells, self._faiss.METRIC_INNER_PRODUCT)
            self._index.nprobe = min(self._probe, cells)
            pick = np.random.default_rng(0).permutation(len(matrix))[:TRAIN * cells]
            self._index.train(np.ascontiguousarray(matrix[np.sort(pick)]))
        self._index.add(np.ascontiguousarray(matrix))
        if len(matrix) >= FEW:
            self._measure(matrix)

    def _measure(self, matrix: Vectors) -> None:
        rng, k = np.random.default_rng(1), 10
        trial = np.asarray(matrix)[rng.integers(0, len(matrix), TRIAL)]
        trial = trial + rng.standard_normal(trial.shape, np.float32) * 0.5 / matrix.shape[1] ** 0.5
        exact = Exact()
        exact.add(matrix)
        truth, found = exact.search(trial, k)[1], self._index.search(trial, k)[1]
        self.recall = float(np.mean([len(set(a) & set(b)) / k for a, b in zip(truth, found, strict=True)]))
        print(f"faiss: {self._index.nlist} cells, {self._index.nprobe} looked into; finds {self.recall:.1%} of the ten "
              f"nearest ({TRIAL} rows changed a little, against exact search)")
