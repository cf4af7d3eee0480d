"""Ways from a tower's own width into the space that all towers share.

    B batch   T tokens   D width of the tower   E width of the shared space
"""
from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor, nn

from sensorium.kernels import Linear


class LinearAlign(Linear):
    """One matrix, as CLIP has it."""

    def __init__(self, dim: int, out: int):
        super().__init__(dim, out, bias=False)
        nn.init.normal_(self.weight, std=dim ** -0.5)


class NonlinearAlign(nn.Module):
    """One matrix and a correction: W x + MLP(x). The correction starts at zero, so it starts as the linear one."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.straight = LinearAlign(dim, out)
        last = Linear(2 * dim, out, bias=False)
        nn.init.zeros_(last.weight)
        self.bend = nn.Sequential(Linear(dim, 2 * dim), nn.GELU(), last)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        return self.straight(x) + self.bend(x)


class MultiscaleAlign(nn.Module):
    """One matrix for the whole and another for each token, so that words can also find their part of a picture."""

    def __init__(self, dim: int, out: int):
        super().__init__()
        self.whole, self.part = LinearAlign(dim, out), LinearAlign(dim, out)

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows E"]:
        return self.whole(x)


ALIGNS: dict[str, Callable[[int, int], nn.Module]] = {
    "linear": LinearAlign, "nonlinear": NonlinearAlign, "multiscale": MultiscaleAlign}
