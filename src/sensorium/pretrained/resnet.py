"""ResNet-18 to 152 (He et al. 2015), in the names of torchvision and timm.

B batch   C channels   H height   W width   D width of a token
"""

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.models.towers import Encoder
from sensorium.nn.resnet import conv_norm
from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.tokens import Tokens, grid_positions
from sensorium.pretrained.classifier import (
    Classifier,
    build_verbs,
    class_labels,
    timm_image_preprocessing,
)
from sensorium.pretrained.family import ModelConfig, Preprocessing, PretrainedFamily
from sensorium.pretrained.vit import count_layers
from sensorium.pretrained.weight_files import WeightFiles
from sensorium.pretrained.weight_mapping import WeightMappings, conv_bn, weight_bias

DEFAULT_IMAGE_SIZE = 224  # pixels
DEFAULT_RESIZE_EDGE = 256  # pixels of the shorter side before the center is cropped
RESNET_CONFIGS: dict[str, ModelConfig] = {  # stages: (blocks, bottleneck channels, out channels)
    "resnet18": {
        "stem": 64,
        "bottleneck": False,
        "stages": [(2, 64, 64), (2, 128, 128), (2, 256, 256), (2, 512, 512)],
    },
    "resnet50": {
        "stem": 64,
        "bottleneck": True,
        "stages": [(3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048)],
    },
}


class ResNetBlock(nn.Module):
    """A residual block: relu(downsample(x) + convs(x)), with a relu between the convolutions.

    Args:
        convs: Convolutions, each with its batch norm.
        downsample: Makes x the shape of the output.
    """

    def __init__(self, convs: Sequence[nn.Module], downsample: nn.Module):
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.downsample = downsample
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        """Apply the block."""
        *inner_convs, last_conv = self.convs
        y = x
        for conv in inner_convs:
            y = F.relu(conv(y))
        return F.relu(self.drop_path(last_conv(y)) + self.downsample(x))


class ResNetBackbone(nn.Module):
    """A ResNet without its head: one token for each cell of the last feature map.

    Args:
        stem_channels: Channels of the first convolution.
        stages: The blocks of each stage.
    """

    def __init__(self, stem_channels: int, stages: Sequence[Sequence[ResNetBlock]]):
        super().__init__()
        self.stem = conv_norm(3, stem_channels, 7, 2)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        """Return None: the image is pooled over all cells."""

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return the cells of the last feature map, row by row."""
        x = F.relu(self.stem(image.contiguous(memory_format=channels_last)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid_positions(cells, x.shape[-1]))


def build_block(
    in_channels: int, bottleneck_channels: int, out_channels: int, stride: int, bottleneck: bool
) -> ResNetBlock:
    """Build a residual block.

    Args:
        in_channels: Channels of the input.
        bottleneck_channels: Channels inside the block.
        out_channels: Channels of the output.
        stride: Stride of the block's first 3x3 convolution.
        bottleneck: Whether it is a 3x3 between two 1x1 convolutions, not two 3x3 convolutions.
    """
    if bottleneck:
        convs = [
            conv_norm(in_channels, bottleneck_channels, 1),
            conv_norm(bottleneck_channels, bottleneck_channels, 3, stride),
            conv_norm(bottleneck_channels, out_channels, 1),
        ]
    else:
        convs = [
            conv_norm(in_channels, bottleneck_channels, 3, stride),
            conv_norm(bottleneck_channels, out_channels, 3),
        ]
    if in_channels == out_channels and stride == 1:
        return ResNetBlock(convs, nn.Identity())
    return ResNetBlock(convs, conv_norm(in_channels, out_channels, 1, stride))


def build_resnet(config: ModelConfig) -> tuple[ResNetBackbone, int]:
    """Build the network of a config.

    Args:
        config: "stem", "bottleneck" and "stages", as in RESNET_CONFIGS.

    Returns:
        The network and the width of its tokens.
    """
    in_channels: int = config["stem"]
    stages: list[list[ResNetBlock]] = []
    for i, (num_blocks, bottleneck_channels, out_channels) in enumerate(config["stages"]):
        stage: list[ResNetBlock] = []
        for j in range(num_blocks):
            stride = 2 if i > 0 and j == 0 else 1
            block = build_block(
                in_channels, bottleneck_channels, out_channels, stride, config["bottleneck"]
            )
            stage.append(block)
            in_channels = out_channels
        stages.append(stage)
    return ResNetBackbone(config["stem"], stages), in_channels


def build_module(config: ModelConfig) -> Classifier:
    """Build the tower `image`, and the head if there is one."""
    backbone, width = build_resnet(config)
    return Classifier(Encoder(backbone), width, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:
    """Map torchvision's and timm's names to ours."""
    has_batch_count = config["has_batch_count"]
    num_convs = 3 if config["bottleneck"] else 2
    mappings = conv_bn("image.encoder.embed.stem", "conv1", "bn1", has_batch_count)
    in_channels = config["stem"]
    for i, (num_blocks, _, out_channels) in enumerate(config["stages"]):
        for j in range(num_blocks):
            target, source = f"image.encoder.embed.stages.{i}.{j}", f"layer{i + 1}.{j}"
            for k in range(num_convs):
                conv, norm = f"{source}.conv{k + 1}", f"{source}.bn{k + 1}"
                mappings += conv_bn(f"{target}.convs.{k}", conv, norm, has_batch_count)
            if j == 0 and (i > 0 or in_channels != out_channels):
                conv, norm = f"{source}.downsample.0", f"{source}.downsample.1"
                mappings += conv_bn(f"{target}.downsample", conv, norm, has_batch_count)
    head = weight_bias("head", "fc") if config["labels"] else []
    return [*mappings, *head]


def preprocessing(
    config: ModelConfig,  # noqa: ARG001 - as in PretrainedFamily
    weight_files: WeightFiles,
) -> Preprocessing:
    """Return the image settings of timm's config, or those of torchvision's first weights."""
    pretrained_cfg = weight_files.config.get("pretrained_cfg", {})
    default_input_size = (3, DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE)
    image_size = pretrained_cfg.get("input_size", default_input_size)[1]
    image = timm_image_preprocessing(pretrained_cfg, image_size, DEFAULT_RESIZE_EDGE, "bilinear")
    return {"image": image}


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Derive the sizes, which neither library stores, from the shapes."""
    tensors = weight_files.tensors
    stem, head = tensors.get_shape("conv1.weight"), tensors.get_shape("fc.weight")
    if stem is None or "layer1.0.conv1.weight" not in tensors:
        return None
    bottleneck = "layer1.0.conv3.weight" in tensors
    last_conv = "conv3" if bottleneck else "conv2"
    num_stages = count_layers("layer", (name.replace("layer", "layer.", 1) for name in tensors))
    stages: list[tuple[int, int, int]] = []
    for i in range(1, 1 + num_stages):
        first = tensors.get_shape(f"layer{i}.0.conv1.weight")
        last = tensors.get_shape(f"layer{i}.0.{last_conv}.weight")
        if first is None or last is None:
            return None
        stages.append((count_layers(f"layer{i}", tensors), first[0], last[0]))
    return {
        "stem": stem[0],
        "stages": stages,
        "bottleneck": bottleneck,
        "has_batch_count": "bn1.num_batches_tracked" in tensors,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


RESNET = PretrainedFamily(
    "resnet", _detect_config, build_module, map_weights, preprocessing, build_verbs
)
