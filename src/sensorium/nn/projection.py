"""Ways from a tower's own width into the space that all towers share.

B batch   T tokens   D width of the tower   E width of the shared space
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.linear import Linear


class LinearProjection(Linear):
    """One matrix, as CLIP has it."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__(dim, out_dim, bias=False)
        nn.init.normal_(self.weight, std=dim**-0.5)


class MLPProjection(nn.Module):
    """One matrix and a correction: W x + MLP(x). The correction starts at zero, so it starts as the linear one."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.linear = LinearProjection(dim, out_dim)
        last = Linear(2 * dim, out_dim, bias=False)
        nn.init.zeros_(last.weight)
        self.mlp = nn.Sequential(Linear(dim, 2 * dim), nn.GELU(), last)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        return self.linear(x) + self.mlp(x)


class TokenAndGlobalProjection(nn.Module):
    """One matrix for the whole and another for each token, so that words can also find their part of a picture."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.global_projection, self.token_projection = (
            LinearProjection(dim, out_dim),
            LinearProjection(dim, out_dim),
        )

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        return self.global_projection(x)


PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearProjection,
    "nonlinear": MLPProjection,
    "multiscale": TokenAndGlobalProjection,
}
