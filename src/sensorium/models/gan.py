"""A text-conditional GAN: a generator that takes one step, and a discriminator that reads the text.

B batch   Z latent width   C width of a text vector   D channels   h, w image size
"""

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sensorium.models.towers import Encoder
from sensorium.nn.linear import Linear, normal_parameter

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2 / (1 + SLOPE**2))


class TextVector(nn.Module):
    """One vector per text; a learned one for a missing text.

    Args:
        encoder: Encodes the texts.
        width: Width of its pooled embedding.
        dim: C.
    """

    def __init__(self, encoder: Encoder, width: int, dim: int):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(width)
        self.projection = Linear(width, dim)
        self.null = normal_parameter(dim)
        self.train(self.training)

    def train(self, mode: bool = True) -> "TextVector":
        """Set the training mode of everything but a frozen encoder."""
        super().train(mode)
        if not any(p.requires_grad for p in self.encoder.parameters()):
            self.encoder.eval()
        return self

    def forward(self, raw: Tensor | None, keep: Bool[Tensor, "B"]) -> Float[Tensor, "B C"]:
        """Return the vectors.

        Args:
            raw: The texts; None where all are missing.
            keep: False for a missing text.
        """
        if raw is None:
            return self.null.expand(len(keep), -1)
        vectors = self.projection(self.norm(self.encoder.pooled(raw)))
        return torch.where(keep[:, None], vectors, self.null)


class GeneratorBlock(nn.Module):
    """Doubles the side, then adds two convolutions that are modulated by the style.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
        style_dim: Width of the style.
    """

    def __init__(self, in_channels: int, out_channels: int, style_dim: int):
        super().__init__()
        self.shortcut = _conv(in_channels, out_channels, 1)
        self.conv1 = _conv(in_channels, out_channels, 3)
        self.conv2 = _conv(out_channels, out_channels, 3, gain=0.0)
        self.style1 = Linear(style_dim, 2 * in_channels)
        self.style2 = Linear(style_dim, 2 * out_channels)

    def forward(
        self, x: Float[Tensor, "B c h w"], style: Float[Tensor, "B Z"]
    ) -> Float[Tensor, "B D h2 w2"]:
        """Return the feature map of twice the side."""
        x = F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        hidden = self.conv1(F.leaky_relu(_modulate(x, self.style1(style)), SLOPE))
        hidden = self.conv2(F.leaky_relu(_modulate(hidden, self.style2(style)), SLOPE))
        return self.shortcut(x) + hidden


class Generator(nn.Module):
    """Noise and text to an image, in one step. The output is not bounded.

    Args:
        text: The text encoder.
        size: Side of the images.
        text_dim: C.
        latent_dim: Z.
        dims: Channels of each level from the smallest side on; each level doubles it.
    """

    def __init__(
        self, text: TextVector, size: int, text_dim: int, latent_dim: int, dims: Sequence[int]
    ):
        super().__init__()
        self.text = text
        self.latent_dim = latent_dim
        self.side = size // 2 ** (len(dims) - 1)
        style_dim = latent_dim + text_dim
        self.mapping = nn.Sequential(
            Linear(style_dim, style_dim), nn.LeakyReLU(SLOPE), Linear(style_dim, style_dim)
        )
        self.start = Linear(style_dim, dims[0] * self.side**2)
        self.blocks = nn.ModuleList(
            GeneratorBlock(a, b, style_dim) for a, b in itertools.pairwise(dims)
        )
        self.head = _conv(dims[-1], 3, 3, gain=0.5)

    def forward(
        self, noise: Float[Tensor, "B Z"], raw: Tensor | None, keep: Bool[Tensor, "B"]
    ) -> Float[Tensor, "B 3 h w"]:
        """Return images with values of about -1 to 1."""
        style = self.mapping(torch.cat([noise, self.text(raw, keep)], 1))
        x = self.start(style).unflatten(1, (-1, self.side, self.side))
        for block in self.blocks:
            x = block(x, style)
        return self.head(F.leaky_relu(x, SLOPE))


class DiscriminatorBlock(nn.Module):
    """Adds two convolutions, then halves the side.

    Args:
        in_channels: Input channels.
        out_channels: Output channels.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = _conv(in_channels, out_channels, 3)
        self.conv2 = _conv(out_channels, out_channels, 3, gain=0.0)
        self.shortcut = _conv(in_channels, out_channels, 1)

    def forward(self, x: Float[Tensor, "B c h w"]) -> Float[Tensor, "B D h2 w2"]:
        """Return the feature map of half the side."""
        hidden = self.conv1(F.leaky_relu(x, SLOPE))
        hidden = self.conv2(F.leaky_relu(hidden, SLOPE))
        return F.avg_pool2d(self.shortcut(x) + hidden, 2)


class Discriminator(nn.Module):
    """A score of how real an image is and how well it matches its text (Miyato and Koyama 2018).

    The score is a linear function of the image's features, plus their product with the text.

    Args:
        text: The text encoder.
        size: Side of the images.
        text_dim: C.
        dims: Channels of each level from the largest side on; each level halves it.
    """

    def __init__(self, text: TextVector, size: int, text_dim: int, dims: Sequence[int]):
        super().__init__()
        self.text = text
        self.stem = _conv(3, dims[0], 3)
        self.blocks = nn.ModuleList(DiscriminatorBlock(a, b) for a, b in itertools.pairwise(dims))
        side = size // 2 ** (len(dims) - 1)
        self.features = Linear(dims[-1] * side**2, text_dim)
        self.realism = Linear(text_dim, 1)

    def encode_image(self, images: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B C"]:
        """Return the features of images."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.features(F.leaky_relu(x, SLOPE).flatten(1))

    def score(
        self, features: Float[Tensor, "B C"], text: Float[Tensor, "B C"], text_weight: float
    ) -> Float[Tensor, "B"]:
        """Return the scores of image features with text vectors.

        Args:
            features: What `encode_image` returns.
            text: Text vectors.
            text_weight: Weight of the match with the text, from 0 to 1.
        """
        match = (features * text).sum(1) * features.shape[1] ** -0.5
        realism = self.realism(F.leaky_relu(features, SLOPE))[:, 0]
        return realism + text_weight * match


class TextConditionalGAN(nn.Module):
    """A generator and a discriminator, which are trained against each other.

    Args:
        generator: The generator.
        discriminator: The discriminator.
    """

    step: Tensor

    def __init__(self, generator: Generator, discriminator: Discriminator):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.register_buffer("step", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def count_step(self) -> None:
        """Count an optimizer step."""
        self.step += 1


def _conv(in_channels: int, out_channels: int, kernel: int, gain: float = 1.0) -> nn.Conv2d:
    """Return a convolution whose output has the variance of its input, times the gain squared."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)
    std = gain * GAIN / math.sqrt(in_channels * kernel**2)
    nn.init.normal_(conv.weight, std=std)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def _modulate(x: Float[Tensor, "B c h w"], style: Float[Tensor, "B c2"]) -> Tensor:
    """Return x (1 + scale) + shift."""
    scale, shift = style[:, :, None, None].chunk(2, 1)
    return x * (1 + scale) + shift
