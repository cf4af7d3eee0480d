"""How good are generated pictures? Distances between sets of feature vectors; a report says of which features.

N, M pictures   E features
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

_CHUNK_ROWS = 1024  # rows compared with all others at a time


def frechet_distance(a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> float:
    """Squared Fréchet distance of two Gaussians with the means and covariances of two sets (FID, Heusel et al. 2017).

    |mean_a - mean_b|^2 + trace(A + B - 2 (A B)^(1/2)), 0 for equal sets. From few pictures it is too high, the more so
    the more features there are; covariances of fewer than E + 1 rows are singular. Compare sets of one size only, in
    one feature space, and put the distance between two halves of the real pictures beside it.
    """
    (mean_a, cov_a), (mean_b, cov_b) = _mean_and_covariance(a), _mean_and_covariance(b)
    root = _matrix_square_root(cov_a)
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    return max(
        0.0, ((mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross).item()
    )


def _mean_and_covariance(
    x: Float[Tensor, "N E"],
) -> tuple[Float[Tensor, "E"], Float[Tensor, "E E"]]:
    x = x.double()
    if len(x) < 2:
        raise ValueError("a spread needs two rows or more")
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def _matrix_square_root(matrix: Float[Tensor, "E E"]) -> Float[Tensor, "E E"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def kernel_distance(a: Float[Tensor, "N E"], b: Float[Tensor, "M E"]) -> float:
    """Squared maximum mean discrepancy under the kernel (x y / E + 1)^3 (KID, Bińkowski et al. 2018).

    Unbiased at any size, so around 0, and at times below it, for sets of one distribution.
    """
    a, b = a.double(), b.double()
    if min(len(a), len(b)) < 2:
        raise ValueError("a spread needs two rows or more")

    def within(x: Tensor) -> Tensor:
        kernel = _polynomial_kernel(x, x)
        return (kernel.sum() - kernel.trace()) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * _polynomial_kernel(a, b).mean()).item()


def _polynomial_kernel(a: Tensor, b: Tensor) -> Tensor:
    return (a @ b.T / a.shape[1] + 1) ** 3


def diversity(x: Float[Tensor, "N E"]) -> float:
    """Mean distance between two pictures of a set; 0 where all are the same."""
    if len(x) < 2:
        raise ValueError("a distance needs two rows or more")
    return (torch.cdist(x.double(), x.double()).sum() / (len(x) * (len(x) - 1))).item()


def nearest_neighbors(
    x: Float[Tensor, "N E"], references: Float[Tensor, "M E"]
) -> tuple[Tensor, Tensor]:
    """(distance to, number of) the nearest of the others, for each row: how near is a picture to one trained on?"""
    references = references.double()
    found = [torch.cdist(part.double(), references).min(1) for part in x.split(_CHUNK_ROWS)]
    return torch.cat([values for values, _ in found]), torch.cat([places for _, places in found])


def clip_score(images: Float[Tensor, "N E"], texts: Float[Tensor, "N E"]) -> float:
    """100 times the mean cosine between pictures and their texts, unit vectors of one space, negative ones as 0.

    CLIPScore (Hessel et al. 2021) without its factor of 2.5. It depends on the CLIP that embeds.
    """
    return 100 * (images * texts).sum(1).clamp(min=0).mean().item()


def psnr(mse: float) -> float:
    """Peak signal to noise ratio in dB, of a mean squared error on a scale of 0..1."""
    return -10 * math.log10(mse) if mse else math.inf


def codebook_perplexity(counts: Float[Tensor, "K"]) -> float:
    """How many codes, used equally, would be as varied as these counts: e to the entropy."""
    share = counts.double() / counts.sum().clamp(min=1)
    return (-(share * share.clamp(min=1e-300).log()).sum()).exp().item()
