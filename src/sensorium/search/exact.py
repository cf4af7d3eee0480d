"""Exact nearest neighbours by inner product: int8 bounds first, then a few candidates in full.

    N rows   D width   B queries   G groups of rows   k results

Rows are stored as int8 too, eight to a group, with a bound on how far the int8 scores are from the
true ones (Cauchy-Schwarz on the rounding error, which is measured). One int8 matrix product gives
bounds of every group's best score; a group is a candidate only if its upper bound reaches the k-th
best lower bound. So no result can be missed. Scores are those of the float32 rows: summed in
float64, rounded once, ties to the lower row number.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sensorium.data.batching import iter_batches

GROUP_ROWS = 8  # rows that share a scale and are read together
BLOCK_ROWS = 1 << 16  # rows stored together
BLOCK_GROUPS = BLOCK_ROWS // GROUP_ROWS
MAX_SCORES_PER_STEP = 1 << 19  # scores computed at once, so that they stay in cache
QUERY_BATCH_SIZE = 128
QUANTIZE_BATCH_GROUPS = 1 << 8
LOWER_BOUND_FOLD = 16  # only the best of so many lower bounds takes part in the top k
RESCORE_BATCH_ROWS = 1 << 15
MIN_GROUPS_PER_CANDIDATE = 16  # with more candidates than 1 in 16, int8 is too coarse for a query
MAX_INT8 = 127
MIN_SCALE = 1e-30


Vectors = Float[np.ndarray, "N D"]
Queries = Float[np.ndarray, "B D"]
Scores = Float[np.ndarray, "B k"]
Rows = Int[np.ndarray, " n"]
TopK = tuple[Scores, Int[np.ndarray, "B k"]]


@runtime_checkable
class SearchEngine(Protocol):
    """The interface of a search engine."""

    def add(self, vectors: Vectors) -> None:
        """Add the rows that are new since the last call.

        Args:
            vectors: all rows, old and new; they stay readable.
        """
        ...

    def remove(self, rows: Rows) -> None:
        """Exclude rows from all later results."""
        ...

    def search(self, queries: Queries, k: int) -> TopK:
        """Return scores and rows, best first; -inf and -1 where there are fewer than k."""
        ...


class ExactEngine:
    """The default engine: results of brute force, with a quarter of the memory traffic.

    Args:
        int8_first: whether int8 bounds are computed before float32 ones; None: whichever is faster
            on this machine.
    """

    def __init__(self, int8_first: bool | None = None) -> None:
        self._vectors = np.zeros((0, 0), np.float32)
        self._alive = np.zeros(0, bool)
        self._blocks: list[_QuantizedBlock] = []
        self._int8_first = int8_first

    def add(self, vectors: Vectors) -> None:
        """Add the rows that are new since the last call."""
        start, n = len(self._alive), len(vectors)
        self._vectors = np.asarray(vectors)  # without the overhead of np.memmap
        self._alive = np.concatenate([self._alive, np.ones(n - start, bool)])
        while len(self._blocks) * BLOCK_ROWS < n:
            self._blocks.append(_QuantizedBlock.empty(vectors.shape[1]))
        self._update_blocks(np.arange(start // GROUP_ROWS, -(-n // GROUP_ROWS)))

    def remove(self, rows: Rows) -> None:
        """Exclude rows from all later results."""
        self._alive[rows] = False
        self._update_blocks(np.unique(np.asarray(rows, np.int64) // GROUP_ROWS))

    def search(self, queries: Queries, k: int) -> TopK:
        """Return scores and rows, best first; -inf and -1 where there are fewer than k."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if not self._alive.any():
            return scores, rows
        max_norm = max(float(block.norm.max()) for block in self._blocks)
        for indices in iter_batches(range(len(queries)), QUERY_BATCH_SIZE):
            batch = np.ascontiguousarray(queries[indices.start : indices.stop], np.float32)
            candidates = self._candidate_groups(torch.from_numpy(batch), k)
            for i, query, groups in zip(indices, batch, candidates, strict=True):
                best_scores, best_rows = self._rescore(query, groups, k, max_norm)
                scores[i, : len(best_scores)] = best_scores
                rows[i, : len(best_rows)] = best_rows
        return scores, rows

    def _update_blocks(self, groups: Rows) -> None:
        """Quantize these groups again, from the rows and from which of them are alive."""
        block_of_group = groups // BLOCK_GROUPS
        for block_index in np.unique(block_of_group):
            block_groups = groups[block_of_group == block_index]
            for batch in iter_batches(block_groups, QUANTIZE_BATCH_GROUPS):
                rows, alive = self._group_rows(batch)
                x = torch.from_numpy(self._vectors[rows])
                within_block = torch.from_numpy(batch - block_index * BLOCK_GROUPS)
                self._blocks[block_index].update(within_block, x, torch.from_numpy(alive))

    def _group_rows(self, groups: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers [n, GROUP_ROWS] of groups, and whether any row of each is alive.

        An alive row of the group stands in for each deleted or missing one.
        """
        rows = groups[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)
        alive = rows < len(self._alive)
        alive[alive] = self._alive[rows[alive]]
        substitutes = np.take_along_axis(rows, alive.argmax(1)[:, None], 1)
        return np.where(alive, rows, substitutes), np.any(alive, axis=1, keepdims=True)[:, 0]

    def _candidate_groups(self, queries: Float[Tensor, "B D"], k: int) -> list[np.ndarray]:
        """Return for each query the groups that may hold one of its k best rows."""
        if self._int8_first is None:
            self._int8_first = int8_is_faster(queries.shape[1])
        if not self._int8_first:
            return self._groups_within_bounds(queries, k, exact=True)
        candidates = self._groups_within_bounds(queries, k, exact=False)
        limit = max(4 * k, len(self._alive) // GROUP_ROWS // MIN_GROUPS_PER_CANDIDATE)
        coarse = [i for i, groups in enumerate(candidates) if len(groups) > limit]
        if coarse:
            refined = self._groups_within_bounds(queries[coarse], k, exact=True)
            for i, groups in zip(coarse, refined, strict=True):
                candidates[i] = groups
        return candidates

    def _groups_within_bounds(
        self, queries: Float[Tensor, "B D"], k: int, *, exact: bool
    ) -> list[np.ndarray]:
        """Return for each query the groups whose upper bound reaches the k-th best lower bound."""
        quantized = _QuantizedQueries.from_floats(queries)
        num_groups = -(-len(self._alive) // GROUP_ROWS)
        upper = queries.new_empty(num_groups, len(queries))
        lower: list[Tensor] = []
        start = 0
        for block_index, group_slice in self._iter_block_slices(len(queries)):
            end = start + group_slice.stop - group_slice.start
            if exact:
                bounds = self._float_bounds(block_index, group_slice, quantized, upper[start:end])
            else:
                block = self._blocks[block_index]
                bounds = block.bounds(group_slice, quantized, upper[start:end])
            lower.append(_fold_lower_bounds(bounds, k))
            start = end
        lower_bounds = torch.cat(lower).T.contiguous()
        if k <= lower_bounds.shape[1]:
            threshold = lower_bounds.topk(k).values[:, -1]
        else:
            threshold = lower_bounds.new_full(lower_bounds.shape[:1], -torch.inf)
        threshold.clamp_min_(torch.finfo(threshold.dtype).min)  # -inf marks groups without rows
        group, query = (upper >= threshold).nonzero().T.numpy()
        ends = np.cumsum(np.bincount(query, minlength=len(queries)))
        return np.split(group[np.argsort(query, kind="stable")], ends[:-1])

    def _iter_block_slices(self, num_queries: int) -> Iterator[tuple[int, slice]]:
        """Yield every block in slices of groups, whose scores stay in cache."""
        folds = MAX_SCORES_PER_STEP // num_queries // GROUP_ROWS // LOWER_BOUND_FOLD
        step = max(folds, 1) * LOWER_BOUND_FOLD
        for block_index, block in enumerate(self._blocks):
            for start in range(0, block.num_groups, step):
                yield block_index, slice(start, min(start + step, block.num_groups))

    def _float_bounds(
        self,
        block_index: int,
        group_slice: slice,
        queries: "_QuantizedQueries",
        upper: Float[Tensor, "G B"],
    ) -> Float[Tensor, "G B"]:
        """Return lower bounds of each group's best true score, from the float32 rows.

        The upper bounds are written to `upper`.
        """
        block = self._blocks[block_index]
        first_group = block_index * BLOCK_GROUPS
        start_group, end_group = first_group + group_slice.start, first_group + group_slice.stop
        rows = slice(start_group * GROUP_ROWS, end_group * GROUP_ROWS)
        if rows.stop <= len(self._alive) and self._alive[rows].all():
            x = self._vectors[rows]
        else:
            group_rows, _ = self._group_rows(np.arange(start_group, end_group))
            x = self._vectors[group_rows.ravel()]
        best = _group_max(torch.from_numpy(x) @ queries.vectors.T)
        best = best + block.deleted_bias[group_slice, None]
        slack = block.norm[group_slice, None] * queries.norm * _rounding_error(x.shape[1])
        torch.add(best, slack, out=upper)
        return best.sub_(slack)

    def _rescore(
        self, query: Float[np.ndarray, " D"], groups: Rows, k: int, max_norm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return scores and rows of the k best alive rows of some groups.

        float32 scores come first; those within rounding of the k-th are computed in float64.

        Args:
            query: the query.
            groups: the candidate groups.
            k: number of results.
            max_norm: no row is longer.
        """
        rows = (groups[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)).ravel()
        rows = rows[rows < len(self._alive)]
        rows = rows[self._alive[rows]]
        approximate = np.concatenate(
            [self._vectors[batch] @ query for batch in _iter_row_batches(rows)]
        )
        if len(rows) > k:
            slack = 2 * _rounding_error(len(query)) * max_norm * float(np.linalg.norm(query))
            kth = np.partition(approximate, len(rows) - k)[len(rows) - k]
            rows = rows[approximate >= kth - slack]
        exact = [
            np.einsum("nd,d->n", self._vectors[batch].astype(np.float64), query)
            for batch in _iter_row_batches(rows)
        ]
        scores = np.concatenate(exact).astype(np.float32)
        order = np.lexsort((rows, -scores))[:k]
        return scores[order], rows[order]


@dataclass(frozen=True)
class _QuantizedQueries:
    """Queries in float32 and int8; `error` is the norm of what int8 leaves out."""

    vectors: Float[Tensor, "B D"]
    int8_vectors: Int[Tensor, "B D"]
    scale: Float[Tensor, " B"]
    norm: Float[Tensor, " B"]
    error: Float[Tensor, " B"]

    @classmethod
    def from_floats(cls, vectors: Float[Tensor, "B D"]) -> "_QuantizedQueries":
        """Quantize queries, each with a scale of its own."""
        int8_vectors, scale, error = _quantize_int8(vectors[:, None])
        return cls(vectors, int8_vectors[:, 0], scale, vectors.norm(dim=1) * 1.001, error)


@dataclass
class _QuantizedBlock:
    """BLOCK_ROWS rows in int8; a row is `scale` times its int8 values, up to a norm of `error`."""

    int8_rows: Int[Tensor, "BLOCK D"]
    scale: Float[Tensor, " G"]
    error: Float[Tensor, " G"]
    norm: Float[Tensor, " G"]  # no row of the group is longer, in int8 or float32
    deleted_bias: Float[Tensor, " G"]  # 0, or -inf where no row is alive
    num_groups: int = 0  # groups that hold rows

    @classmethod
    def empty(cls, dim: int) -> "_QuantizedBlock":
        """Return a block without rows."""
        scale, error, norm, deleted_bias = torch.zeros(4, BLOCK_GROUPS)
        int8_rows = torch.empty(BLOCK_ROWS, dim, dtype=torch.int8)
        return cls(int8_rows, scale, error, norm, deleted_bias)

    def update(
        self, groups: Int[Tensor, " n"], x: Float[Tensor, "n GROUP D"], alive: Bool[Tensor, " n"]
    ) -> None:
        """Quantize the rows of these groups."""
        int8_rows, scale, error = _quantize_int8(x)
        self.int8_rows.view(-1, GROUP_ROWS, x.shape[-1])[groups] = int8_rows
        self.scale[groups] = scale
        self.error[groups] = error
        self.norm[groups] = x.norm(dim=-1).amax(1) * 1.001 + error
        self.deleted_bias[groups] = torch.where(alive, 0.0, -torch.inf)
        self.num_groups = max(self.num_groups, int(groups.max()) + 1)

    def bounds(
        self, group_slice: slice, queries: _QuantizedQueries, upper: Float[Tensor, "G B"]
    ) -> Float[Tensor, "G B"]:
        """Return lower bounds of each group's best true score, from the int8 rows.

        The upper bounds are written to `upper`. Both are divided by the scale of the query, as only
        bounds of the same query are compared.
        """
        rows = self.int8_rows[group_slice.start * GROUP_ROWS : group_slice.stop * GROUP_ROWS]
        norm = self.norm[group_slice]
        best = _group_max(_int8_matmul(rows, queries.int8_vectors))
        best = best * self.scale[group_slice][:, None]
        best.add_(self.deleted_bias[group_slice][:, None])
        row_error = self.error[group_slice] + norm * _rounding_error(rows.shape[1])
        slack = torch.addcmul(
            row_error[:, None] * (queries.norm / queries.scale),
            norm[:, None],
            queries.error / queries.scale,
        )
        torch.add(best, slack, out=upper)
        return best.sub_(slack)


def _fold_lower_bounds(lower: Float[Tensor, "G B"], k: int) -> Float[Tensor, "n B"]:
    """Return the lower bounds, or if there are plenty, the best of each LOWER_BOUND_FOLD.

    Bounds far apart are folded, because similar rows are often neighbours.
    """
    plenty = len(lower) % LOWER_BOUND_FOLD == 0 and len(lower) >= 3 * LOWER_BOUND_FOLD * k
    return lower.view(LOWER_BOUND_FOLD, -1, lower.shape[1]).amax(0) if plenty else lower


def _group_max(scores: Tensor) -> Tensor:
    """Return the best score of each group."""
    return scores.view(-1, GROUP_ROWS, scores.shape[1]).amax(1)


def _quantize_int8(
    x: Float[Tensor, "n g D"],
) -> tuple[Int[Tensor, "n g D"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Return int8 values, a scale for each n, and the largest norm of the rounding, rounded up."""
    scale = (x.abs().amax((1, 2)) / MAX_INT8).clamp_min(MIN_SCALE)
    rounded = (x / scale[:, None, None]).round_().clamp_(-MAX_INT8, MAX_INT8)
    error = torch.addcmul(x, rounded, scale[:, None, None], value=-1).norm(dim=-1).amax(1)
    return rounded.to(torch.int8), scale, error * 1.001 + scale * 1e-4


def _rounding_error(dim: int) -> float:
    """Return twice the largest error of a float32 inner product of unit vectors."""
    return (dim + 8) * 2.0**-23


def _iter_row_batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    """Yield rows in batches; no rows are one empty batch."""
    yield from iter_batches(rows, RESCORE_BATCH_ROWS) if len(rows) else [rows]


def _int8_matmul(rows: Int[Tensor, "n D"], queries: Int[Tensor, "B D"]) -> Int[Tensor, "n B"]:
    """Return int32 inner products."""
    return torch._int_mm(rows, queries.T)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


@cache
def int8_is_faster(dim: int) -> bool:
    """Return whether int8 products are exact and faster than float32 ones on this machine.

    Measured once per width, in milliseconds. Without VNNI, int8 sums may saturate, and torch 2.13
    is wrong at width 1, so correctness is checked first.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-127, 128, (2048, dim), dtype=torch.int8, generator=generator)
    rows[:8] = 127
    rows[8:16] = -127
    floats = rows.float()
    expected = rows.double() @ rows[:16].double().T
    for num_queries in (1, 16):
        if not (_int8_matmul(rows, rows[:num_queries]) == expected[:, :num_queries]).all():
            return False
    int8_time = _best_time(lambda: _int8_matmul(rows, rows[:16]))
    float_time = _best_time(lambda: floats @ floats[:16].T)
    return int8_time < float_time


def _best_time(fn: Callable[[], object]) -> float:
    """Return the seconds of the fastest of five calls."""
    times: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)
