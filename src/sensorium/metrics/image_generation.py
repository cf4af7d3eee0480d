"""Metrics of generated images, most of them distances between sets of feature vectors.

N, M images   E features   K tokens of a codebook
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

_CHUNK_ROWS = 1024  # rows compared with all references at a time


def frechet_distance(a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> float:
    """Return the Fréchet distance of two feature sets (FID, Heusel et al. 2017).

    It is |mean_a - mean_b|² + trace(A + B - 2 (A B)^(1/2)), the squared distance of two Gaussians
    with the means and covariances A and B of the sets. It is biased upwards for few images, the
    more so the more features there are, and covariances of fewer than E + 1 rows are singular.
    Compare sets of one size in one feature space, and report the distance between two halves of
    the real images as a reference.

    Raises:
        ValueError: If a set has fewer than two rows.
    """
    mean_a, cov_a = _mean_and_covariance(a)
    mean_b, cov_b = _mean_and_covariance(b)
    root = _matrix_square_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, distance.item())


def _mean_and_covariance(
    x: Float[Tensor, "N E"],
) -> tuple[Float[Tensor, "E"], Float[Tensor, "E E"]]:
    """Return the mean and covariance of a feature set in float64."""
    x = x.double()
    _require_two_rows(x)
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def _require_two_rows(x: Tensor) -> None:
    """Raise ValueError for a set of fewer than two rows."""
    if len(x) < 2:
        raise ValueError(f"This metric needs two rows or more, but a set has {len(x)}.")


def _matrix_square_root(matrix: Float[Tensor, "E E"]) -> Float[Tensor, "E E"]:
    """Return the symmetric square root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> float:
    """Return the kernel distance of two feature sets (KID, Bińkowski et al. 2018).

    It is the squared maximum mean discrepancy under the kernel (x y / E + 1)³. It is unbiased at
    any size: around 0, and sometimes negative, for sets of one distribution.

    Raises:
        ValueError: If a set has fewer than two rows.
    """
    a = a.double()
    b = b.double()
    _require_two_rows(a)
    _require_two_rows(b)
    within = _mean_self_kernel(a) + _mean_self_kernel(b)
    return (within - 2 * _polynomial_kernel(a, b).mean()).item()


def _mean_self_kernel(x: Tensor) -> Tensor:
    """Return the mean kernel of two different rows of a set."""
    kernel = _polynomial_kernel(x, x)
    return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))


def _polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    """Return (x y / E + 1)³ for all pairs of rows."""
    return (a @ b.T / a.shape[1] + 1) ** 3


def diversity(x: Float[Tensor, "N E"]) -> float:
    """Return the mean distance between two images of a set; 0 if all are the same.

    Raises:
        ValueError: If the set has fewer than two rows.
    """
    _require_two_rows(x)
    return (torch.cdist(x.double(), x.double()).sum() / (len(x) * (len(x) - 1))).item()


def nearest_neighbors(
    x: Float[Tensor, "N E"], references: Float[Tensor, "M E"]
) -> tuple[Float[Tensor, "N"], Int[Tensor, "N"]]:
    """Return the distance to, and the index of, each row's nearest reference.

    A small distance to a training image suggests memorization.
    """
    references = references.double()
    nearest = [torch.cdist(chunk.double(), references).min(1) for chunk in x.split(_CHUNK_ROWS)]
    distances = torch.cat([values for values, _ in nearest])
    return distances, torch.cat([indices for _, indices in nearest])


def clip_score(images: Float[Tensor, "N E"], texts: Float[Tensor, "N E"]) -> float:
    """Return 100 times the mean cosine of images and their texts, clipped at 0.

    This is CLIPScore (Hessel et al. 2021) without its factor of 2.5. It depends on the CLIP model.

    Args:
        images: Unit image embeddings.
        texts: Unit embeddings of their texts in the same space.
    """
    return 100 * (images * texts).sum(1).clamp(min=0).mean().item()


def psnr(mse: float) -> float:
    """Return the peak signal-to-noise ratio in dB of a mean squared error on the scale 0..1."""
    return -10 * math.log10(mse) if mse else math.inf


def codebook_perplexity(counts: Float[Tensor, "K"]) -> float:
    """Return the perplexity of a codebook: e to the entropy of how often each token is used."""
    share = counts.double() / counts.sum().clamp(min=1)
    return (-(share * share.clamp(min=1e-300).log()).sum()).exp().item()
