"""Tests of distances between feature sets, against closed forms and identities."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

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


def standard_normal(n: int, e: int, seed: int = 0) -> torch.Tensor:
    """Return rows whose mean is exactly 0 and whose covariance is exactly the identity."""
    x = normal(n, e, seed).double()
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_equal_sets_is_zero() -> None:
    x = normal(200, 16)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x.flip(0)) == pytest.approx(0, abs=1e-9)
    few_rows = normal(5, 16)  # singular covariances
    assert frechet_distance(few_rows, few_rows) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_gaussians_equals_closed_form() -> None:
    """It is |m|² + sum (s - t)² for diagonal covariances."""
    x, y = standard_normal(100, 4, 0), standard_normal(80, 4, 1)
    s, t = torch.tensor([1.0, 2.0, 0.5, 3.0]).double(), torch.tensor([1.0, 1.0, 2.0, 0.1]).double()
    shift = torch.tensor([3.0, 0.0, -1.0, 0.5]).double()
    closed = shift.square().sum() + (s - t).square().sum()
    assert frechet_distance(x * s, y * t + shift) == pytest.approx(closed.item(), rel=1e-9)


def test_frechet_distance_is_rotation_invariant_and_symmetric() -> None:
    a, b, rotation = normal(60, 8, 0), 2 * normal(60, 8, 1) + 1, torch.linalg.qr(normal(8, 8, 2))[0]
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(
        frechet_distance(a, b), rel=1e-4
    )
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a))


def test_frechet_distance_of_few_images_is_biased_upwards() -> None:
    """Two samples of one distribution."""
    assert frechet_distance(normal(40, 32, 0), normal(40, 32, 1)) > 5 * frechet_distance(
        normal(4000, 32, 0), normal(4000, 32, 1)
    )


def test_kernel_distance_matches_hand_computation() -> None:
    a, b = torch.tensor([[1.0], [0.0]]), torch.tensor([[2.0], [1.0]])
    within_a, within_b, between = 1.0, 27.0, (27 + 8 + 1 + 1) / 4
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * between)


def test_kernel_distance_is_unbiased() -> None:
    sampled = [
        kernel_distance(l2_normalize(normal(20, 8, 2 * i)), l2_normalize(normal(20, 8, 2 * i + 1)))
        for i in range(400)
    ]
    assert abs(sum(sampled) / 400) < 0.002
    assert min(sampled) < 0
    assert kernel_distance(l2_normalize(normal(50, 8)), l2_normalize(normal(50, 8, 1) + 1)) > 0.1


def test_diversity_is_the_mean_pairwise_distance() -> None:
    assert diversity(torch.ones(5, 3)) == 0
    assert diversity(torch.tensor([[0.0, 0.0], [3.0, 4.0]])) == pytest.approx(5)


def test_nearest_neighbors_find_copies() -> None:
    references = normal(3000, 6)
    distance, index = nearest_neighbors(
        torch.cat([references[[7, 2999]], references[:1] + 10]), references
    )
    assert index[:2].tolist() == [7, 2999]
    assert distance[:2] == pytest.approx([0, 0], abs=1e-6)
    assert distance[2] > 1


def test_clip_score_of_equal_and_opposite_vectors() -> None:
    x = l2_normalize(normal(10, 4))
    assert clip_score(x, x) == pytest.approx(100)
    assert clip_score(x, -x) == 0


@pytest.mark.parametrize("metric", [frechet_distance, kernel_distance, lambda a, b: diversity(a)])
def test_one_row_is_an_error(metric: Callable[[Tensor, Tensor], float]) -> None:
    with pytest.raises(ValueError, match="two rows or more"):
        metric(torch.ones(1, 3), torch.ones(1, 3))
