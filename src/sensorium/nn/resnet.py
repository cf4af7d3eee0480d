"""A small residual convolutional network for images (He et al. 2015), with one width per stage.

B batch   C channels   H height   W width   T tokens   D width of a token   E output channels
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
    """Return a convolution without bias, followed by batch normalization."""
    convolution = nn.Conv2d(
        in_channels, out_channels, kernel_size, stride, (kernel_size - 1) // 2, bias=False
    )
    return nn.Sequential(convolution, nn.BatchNorm2d(out_channels))


class BasicBlock(nn.Module):
    """A basic residual block: relu(shortcut(x) + two convolutions of x).

    The second batch norm starts at zero, so that a new block is the identity up to scale.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2 = conv_norm(out_channels, out_channels, 3)
        nn.init.zeros_(self.conv2.get_parameter("1.weight"))
        self.drop_path = StochasticDepth()
        if in_channels == out_channels and stride == 1:
            self.shortcut = nn.Identity()
        else:
            self.shortcut = nn.Sequential(
                nn.AvgPool2d(stride, ceil_mode=True), conv_norm(in_channels, out_channels, 1)
            )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Return the block's feature map."""
        return F.relu(self.shortcut(x) + self.drop_path(self.conv2(F.relu(self.conv1(x)))))


class PlainBlock(nn.Module):
    """Two convolutions, each followed by a ReLU, without a shortcut.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        stride: Stride of the first convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv1 = conv_norm(in_channels, out_channels, 3, stride)
        self.conv2 = conv_norm(out_channels, out_channels, 3)

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Return the block's feature map."""
        return F.relu(self.conv2(F.relu(self.conv1(x))))


class ResNet(nn.Module):
    """A residual network from images to tokens, one for each cell of the last feature map.

    A stem divides the image size by `stem_stride`. Three stages of width `dim`/4, `dim`/2 and
    `dim` follow, of which the last two halve it.

    Args:
        dim: Width of the tokens, a multiple of 4.
        blocks_per_stage: Blocks in each stage.
        dropout: Dropout on the tokens.
        image_size: Image size in pixels, for a learned position embedding; 0 for none.
        stem_stride: Stride of the stem.
        block: Residual block: (input channels, output channels, stride) → module.

    Raises:
        ValueError: `dim` is no multiple of 4.
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
                f"dim={dim} is no multiple of 4. A residual network doubles its width twice."
            )
        widths = (dim // 4, dim // 2, dim)
        self.stem = nn.Sequential(conv_norm(3, widths[0], 2 * stem_stride, stem_stride), nn.ReLU())
        in_channels = widths[0]
        layers: list[nn.Module] = []
        for stage, width in enumerate(widths):
            for i in range(blocks_per_stage):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(block(in_channels, width, stride))
                in_channels = width
        self.stages = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        self.pos_embed: nn.Parameter | None = None
        if image_size:
            num_cells = (image_size // (4 * stem_stride)) ** 2
            self.pos_embed = normal_parameter(num_cells, dim, std=0.02)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:  # noqa: ARG002 - interface of an embedding
        """Return None: the pooled embedding is the mean over all tokens."""
        return

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return a token for each cell of the last feature map."""
        cells = self.stages(self.stem(image.contiguous(memory_format=channels_last)))
        x = self.dropout(rearrange(cells, "b d h w -> b (h w) d"))
        if self.pos_embed is not None:
            x = x + self.pos_embed.to(x.dtype)
        return Tokens(x, grid_positions(x, cells.shape[-1]))
