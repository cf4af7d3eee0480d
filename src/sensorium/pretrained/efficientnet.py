"""EfficientNet-Lite0 (Google 2020, after Tan and Le 2019), named as in efficientnet-lite-pytorch.

B batch   C channels   H height   W width   D width of a token
"""

from typing import NamedTuple

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.modalities.image import Image
from sensorium.models.towers import Encoder
from sensorium.nn.tokens import Tokens, grid_positions
from sensorium.pretrained.classifier import Classifier, build_verbs, class_labels
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings, conv_bn, weight_bias


class StageSpec(NamedTuple):
    """The blocks of one stage; the first of them has the stride."""

    num_blocks: int
    kernel_size: int
    stride: int
    expansion: int
    out_channels: int


STAGE_SPECS = (
    StageSpec(1, 3, 1, 1, 16),
    StageSpec(2, 3, 2, 6, 24),
    StageSpec(2, 5, 2, 6, 40),
    StageSpec(3, 3, 2, 6, 80),
    StageSpec(3, 5, 1, 6, 112),
    StageSpec(4, 5, 2, 6, 192),
    StageSpec(1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
DEFAULT_IMAGE = Image(
    size=224, shortest_edge=256, resample="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


class SamePaddingConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: an odd pixel is added at the end."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Pad and convolve."""
        kernel_size, stride = self.kernel_size[0], self.stride[0]
        pad_h, pad_w = (
            max((-(-size // stride) - 1) * stride + kernel_size - size, 0)
            for size in input.shape[-2:]
        )
        padding = (pad_w // 2, pad_w - pad_w // 2, pad_h // 2, pad_h - pad_h // 2)
        return super().forward(F.pad(input, padding))


def build_conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Build a convolution with its batch norm."""
    return nn.Sequential(
        SamePaddingConv2d(
            in_channels, out_channels, kernel_size, stride, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    )


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution and projection, with a residual if the shape stays the same.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Kernel of the depthwise convolution.
        stride: Its stride.
        expansion: Ratio of the inner to the input channels; 1: there is no expansion layer.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ):
        super().__init__()
        inner_channels = in_channels * expansion
        self.convs = nn.ModuleList()
        if expansion != 1:
            self.convs.append(build_conv_bn(in_channels, inner_channels, 1))
        self.convs += [
            build_conv_bn(inner_channels, inner_channels, kernel_size, stride, inner_channels),
            build_conv_bn(inner_channels, out_channels, 1),
        ]
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Apply the block; relu6 follows each convolution but the last."""
        *inner_convs, last_conv = self.convs
        y = x
        for conv in inner_convs:
            y = F.relu6(conv(y))
        return last_conv(y) + x if self.has_residual else last_conv(y)


class EfficientNetLite(nn.Module):
    """EfficientNet-Lite0 without its head: one token for each cell of the last feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem = build_conv_bn(3, STEM_CHANNELS, 3, 2)
        in_channels = STEM_CHANNELS
        blocks: list[InvertedResidual] = []
        for spec in STAGE_SPECS:
            for i in range(spec.num_blocks):
                stride = spec.stride if i == 0 else 1
                block = InvertedResidual(
                    in_channels, spec.out_channels, spec.kernel_size, stride, spec.expansion
                )
                blocks.append(block)
                in_channels = spec.out_channels
        self.blocks = nn.Sequential(*blocks)
        self.conv_head = build_conv_bn(in_channels, HEAD_CHANNELS, 1)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        """Return None: the image is pooled over all cells."""

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return the cells of the last feature map, row by row."""
        x = F.relu6(self.conv_stem(image.contiguous(memory_format=channels_last)))
        x = F.relu6(self.conv_head(self.blocks(x)))
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid_positions(cells, x.shape[-1]))


def build_module(config: ModelConfig) -> Classifier:
    """Build the tower `image` and its head."""
    return Classifier(Encoder(EfficientNetLite()), HEAD_CHANNELS, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:  # noqa: ARG001 - as in PretrainedFamily
    """Map the names of efficientnet-lite-pytorch to ours."""
    embed = "image.encoder.embed"
    expansions = [spec.expansion for spec in STAGE_SPECS for _ in range(spec.num_blocks)]
    blocks: WeightMappings = []
    for i, expansion in enumerate(expansions):
        layers = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if expansion != 1:
            layers = [("_expand_conv", "_bn0"), *layers]
        for k, (conv, norm) in enumerate(layers):
            target = f"{embed}.blocks.{i}.convs.{k}"
            blocks += conv_bn(target, f"_blocks.{i}.{conv}", f"_blocks.{i}.{norm}")
    return [
        *conv_bn(f"{embed}.conv_stem", "_conv_stem", "_bn0"),
        *blocks,
        *conv_bn(f"{embed}.conv_head", "_conv_head", "_bn1"),
        *weight_bias("head", "_fc"),
    ]


def preprocessing(
    config: ModelConfig,  # noqa: ARG001 - as in PretrainedFamily
    weight_files: WeightFiles,  # noqa: ARG001 - as in PretrainedFamily
) -> Preprocessing:
    """Return the image settings of the training data: center crops of 224 pixels, from -1 to 1."""
    return {"image": DEFAULT_IMAGE}


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    head = weight_files.tensors.get_shape("_fc.weight")
    # Lite models have no squeeze-and-excitation.
    is_lite = (
        "_conv_stem.weight" in weight_files.tensors
        and "_blocks.0._se_reduce.weight" not in weight_files.tensors
    )
    return {"labels": class_labels(weight_files.config, head[0])} if is_lite and head else None


EFFICIENTNET = PretrainedFamily(
    "efficientnet_lite0", _detect_config, build_module, map_weights, preprocessing, build_verbs
)
