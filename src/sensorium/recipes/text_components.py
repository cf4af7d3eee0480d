"""Principal components of sparse features, by randomized subspace iteration.

B rows   F features   R components
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.nn.sparse import SparseRows

NUM_ITERATIONS = 2  # of the subspace iteration (Halko et al. 2011)
OVERSAMPLING = 8


def principal_components(
    rows: SparseRows, num_features: int, num_components: int
) -> Float[Tensor, "F R"]:
    """Return the right singular vectors of the largest singular values; zeros for those lacking.

    Args:
        rows: The rows, which are not centered.
        num_features: F.
        num_components: R.
    """
    components = torch.zeros(num_features, num_components)
    size = min(num_components + OVERSAMPLING, rows.rows, num_features)
    if not size:
        return components
    transposed = rows.transposed(num_features)
    basis = torch.randn(num_features, size, generator=torch.Generator().manual_seed(0))
    for _ in range(NUM_ITERATIONS + 1):
        basis = torch.linalg.qr(transposed.matmul(rows.matmul(basis))).Q
    _, _, directions = torch.linalg.svd(rows.matmul(basis), full_matrices=False)
    found = (basis @ directions.T)[:, :num_components]
    components[:, : found.shape[1]] = found
    return components
