"""EfficientNet-Lite0 (Google 2020, after Tan and Le 2019), in the names of the package efficientnet-lite-pytorch.

    B batch   C channels   H height   W width   D width of a token
"""
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, channels_last, nn

from sensorium.modalities.image import Image
from sensorium.models import Encoder
from sensorium.published.classifier import Classifier, labels, verbs
from sensorium.published.files import Opened
from sensorium.published.parts import Names, affine, normed
from sensorium.published.published import Config, Published, Senses
from sensorium.tokens import Tokens, grid

STAGES = ((1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
          (1, 3, 1, 6, 320))                            # of each: blocks, kernel, stride, expansion, width
STEM, TOP = 32, 1280
SEEN = Image(size=224, edge=256, resample="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


class Same(nn.Conv2d):
    """A convolution padded as TensorFlow pads: what is odd is added behind."""

    def forward(self, input: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        high, wide = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in input.shape[-2:])
        return super().forward(F.pad(input, (wide // 2, wide - wide // 2, high // 2, high - high // 2)))


def convolution(inside: int, outside: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and the norm of its batch."""
    return nn.Sequential(Same(inside, outside, kernel, stride, groups=groups, bias=False),
                         nn.BatchNorm2d(outside, eps=1e-3, momentum=0.01))


class Inverted(nn.Module):
    """Wider, one convolution a channel, narrower; relu6 after each but the last; plus x where the shape stays."""

    def __init__(self, inside: int, outside: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inside * expansion
        self.convolutions = nn.ModuleList([] if expansion == 1 else [convolution(inside, wide, 1)])
        self.convolutions += [convolution(wide, wide, kernel, stride, wide), convolution(wide, outside, 1)]
        self.stays = stride == 1 and inside == outside

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B E h w"]:
        *before, last = self.convolutions
        y = x
        for one in before:
            y = F.relu6(one(y))
        return last(y) + x if self.stays else last(y)


class Lite(nn.Module):
    """Picture → Tokens, one for each cell of the last map. The mean of all speaks for the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, inside, blocks = convolution(3, STEM, 3, 2), STEM, []
        for many, kernel, stride, expansion, width in STAGES:
            for i in range(many):
                blocks.append(Inverted(inside, width, kernel, 1 if i else stride, expansion))
                inside = width
        self.blocks, self.top = nn.Sequential(*blocks), convolution(inside, TOP, 1)

    def summary(self, image: Float[Tensor, "B 3 H W"]) -> None:
        return None

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        x = F.relu6(self.stem(image.contiguous(memory_format=channels_last)))
        x = F.relu6(self.top(self.blocks(x)))
        cells = rearrange(x, "b d h w -> b (h w) d")
        return Tokens(cells, grid(cells, x.shape[-1]))


def build(config: Config) -> Classifier:
    """The tower `image` and its head, with first weights."""
    return Classifier(Encoder(Lite()), TOP, config["labels"])


def names(config: Config) -> Names:
    """Our names and theirs."""
    ours, found, i = "image.encode.embed", [], 0
    for many, _, _, expansion, _ in STAGES:
        for _ in range(many):
            parts = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
            parts = parts if expansion == 1 else [("_expand_conv", "_bn0"), *parts]
            for k, (kernel, norm) in enumerate(parts):
                found += normed(f"{ours}.blocks.{i}.convolutions.{k}", f"_blocks.{i}.{kernel}", f"_blocks.{i}.{norm}")
            i += 1
    return [*normed(f"{ours}.stem", "_conv_stem", "_bn0"), *found, *normed(f"{ours}.top", "_conv_head", "_bn1"),
            *affine("head", "_fc")]


def senses(config: Config, opened: Opened) -> Senses:
    """224 pixels of -1 to 1, the middle of a picture."""
    return {"image": SEEN}


def _recognise(opened: Opened) -> Config | None:
    head = opened.tensors.shape("_fc.weight")
    lite = "_conv_stem.weight" in opened.tensors and "_blocks.0._se_reduce.weight" not in opened.tensors
    return {"labels": labels(opened.config, head[0])} if lite and head else None


EFFICIENTNET = Published("efficientnet_lite0", _recognise, build, names, senses, verbs)
