"""Tests of exact search against brute force."""

import numpy as np
import pytest

from sensorium.search.exact import ExactEngine, int8_is_faster


def brute_force(
    x: np.ndarray, q: np.ndarray, k: int, alive: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    scores = (q.astype(np.float64) @ x.astype(np.float64).T).astype(np.float32)
    scores[:, ~alive] = -np.inf
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, rows, 1)
    rows = np.where(best > -np.inf, rows, -1)
    padding = ((0, 0), (0, k - best.shape[1]))
    return (
        np.pad(best, padding, constant_values=-np.inf),
        np.pad(rows, padding, constant_values=-1),
    )


def random_rows(kind: str, n: int, dim: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((n, dim), dtype=np.float32)
    if kind == "copies":
        return x[rng.integers(0, max(1, n // 5), n)]
    if kind == "all equal":
        return np.repeat(x[:1], n, 0)
    if kind == "sparse":
        return x * (rng.random((n, dim)) < 0.1)
    if kind == "narrow":  # all in one direction, as real embeddings are
        return x * 0.02 + 1
    return x


@pytest.mark.parametrize("int8_first", [True, False])
@pytest.mark.parametrize("kind", ["plain", "copies", "all equal", "sparse", "narrow"])
def test_exact_engine_equals_brute_force(kind: str, int8_first: bool) -> None:
    rng = np.random.default_rng(0)
    sizes = (
        (1, 16, 1, 1),
        (7, 16, 3, 2),
        (9, 33, 100, 1),
        (100, 17, 10, 130),
        (4097, 16, 10, 3),
        (5000, 24, 5, 9),
    )
    for n, dim, k, num_queries in sizes:
        x = random_rows(kind, n, dim, rng)
        queries = rng.standard_normal((num_queries, dim), dtype=np.float32)
        engine, alive = ExactEngine(int8_first), np.ones(n, bool)
        engine.add(x[: n // 3])
        engine.add(x)
        for deleted_fraction in (0.0, 0.6, 1.0):
            deleted = np.flatnonzero((rng.random(n) < deleted_fraction) & alive)
            engine.remove(deleted)
            alive[deleted] = False
            scores, rows = engine.search(queries, k)
            expected_scores, expected_rows = brute_force(x, queries, k, alive)
            case = f"n={n} dim={dim} k={k} deleted={deleted_fraction}"
            assert np.array_equal(scores, expected_scores), case
            assert np.array_equal(rows, expected_rows), case


def test_empty_engine_returns_no_rows() -> None:
    scores, rows = ExactEngine().search(np.ones((2, 4), np.float32), 3)
    assert (scores == -np.inf).all()
    assert (rows == -1).all()
    assert scores.shape == (2, 3)


def test_inexact_int8_product_is_not_used() -> None:
    assert not int8_is_faster(1)  # torch 2.13 gets width 1 wrong
