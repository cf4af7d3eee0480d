"""A residual convolutional network that reads small pictures quickly: He et al. 2015, with one width a stage.

B batch   C channels   H height   W width   T tokens   D width of a token
"""

from collections.abc import Callable

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.nn.linear import normal_parameter
from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, grid_positions


def conv_norm(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
) -> nn.Sequential:
    """A convolution and the norm of its batch."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """relu(x + two convolutions of x). The second norm starts at zero: a new block changes nothing but the scale."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1, self.conv2 = (
            conv_norm(in_channels, out_channels, 3, stride),
            conv_norm(out_channels, out_channels, 3),
        )
        nn.init.zeros_(self.conv2.get_parameter("1.weight"))
        self.drop_path = StochasticDepth()
        plain = in_channels == out_channels and stride == 1
        self.shortcut = (
            nn.Identity()
            if plain
            else nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), conv_norm(in_channels, out_channels, 1)
            )
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        return F.relu(self.shortcut(x) + self.drop_path(self.conv2(F.relu(self.conv1(x)))))


class PlainBlock(nn.Module):
    """Two convolutions, one on the other, each with a relu: a block without a way around it."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1, self.conv2 = (
            conv_norm(in_channels, out_channels, 3, stride),
            conv_norm(out_channels, out_channels, 3),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class ResNet(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole.

    A stem divides the side by `stem`; three stages of `blocks` follow, `dim`/4, `dim`/2 and `dim` wide, of which the
    last two halve it. With the `size` of pictures, each cell is given a learned vector for its place.
    block: Residual, or Plain.
    """

    def __init__(
        self,
        dim: int,
        blocks_per_stage: int = 1,
        dropout: float = 0.0,
        *,
        image_size: int = 0,
        stem_stride: int = 2,
        block: Callable[[int, int, int], nn.Module] = BasicBlock,
    ):
        super().__init__()
        if dim % 4:
            raise ValueError(
                f"a residual network doubles its width twice: {dim} is no multiple of 4"
            )
        widths = (dim // 4, dim // 2, dim)
        self.stem = nn.Sequential(conv_norm(3, widths[0], 2 * stem_stride, stem_stride), nn.ReLU())
        inside, layers = widths[0], []
        for stage, width in enumerate(widths):
            for i in range(blocks_per_stage):
                layers.append(block(inside, width, 2 if stage and not i else 1))
                inside = width
        self.stages, self.dropout = nn.Sequential(*layers), nn.Dropout(dropout)
        self.pos_embed = (
            normal_parameter((image_size // (4 * stem_stride)) ** 2, dim, std=0.02)
            if image_size
            else None
        )

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        cells = self.stages(self.stem(image.contiguous(memory_format=channels_last)))
        x = self.dropout(rearrange(cells, "b d h w -> b (h w) d"))
        x = x if self.pos_embed is None else x + self.pos_embed.to(x.dtype)
        return Tokens(x, grid_positions(x, cells.shape[-1]))
