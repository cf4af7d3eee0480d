"""Distances between sets of feature vectors, against their closed forms and by identity."""

import pytest
import torch

from sensorium.metrics.image_generation import (
    clip_score,
    diversity,
    frechet_distance,
    kernel_distance,
    nearest_neighbors,
)
from sensorium.nn.tokens import l2_normalize


def normal(n: int, e: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, e, generator=torch.Generator().manual_seed(seed))


def whitened(n: int, e: int, seed: int = 0) -> torch.Tensor:
    """Rows with a mean of exactly zero and a covariance of exactly one."""
    x = normal(n, e, seed).double()
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_of_equal_sets_is_zero() -> None:
    x = normal(200, 16)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    few = normal(5, 16)  # singular covariances
    assert frechet_distance(few, few) == pytest.approx(0, abs=1e-6)


def test_frechet_of_two_gaussians() -> None:
    """|m|^2 + sum (s - t)^2 where both covariances are diagonal."""
    x, y = whitened(100, 4, 0), whitened(80, 4, 1)
    s, t = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([1.0, 1.0, 2.0, 0.1]).double()
    move = torch.tensor([3.0, 0.0, -1.0, 0.5]).double()
    closed = move.square().sum() + (s - t).square().sum()
    assert frechet_distance(x * s, y * t + move) == pytest.approx(closed.item(), rel=1e-9)


def test_frechet_does_not_see_a_turn_of_both() -> None:
    a, b, turn = normal(60, 8, 0), 2 * normal(60, 8, 1) + 1, torch.linalg.qr(normal(8, 8, 2))[0]
    assert frechet_distance(a @ turn, b @ turn) == pytest.approx(frechet_distance(a, b), rel=1e-4)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_of_few_pictures_is_too_high() -> None:
    """The caution of its docstring: two samples of one distribution."""
    assert frechet_distance(normal(40, 32, 0), normal(40, 32, 1)) > 5 * frechet_distance(
        normal(4000, 32, 0), normal(4000, 32, 1)
    )


def test_kernel_distance_by_hand() -> None:
    a, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [1.0]])
    within_a, within_b, between = 1.0, 27.0, (27 + 8 + 1 + 1) / 4
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_is_unbiased() -> None:
    drawn = [
        kernel_distance(l2_normalize(normal(20, 8, 2 * i)), l2_normalize(normal(20, 8, 2 * i + 1)))
        for i in range(400)
    ]
    assert abs(sum(drawn) / 400) < 0.002
    assert min(drawn) < 0
    assert kernel_distance(l2_normalize(normal(50, 8)), l2_normalize(normal(50, 8, 1) + 1)) > 0.1


def test_diversity() -> None:
    assert diversity(torch.ones(5, 3)) == 0
    assert diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5)


def test_nearest_finds_copies() -> None:
    trained = normal(3000, 6)
    distance, which = nearest_neighbors(torch.cat([trained[[7, 2999]], trained[:1] + 10]), trained)
    assert which[:2].tolist() == [7, 2999]
    assert distance[:2] == pytest.approx([0, 0], abs=1e-6)
    assert distance[2] > 1


def test_clip_score() -> None:
    x = l2_normalize(normal(10, 4))
    assert clip_score(x, x) == pytest.approx(100)
    assert clip_score(x, -x) == 0


@pytest.mark.parametrize("figure", [frechet_distance, kernel_distance, lambda a, b: diversity(a)])
def test_one_row_has_no_spread(figure: object) -> None:
    with pytest.raises(ValueError, match="two rows"):
        figure(torch.ones(1, 3), torch.ones(1, 3))
