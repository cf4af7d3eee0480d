"""A residual convolutional network that reads small pictures quickly: He et al. 2015, with one width a stage.

    B batch   C channels   H height   W width   T tokens   D width of a token
"""
from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.depth import StochasticDepth
from sensorium.kernels import drawn
from sensorium.tokens import Tokens, grid


def convolution(inside: int, outside: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """A convolution and the norm of its batch."""
    convolution = nn.Conv2d(inside, outside, kernel, stride, (kernel - 1) // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outside))


class Residual(nn.Module):
    """relu(x + two convolutions of x). The second norm starts at zero: a new block changes nothing but the scale."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.first, self.second = convolution(inside, outside, 3, stride), convolution(outside, outside, 3)
        nn.init.zeros_(self.second.get_parameter("1.weight"))
        self.deep = StochasticDepth()
        plain = inside == outside and stride == 1
        self.skip = nn.Identity() if plain else nn.Sequential(nn.AvgPool2d(stride, ceil_mode=True),
                                                               convolution(inside, outside, 1))

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        return F.relu(self.skip(x) + self.deep(self.second(F.relu(self.first(x)))))


class Plain(nn.Module):
    """Two convolutions, one on the other, each with a relu: a block without a way around it."""

    def __init__(self, inside: int, outside: int, stride: int):
        super().__init__()
        self.first, self.second = convolution(inside, outside, 3, stride), convolution(outside, outside, 3)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        return F.relu(self.second(F.relu(self.first(x))))


class ResNet(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole.

    A stem divides the side by `stem`; three stages of `blocks` follow, `dim`/4, `dim`/2 and `dim` wide, of which the
    last two halve it. With the `size` of pictures, each cell is given a learned vector for its place.
    block: Residual, or Plain.
    """

    def __init__(self, dim: int, blocks: int = 1, dropout: float = 0.0, *, size: int = 0, stem: int = 2,
                 block: Callable[[int, int, int], nn.Module] = Residual):
        super().__init__()
        if dim % 4:
            raise ValueError(f"a residual network doubles its width twice: {dim} is no multiple of 4")
        widths = (dim // 4, dim // 2, dim)
        self.stem = nn.Sequential(convolution(3, widths[0], 2 * stem, stem), nn.ReLU())
        inside, layers = widths[0], []
        for stage, width in enumerate(widths):
            for i in range(blocks):
                layers.append(block(inside, width, 2 if stage and not i else 1))
                inside = width
        self.stages, self.drop = nn.Sequential(*layers), nn.Dropout(dropout)
        self.places = drawn((size // (4 * stem)) ** 2, dim, std=0.02) if size else None

    def summary(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        cells = self.stages(self.stem(image.contiguous(memory_format=channels_last)))
        x = self.drop(rearrange(cells, "b d h w -> b (h w) d"))
        x = x if self.places is None else x + self.places.to(x.dtype)
        return Tokens(x, grid(x, cells.shape[-1]))
