"""EfficientNet-Lite0 (Google 2020, after Tan and Le 2019), in the names of the package efficientnet-lite-pytorch.

B batch   C channels   H height   W width   D width of a token
"""

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

STAGE_SPECS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # of each: blocks, kernel, stride, expansion, width
STEM_CHANNELS, HEAD_CHANNELS = 32, 1280
DEFAULT_IMAGE = Image(
    size=224, shortest_edge=256, resample="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
)


class SamePaddingConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow pads: what is odd is added behind."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:])
        return super().forward(
            F.pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2))
        )


def build_conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """A convolution and the norm of its batch."""
    return nn.Sequential(
        SamePaddingConv2d(
            in_channels, out_channels, kernel_size, stride, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels, eps=1e-3, momentum=0.01),
    )


class InvertedResidual(nn.Module):
    """Wider, one convolution a channel, narrower; relu6 after each but the last; plus x where the shape stays."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int, expansion: int
    ):
        super().__init__()
        wide = in_channels * expansion
        self.convs = nn.ModuleList([] if expansion == 1 else [build_conv_bn(in_channels, wide, 1)])
        self.convs += [
            build_conv_bn(wide, wide, kernel_size, stride, wide),
            build_conv_bn(wide, out_channels, 1),
        ]
        self.has_residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        *before, last = self.convs
        y = x
        for one in before:
            y = F.relu6(one(y))
        return last(y) + x if self.has_residual else last(y)


class EfficientNetLite(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, inside, blocks = build_conv_bn(3, STEM_CHANNELS, 3, 2), STEM_CHANNELS, []
        for many, kernel, stride, expansion, width in STAGE_SPECS:
            for i in range(many):
                blocks.append(
                    InvertedResidual(inside, width, kernel, 1 if i else stride, expansion)
                )
                inside = width
        self.blocks, self.conv_head = (
            nn.Sequential(*blocks),
            build_conv_bn(inside, HEAD_CHANNELS, 1),
        )

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        x = F.relu6(self.conv_stem(image.contiguous(memory_format=channels_last)))
        x = F.relu6(self.conv_head(self.blocks(x)))
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid_positions(cells, x.shape[-1]))


def build_module(config: ModelConfig) -> Classifier:
    """The tower `image` and its head, with first weights."""
    return Classifier(Encoder(EfficientNetLite()), HEAD_CHANNELS, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    ours, found, i = "image.encode.embed", [], 0
    for many, _, _, expansion, _ in STAGE_SPECS:
        for _ in range(many):
            parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            parts = parts if expansion == 1 else [("_expand_conv", "_bn0"), *parts]
            for k, (kernel, norm) in enumerate(parts):
                found += conv_bn(
                    f"{ours}.blocks.{i}.convolutions.{k}",
                    f"_blocks.{i}.{kernel}",
                    f"_blocks.{i}.{norm}",
                )
            i += 1
    return [
        *conv_bn(f"{ours}.stem", "_conv_stem", "_bn0"),
        *found,
        *conv_bn(f"{ours}.top", "_conv_head", "_bn1"),
        *weight_bias("head", "_fc"),
    ]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """224 pixels of -1 to 1, the middle of a picture."""
    return {"image": DEFAULT_IMAGE}


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    head = weight_files.tensors.get_shape("_fc.weight")
    lite = (
        "_conv_stem.weight" in weight_files.tensors
        and "_blocks.0._se_reduce.weight" not in weight_files.tensors
    )
    return {"labels": class_labels(weight_files.config, head[0])} if lite and head else None


EFFICIENTNET = PretrainedFamily(
    "efficientnet_lite0", _detect_config, build_module, map_weights, preprocessing, build_verbs
)
