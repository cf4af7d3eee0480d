"""Residual networks (He et al. 2015) as torchvision and timm name them: ResNet-18 to 152, with or without bottlenecks.

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

DEFAULT_IMAGE_SIZE, DEFAULT_RESIZE_EDGE = (
    224,
    256,
)  # pixels, and the shorter side before the middle is cut
RESNET_CONFIGS: dict[str, ModelConfig] = {  # stages: (units, width within, width of what comes out)
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
    """relu(skip(x) + convolutions of x), each but the last followed by a relu of its own."""

    def __init__(self, convs: Sequence[nn.Module], downsample: nn.Module):
        super().__init__()
        self.convs, self.downsample, self.drop_path = (
            nn.ModuleList(convs),
            downsample,
            StochasticDepth(),
        )

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        *before, last = self.convs
        y = x
        for one in before:
            y = F.relu(one(y))
        return F.relu(self.drop_path(last(y)) + self.downsample(x))


class ResNetBackbone(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole."""

    def __init__(self, stem_channels: int, stages: Sequence[Sequence[ResNetBlock]]):
        super().__init__()
        self.stem = conv_norm(3, stem_channels, 7, 2)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        x = F.relu(self.stem(image.contiguous(memory_format=channels_last)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid_positions(cells, x.shape[-1]))


def build_block(
    in_channels: int, bottleneck_channels: int, out_channels: int, stride: int, bottleneck: bool
) -> ResNetBlock:
    """Two 3 x 3, or a 3 x 3 between two 1 x 1; the (first) 3 x 3 does the step."""
    if bottleneck:
        through = [
            conv_norm(in_channels, bottleneck_channels, 1),
            conv_norm(bottleneck_channels, bottleneck_channels, 3, stride),
            conv_norm(bottleneck_channels, out_channels, 1),
        ]
    else:
        through = [
            conv_norm(in_channels, bottleneck_channels, 3, stride),
            conv_norm(bottleneck_channels, out_channels, 3),
        ]
    plain = in_channels == out_channels and stride == 1
    return ResNetBlock(
        through, nn.Identity() if plain else conv_norm(in_channels, out_channels, 1, stride)
    )


def build_resnet(config: ModelConfig) -> tuple[ResNetBackbone, int]:
    """The network of a layout with first weights, and the width of its tokens."""
    inside, stages = config["stem"], []
    for i, (many, width, outside) in enumerate(config["stages"]):
        stage = []
        for j in range(many):
            stage.append(
                build_block(inside, width, outside, 2 if i and not j else 1, config["bottleneck"])
            )
            inside = outside
        stages.append(stage)
    return ResNetBackbone(config["stem"], stages), inside


def build_module(config: ModelConfig) -> Classifier:
    """The tower `image` and its head, with first weights."""
    embed, width = build_resnet(config)
    return Classifier(Encoder(embed), width, config["labels"])


def map_weights(config: ModelConfig) -> WeightMappings:
    """Our names and theirs."""
    inside, count, found = config["stem"], config["counted"], []
    for i, (many, _, outside) in enumerate(config["stages"]):
        for j in range(many):
            ours, theirs = f"image.encode.embed.stages.{i}.{j}", f"layer{i + 1}.{j}"
            for k in range(3 if config["bottleneck"] else 2):
                found += conv_bn(
                    f"{ours}.convolutions.{k}",
                    f"{theirs}.conv{k + 1}",
                    f"{theirs}.bn{k + 1}",
                    count,
                )
            if not j and (i or inside != outside):
                found += conv_bn(
                    f"{ours}.skip", f"{theirs}.downsample.0", f"{theirs}.downsample.1", count
                )
    head = weight_bias("head", "fc") if config["labels"] else []
    return [*conv_bn("image.encode.embed.stem", "conv1", "bn1", count), *found, *head]


def preprocessing(config: ModelConfig, weight_files: WeightFiles) -> Preprocessing:
    """Pictures as timm's config asks, else as torchvision's first weights saw them."""
    given = weight_files.config.get("pretrained_cfg", {})
    return {
        "image": timm_image_preprocessing(
            given,
            given.get("input_size", (3, DEFAULT_IMAGE_SIZE, DEFAULT_IMAGE_SIZE))[1],
            DEFAULT_RESIZE_EDGE,
            "bilinear",
        )
    }


def _detect_config(weight_files: WeightFiles) -> ModelConfig | None:
    """Neither gives sizes: they are read from the shapes."""
    shape = weight_files.tensors.get_shape
    stem, head = shape("conv1.weight"), shape("fc.weight")
    if stem is None or "layer1.0.conv1.weight" not in weight_files.tensors:
        return None
    bottleneck = "layer1.0.conv3.weight" in weight_files.tensors
    stages = []
    for i in range(
        1,
        1
        + count_layers(
            "layer", (name.replace("layer", "layer.", 1) for name in weight_files.tensors)
        ),
    ):
        width, last = (
            shape(f"layer{i}.0.conv1.weight"),
            shape(f"layer{i}.0.conv{3 if bottleneck else 2}.weight"),
        )
        assert width is not None
        assert last is not None
        stages.append((count_layers(f"layer{i}", weight_files.tensors), width[0], last[0]))
    return {
        "stem": stem[0],
        "stages": stages,
        "bottleneck": bottleneck,
        "counted": "bn1.num_batches_tracked" in weight_files.tensors,
        "labels": class_labels(weight_files.config, head[0] if head else 0),
    }


RESNET = PretrainedFamily(
    "resnet", _detect_config, build_module, map_weights, preprocessing, build_verbs
)
