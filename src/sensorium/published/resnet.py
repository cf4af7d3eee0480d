"""Residual networks (He et al. 2015) as torchvision and timm name them: ResNet-18 to 152, with or without bottlenecks.

    B batch   C channels   H height   W width   D width of a token
"""
from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.depth import StochasticDepth
from sensorium.modalities.resnet import convolution
from sensorium.models import Encoder
from sensorium.published.classifier import Classifier, labels, timm_picture, verbs
from sensorium.published.files import Opened
from sensorium.published.parts import Names, affine, normed
from sensorium.published.published import Config, Published, Senses
from sensorium.published.vit import depth
from sensorium.tokens import Tokens, grid

SIZE, EDGE = 224, 256                                   # pixels, and the shorter side before the middle is cut
LAYOUTS: dict[str, Config] = {                          # stages: (units, width within, width of what comes out)
    "resnet18": {"stem": 64, "bottleneck": False, "stages": [(2, 64, 64), (2, 128, 128), (2, 256, 256), (2, 512, 512)]},
    "resnet50": {"stem": 64, "bottleneck": True,
                 "stages": [(3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048)]}}


class Unit(nn.Module):
    """relu(skip(x) + convolutions of x), each but the last followed by a relu of its own."""

    def __init__(self, convolutions: Sequence[nn.Module], skip: nn.Module):
        super().__init__()
        self.convolutions, self.skip, self.deep = nn.ModuleList(convolutions), skip, StochasticDepth()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        *before, last = self.convolutions
        y = x
        for one in before:
            y = F.relu(one(y))
        return F.relu(self.deep(last(y)) + self.skip(x))


class Residuals(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole."""

    def __init__(self, stem: int, stages: Sequence[Sequence[Unit]]):
        super().__init__()
        self.stem = convolution(3, stem, 7, 2)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)

    def summary(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        x = F.relu(self.stem(image.contiguous(memory_format=channels_last)))
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in self.stages:
            x = stage(x)
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid(cells, x.shape[-1]))


def unit(inside: int, width: int, outside: int, stride: int, bottleneck: bool) -> Unit:
    """Two 3 x 3, or a 3 x 3 between two 1 x 1; the (first) 3 x 3 does the step."""
    if bottleneck:
        through = [convolution(inside, width, 1), convolution(width, width, 3, stride), convolution(width, outside, 1)]
    else:
        through = [convolution(inside, width, 3, stride), convolution(width, outside, 3)]
    plain = inside == outside and stride == 1
    return Unit(through, nn.Identity() if plain else convolution(inside, outside, 1, stride))


def residuals(config: Config) -> tuple[Residuals, int]:
    """The network of a layout with first weights, and the width of its tokens."""
    inside, stages = config["stem"], []
    for i, (many, width, outside) in enumerate(config["stages"]):
        stage = []
        for j in range(many):
            stage.append(unit(inside, width, outside, 2 if i and not j else 1, config["bottleneck"]))
            inside = outside
        stages.append(stage)
    return Residuals(config["stem"], stages), inside


def build(config: Config) -> Classifier:
    """The tower `image` and its head, with first weights."""
    embed, width = residuals(config)
    return Classifier(Encoder(embed), width, config["labels"])


def names(config: Config) -> Names:
    """Our names and theirs."""
    inside, count, found = config["stem"], config["counted"], []
    for i, (many, _, outside) in enumerate(config["stages"]):
        for j in range(many):
            ours, theirs = f"image.encode.embed.stages.{i}.{j}", f"layer{i + 1}.{j}"
            for k in range(3 if config["bottleneck"] else 2):
                found += normed(f"{ours}.convolutions.{k}", f"{theirs}.conv{k + 1}", f"{theirs}.bn{k + 1}", count)
            if not j and (i or inside != outside):
                found += normed(f"{ours}.skip", f"{theirs}.downsample.0", f"{theirs}.downsample.1", count)
    head = affine("head", "fc") if config["labels"] else []
    return [*normed("image.encode.embed.stem", "conv1", "bn1", count), *found, *head]


def senses(config: Config, opened: Opened) -> Senses:
    """Pictures as timm's config asks, else as torchvision's first weights saw them."""
    given = opened.config.get("pretrained_cfg", {})
    return {"image": timm_picture(given, given.get("input_size", (3, SIZE, SIZE))[1], EDGE, "bilinear")}


def _recognise(opened: Opened) -> Config | None:
    """Neither gives sizes: they are read from the shapes."""
    shape = opened.tensors.shape
    stem, head = shape("conv1.weight"), shape("fc.weight")
    if stem is None or "layer1.0.conv1.weight" not in opened.tensors:
        return None
    bottleneck = "layer1.0.conv3.weight" in opened.tensors
    stages = []
    for i in range(1, 1 + depth("layer", (name.replace("layer", "layer.", 1) for name in opened.tensors))):
        width, last = shape(f"layer{i}.0.conv1.weight"), shape(f"layer{i}.0.conv{3 if bottleneck else 2}.weight")
        assert width is not None and last is not None
        stages.append((depth(f"layer{i}", opened.tensors), width[0], last[0]))
    return {"stem": stem[0], "stages": stages, "bottleneck": bottleneck,
            "counted": "bn1.num_batches_tracked" in opened.tensors,
            "labels": labels(opened.config, head[0] if head else 0)}


RESNET = Published("resnet", _recognise, build, names, senses, verbs)
