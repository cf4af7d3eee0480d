"""Exact nearest rows by inner product: a look at bytes with a proven bound, then the few rows that may matter in full.

    N rows   D width   B queries   G groups of rows   k answers

Rows are kept as bytes too, eight to a group, with how far the group's bytes are from the truth at most (Cauchy-Schwarz
on the rounding error, which is measured, not assumed). One integer product gives every group's best score within that
distance; a group is read in full only if its upper bound reaches the k-th best lower bound. So no answer can be
missed, and the scores are those of the float32 rows: summed in float64, rounded once, ties to the lower row.
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

GROUP_ROWS = 8  # rows that share a scale and are read together
BLOCK_ROWS = 1 << 16  # rows kept together
MAX_SCORES_PER_STEP = (
    1 << 19
)  # scores of rows that are worked on at once, so that they stay in cache
QUERY_BATCH_SIZE = 128  # queries at once
QUANTIZE_BATCH_GROUPS = 1 << 8  # groups turned to bytes at once
LOWER_BOUND_FOLD = (
    16  # lower bounds of which only the best takes part in the search for the k highest
)
RESCORE_BATCH_ROWS = 1 << 15  # candidate rows copied at once
MIN_GROUPS_PER_CANDIDATE = (
    16  # where more than one group in LOSE may matter, bytes are too coarse for that query
)


Vectors = Float[np.ndarray, "N D"]
Queries = Float[np.ndarray, "B D"]
Scores = Float[np.ndarray, "B k"]
Rows = Int[np.ndarray, " n"]
TopK = tuple[Scores, Int[np.ndarray, "B k"]]


@runtime_checkable
class SearchEngine(Protocol):
    """What a search engine must do; a server's would do the same over a wire."""

    def add(self, vectors: Vectors) -> None:
        """Take in every row from the last call's N on. `matrix` is the whole of it and stays readable."""
        ...

    def remove(self, rows: Rows) -> None:
        """Never answer with these rows again."""
        ...

    def search(self, queries: Queries, k: int) -> TopK:
        """Scores and rows, best first; where there are fewer than k, the rest is -inf and -1."""
        ...


class ExactEngine:
    """The default engine: results are those of brute force, in a quarter of the memory traffic."""

    def __init__(self, int8_first: bool | None = None) -> None:
        """bytes_first: whether to look at bytes before floats; None measures which is quicker on this machine."""
        self._vectors = np.zeros((0, 0), np.float32)
        self._alive = np.zeros(0, bool)
        self._blocks: list[_QuantizedBlock] = []
        self._int8_first = int8_first

    def add(self, vectors: Vectors) -> None:
        start, n = len(self._alive), len(vectors)
        self._vectors = np.asarray(vectors)  # without the overhead of a memmap's own class
        self._alive = np.concatenate([self._alive, np.ones(n - start, bool)])
        while len(self._blocks) * BLOCK_ROWS < n:
            self._blocks.append(_QuantizedBlock.empty(vectors.shape[1]))
        self._update_blocks(np.arange(start // GROUP_ROWS, -(-n // GROUP_ROWS)))

    def remove(self, rows: Rows) -> None:
        self._alive[rows] = False
        self._update_blocks(np.unique(np.asarray(rows, np.int64) // GROUP_ROWS))

    def search(self, queries: Queries, k: int) -> TopK:
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), -1, np.int64)
        if self._alive.any():
            longest = max(float(block.norm.max()) for block in self._blocks)
            for start in range(0, len(queries), QUERY_BATCH_SIZE):
                part = np.ascontiguousarray(queries[start : start + QUERY_BATCH_SIZE], np.float32)
                for i, groups in enumerate(self._candidate_groups(torch.from_numpy(part), k)):
                    found, where = self._rescore(part[i], groups, k, longest)
                    scores[start + i, : len(found)], rows[start + i, : len(found)] = found, where
        return scores, rows

    def _update_blocks(self, groups: Rows) -> None:
        """Bring the bytes of these groups up to date with the rows and with who is alive."""
        per = BLOCK_ROWS // GROUP_ROWS
        for b in np.unique(groups // per):
            part = groups[groups // per == b]
            for piece in np.split(
                part, range(QUANTIZE_BATCH_GROUPS, len(part), QUANTIZE_BATCH_GROUPS)
            ):
                rows, alive = self._group_rows(piece)
                x = torch.from_numpy(self._vectors[rows])
                self._blocks[b].update(torch.from_numpy(piece - b * per), x, torch.from_numpy(alive))

    def _group_rows(self, groups: Rows) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers [n, GROUP], a living row standing in for each dead or absent one; and whether any is alive."""
        rows = groups[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)
        alive = rows < len(self._alive)
        alive[alive] = self._alive[rows[alive]]
        stand_in = np.take_along_axis(rows, alive.argmax(1)[:, None], 1)
        return np.where(alive, rows, stand_in), np.any(alive, axis=1, keepdims=True)[:, 0]

    def _candidate_groups(self, queries: Float[Tensor, "B D"], k: int) -> list[np.ndarray]:
        """For each query the groups that may hold one of its k best."""
        if self._int8_first is None:
            self._int8_first = int8_is_faster(queries.shape[1])
        if not self._int8_first:
            return self._groups_within_bounds(queries, k, exact=True)
        found = self._groups_within_bounds(queries, k, exact=False)
        most = max(4 * k, len(self._alive) // GROUP_ROWS // MIN_GROUPS_PER_CANDIDATE)
        wide = [i for i, groups in enumerate(found) if len(groups) > most]
        if wide:
            for i, groups in zip(
                wide, self._groups_within_bounds(queries[wide], k, exact=True), strict=True
            ):
                found[i] = groups
        return found

    def _groups_within_bounds(
        self, queries: Float[Tensor, "B D"], k: int, *, exact: bool
    ) -> list[np.ndarray]:
        """For each query the groups whose upper bound reaches the k-th best lower bound."""
        look, best, at = _QuantizedQueries.from_floats(queries), [], 0
        high = queries.new_empty(-(-len(self._alive) // GROUP_ROWS), len(queries))
        for b, part in self._iter_block_slices(len(queries)):
            up = high[at : (at := at + part.stop - part.start)]
            low = (
                self._float_bounds(b, part, look, up)
                if exact
                else self._blocks[b].bounds(part, look, up)
            )
            best.append(_fold_lower_bounds(low, k))
        lows = torch.cat(best).T.contiguous()
        least = (
            lows.topk(k).values[:, -1]
            if k <= lows.shape[1]
            else lows.new_full(lows.shape[:1], -torch.inf)
        )
        group, query = (high >= least.clamp_min_(torch.finfo(least.dtype).min)).nonzero().T.numpy()
        ends = np.cumsum(np.bincount(query, minlength=len(queries)))
        return np.split(group[np.argsort(query, kind="stable")], ends[:-1])

    def _iter_block_slices(self, num_queries: int) -> Iterator[tuple[int, slice]]:
        """Every block in pieces of so many groups that the scores of a piece stay in cache."""
        step = (
            max(MAX_SCORES_PER_STEP // num_queries // GROUP_ROWS // LOWER_BOUND_FOLD, 1)
            * LOWER_BOUND_FOLD
        )
        for b, block in enumerate(self._blocks):
            for start in range(0, block.num_groups, step):
                yield b, slice(start, min(start + step, block.num_groups))

    def _float_bounds(
        self,
        block_index: int,
        group_slice: slice,
        queries: "_QuantizedQueries",
        upper: Float[Tensor, "G B"],
    ) -> Float[Tensor, "G B"]:
        """What the best true score of each of these groups is at least, from the rows in full; at most: into `up`."""
        block, first = self._blocks[block_index], block_index * BLOCK_ROWS // GROUP_ROWS
        rows = slice(
            (first + group_slice.start) * GROUP_ROWS, (first + group_slice.stop) * GROUP_ROWS
        )
        if rows.stop <= len(self._alive) and self._alive[rows].all():
            x = self._vectors[rows]
        else:
            x = self._vectors[
                self._group_rows(first + np.arange(group_slice.start, group_slice.stop))[0].ravel()
            ]
        best = (
            _group_max(torch.from_numpy(x) @ queries.vectors.T)
            + block.deleted_bias[group_slice, None]
        )
        slack = block.norm[group_slice, None] * queries.norm * _rounding_error(x.shape[1])
        torch.add(best, slack, out=upper)
        return best.sub_(slack)

    def _rescore(
        self, query: Float[np.ndarray, " D"], groups: Rows, k: int, max_norm: float
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k best living rows of these groups: float32 first, float64 for those within its rounding of the k-th.

        max_norm: no row is longer.
        """
        rows = (groups[:, None] * GROUP_ROWS + np.arange(GROUP_ROWS)).ravel()
        rows = rows[rows < len(self._alive)]
        rows = rows[self._alive[rows]]
        rough = np.concatenate([self._vectors[piece] @ query for piece in _iter_row_batches(rows)])
        if len(rows) > k:
            slack = 2 * _rounding_error(len(query)) * max_norm * float(np.linalg.norm(query))
            rows = rows[rough >= np.partition(rough, len(rows) - k)[len(rows) - k] - slack]
        true = [
            np.einsum("nd,d->n", self._vectors[piece].astype(np.float64), query)
            for piece in _iter_row_batches(rows)
        ]
        scores = np.concatenate(true).astype(np.float32)
        order = np.lexsort((rows, -scores))[:k]
        return scores[order], rows[order]


@dataclass(frozen=True)
class _QuantizedQueries:
    """Queries in full and in bytes, with the length of what the bytes leave out."""

    vectors: Float[Tensor, "B D"]
    int8_vectors: Int[Tensor, "B D"]
    scale: Float[Tensor, " B"]
    norm: Float[Tensor, " B"]
    error: Float[Tensor, " B"]

    @classmethod
    def from_floats(cls, vectors: Float[Tensor, "B D"]) -> "_QuantizedQueries":
        small, scale, error = _quantize_int8(vectors[:, None])
        return cls(vectors, small[:, 0], scale, vectors.norm(dim=1) * 1.001, error)


@dataclass
class _QuantizedBlock:
    """BLOCK rows as bytes; a group's rows are `scale` times its bytes, give or take a vector of length `error`."""

    int8_rows: Int[Tensor, "BLOCK D"]
    scale: Float[Tensor, " G"]
    error: Float[Tensor, " G"]
    norm: Float[Tensor, " G"]  # no row of the group is longer, in bytes or in full
    deleted_bias: Float[Tensor, " G"]  # 0, or -inf where no row is alive
    num_groups: int = 0  # groups that hold rows

    @classmethod
    def empty(cls, dim: int) -> "_QuantizedBlock":
        scale, error, norm, gone = torch.zeros(4, BLOCK_ROWS // GROUP_ROWS)
        return cls(torch.empty(BLOCK_ROWS, dim, dtype=torch.int8), scale, error, norm, gone)

    def update(
        self, groups: Int[Tensor, " n"], x: Float[Tensor, "n GROUP D"], alive: Bool[Tensor, " n"]
    ) -> None:
        """Summarise these groups of rows."""
        small, scale, error = _quantize_int8(x)
        self.int8_rows.view(-1, GROUP_ROWS, x.shape[-1])[groups] = small
        self.scale[groups], self.error[groups] = scale, error
        self.norm[groups] = x.norm(dim=-1).amax(1) * 1.001 + error
        self.deleted_bias[groups] = torch.where(alive, 0.0, -torch.inf)
        self.num_groups = max(self.num_groups, int(groups.max()) + 1)

    def bounds(
        self, group_slice: slice, queries: _QuantizedQueries, upper: Float[Tensor, "G B"]
    ) -> Float[Tensor, "G B"]:
        """What the best true score of each of these groups is at least, from their bytes; at most: into `up`.

        Both divided by the query's scale: they are compared with those of the same query only.
        """
        rows = self.int8_rows[group_slice.start * GROUP_ROWS : group_slice.stop * GROUP_ROWS]
        scale, error, norm, gone = (
            x[group_slice] for x in (self.scale, self.error, self.norm, self.deleted_bias)
        )
        best = (_group_max(_int8_matmul(rows, queries.int8_vectors)) * scale[:, None]).add_(
            gone[:, None]
        )
        error = error + norm * _rounding_error(rows.shape[1])
        away = torch.addcmul(
            error[:, None] * (queries.norm / queries.scale),
            norm[:, None],
            queries.error / queries.scale,
        )
        torch.add(best, away, out=upper)
        return best.sub_(away)


def _fold_lower_bounds(lower: Float[Tensor, "G B"], k: int) -> Float[Tensor, "n B"]:
    """Lower bounds; where there are plenty, only the best of each FOLD far apart (like rows are often neighbours)."""
    plenty = len(lower) % LOWER_BOUND_FOLD == 0 and len(lower) >= 3 * LOWER_BOUND_FOLD * k
    return lower.view(LOWER_BOUND_FOLD, -1, lower.shape[1]).amax(0) if plenty else lower


def _group_max(scores: Tensor) -> Tensor:
    return scores.view(-1, GROUP_ROWS, scores.shape[1]).amax(1)


def _quantize_int8(
    x: Float[Tensor, "n g D"],
) -> tuple[Int[Tensor, "n g D"], Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Numbers as bytes times a scale for each n, and the length of the longest difference, rounded up."""
    scale = (x.abs().amax((1, 2)) / 127).clamp_min(1e-30)
    small = (x / scale[:, None, None]).round_().clamp_(-127, 127)
    error = torch.addcmul(x, small, scale[:, None, None], value=-1).norm(dim=-1).amax(1)
    return small.to(torch.int8), scale, error * 1.001 + scale * 1e-4


def _rounding_error(dim: int) -> float:
    """How far a float32 product of vectors of length 1 may be from the truth in any order of summing; twice that."""
    return (dim + 8) * 2.0**-23


def _iter_row_batches(rows: np.ndarray) -> Iterator[np.ndarray]:
    return (
        rows[i : i + RESCORE_BATCH_ROWS] for i in range(0, max(len(rows), 1), RESCORE_BATCH_ROWS)
    )


def _int8_matmul(rows: Int[Tensor, "n D"], queries: Int[Tensor, "B D"]) -> Int[Tensor, "n B"]:
    return torch._int_mm(rows, queries.T)  # pyright: ignore[reportPrivateImportUsage]


@cache
def int8_is_faster(dim: int) -> bool:
    """Whether this machine multiplies bytes exactly and faster than floats: tried once a width, in milliseconds.

    Without VNNI sums of bytes may saturate, and torch 2.13 is wrong at width 1, so right comes before quick.
    """
    rows = torch.randint(
        -127, 128, (2048, dim), dtype=torch.int8, generator=torch.Generator().manual_seed(0)
    )
    rows[:8], rows[8:16] = 127, -127
    floats, truth = rows.float(), rows.double() @ rows[:16].double().T
    right = all(bool((_int8_matmul(rows, rows[:b]) == truth[:, :b]).all()) for b in (1, 16))
    return right and _best_time(lambda: _int8_matmul(rows, rows[:16])) < _best_time(
        lambda: floats @ floats[:16].T
    )


def _best_time(fn: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        start = time.perf_counter()
        fn()
        times.append(time.perf_counter() - start)
    return min(times)
