"""Projections from the width of an encoder into the shared embedding space.

B batch   T tokens   D width of the encoder   E width of the shared space
"""

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from sensorium.nn.linear import Linear


class LinearProjection(Linear):
    """A linear layer without bias, as in CLIP (Radford et al. 2021).

    Args:
        dim: Width of the encoder.
        out_dim: Width of the shared space.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__(dim, out_dim, bias=False)  # pyright: ignore[reportUnknownMemberType]
        nn.init.normal_(self.weight, std=dim**-0.5)


class MLPProjection(nn.Module):
    """A linear projection plus an MLP, W x + MLP(x); the MLP starts at zero.

    Args:
        dim: Width of the encoder.
        out_dim: Width of the shared space.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.linear = LinearProjection(dim, out_dim)
        last = Linear(2 * dim, out_dim, bias=False)
        nn.init.zeros_(last.weight)
        self.mlp = nn.Sequential(Linear(dim, 2 * dim), nn.GELU(), last)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        """Project features."""
        return self.linear(x) + self.mlp(x)


class TokenAndGlobalProjection(nn.Module):
    """One linear projection for the pooled embedding and another for tokens.

    With projected tokens, words can be matched with regions of an image.

    Args:
        dim: Width of the encoder.
        out_dim: Width of the shared space.
    """

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.global_projection = LinearProjection(dim, out_dim)
        self.token_projection = LinearProjection(dim, out_dim)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        """Project the pooled embedding."""
        return self.global_projection(x)


PROJECTIONS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearProjection,
    "nonlinear": MLPProjection,
    "multiscale": TokenAndGlobalProjection,
}
"""Projections by the name that recipes use."""
