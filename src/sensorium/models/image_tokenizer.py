"""Discrete autoencoders of images: encoder → quantizer → decoder (VQ-VAE, FSQ, dVAE).

B batch   H, W sides in pixels   h, w sides of the token grid (H / patch_size, W / patch_size)
C channels   D, E input and output width of the quantizer

Example:
    ids = model.encode(pixels)     # Int [B h w], each below model.vocab_size
    pixels = model.decode(ids)     # Float [B 3 H W], normalized like the input
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, channels_last, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.nn.stochastic_depth import StochasticDepth
from sensorium.nn.vector_quantize import Quantizer

MIN_CHANNELS = 32  # channels at the finest scale
SQUEEZE_SCALE = 0.8  # pixels in 0..1 → 0.1..0.9, where a logit is finite (Ramesh et al. 2021)
SQUEEZE_OFFSET = 0.1


@dataclass(frozen=True)
class Reconstruction:
    """The result of encoding and decoding images.

    Attributes:
        decoder_output: Raw output: pixels, or location and log scale of a logit-Laplace.
        pixels: The reconstructed images, normalized.
        ids: The tokens.
        loss: The quantizer's own loss.
    """

    decoder_output: Float[Tensor, "B C H W"]
    pixels: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "B h w"]
    loss: Float[Tensor, ""]


class ImageTokenizer(nn.Module):
    """A convolutional autoencoder with a grid of discrete tokens as its latent.

    Args:
        image: Settings of the image column: size, mean and standard deviation.
        quantizer: Maps features to tokens and back.
        patch_size: Side in pixels of the patch that one token stands for; a power of two.
        dim: Channels at the token grid; each finer scale has half as many.
        blocks_per_scale: Residual blocks at each scale.
        laplace: Predict location and log scale of a logit-Laplace distribution, not pixels.

    Raises:
        SensoriumError: If the sizes are invalid or do not divide the image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        image: Image,
        quantizer: Quantizer,
        *,
        patch_size: int,
        dim: int,
        blocks_per_scale: int,
        laplace: bool = False,
    ):
        super().__init__()
        num_scales = patch_size.bit_length() - 1
        if dim < 1:
            raise SensoriumError(f"--dim {dim} is too small. Choose 1 or more.")
        if blocks_per_scale < 0:
            raise SensoriumError(f"--layers {blocks_per_scale} is negative. Choose 0 or more.")
        if patch_size < 2 or 1 << num_scales != patch_size or image.size % patch_size:
            raise SensoriumError(
                f"--patch-size {patch_size} does not fit images of {image.size} pixels. "
                "Choose 2, 4, 8 or another power of two that divides the side."
            )
        widths = [max(MIN_CHANNELS, dim >> i) for i in range(num_scales)]  # coarse to fine
        self.quantizer = quantizer
        self.laplace = laplace
        self.vocab_size = quantizer.vocab_size
        self.grid_size = image.size // patch_size
        self.encoder = _build_encoder(widths[::-1], quantizer.in_dim, blocks_per_scale)
        out_channels = 6 if laplace else 3
        self.decoder = _build_decoder(quantizer.out_dim, widths, out_channels, blocks_per_scale)
        self.register_buffer("mean", torch.tensor(image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Reconstruction:
        """Encode, quantize and decode normalized images."""
        quantized = self.quantizer(self._encode_features(pixels))
        output = self._decode_vectors(quantized.x)
        return Reconstruction(output, self._to_pixels(output), quantized.ids, quantized.loss)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """Return the tokens of normalized images."""
        return self.quantizer.to_ids(self._encode_features(pixels))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return the normalized images that tokens stand for."""
        return self._to_pixels(self._decode_vectors(self.quantizer.to_vectors(ids)))

    def denormalize(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return normalized pixels on the scale 0..1."""
        return pixels * self.std + self.mean

    def after_step(self) -> None:
        """Update the quantizer; call after each optimizer step."""
        self.quantizer.after_step()

    def _encode_features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        """Return the features that the quantizer takes."""
        features = self.encoder(pixels.contiguous(memory_format=channels_last))
        return rearrange(features, "b d h w -> b h w d")

    def _decode_vectors(self, x: Float[Tensor, "B h w E"]) -> Float[Tensor, "B C H W"]:
        """Return the decoder's raw output."""
        return self.decoder(rearrange(x, "b h w e -> b e h w")).float()

    def _to_pixels(self, decoder_output: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        """Return normalized pixels from the decoder's raw output."""
        if not self.laplace:
            return decoder_output
        return (unsqueeze_pixels(decoder_output[:, :3].sigmoid()) - self.mean) / self.std


class ResidualConvBlock(nn.Module):
    """A 3 x 3 and a 1 x 1 convolution in a residual branch that starts at zero; no norm.

    Args:
        dim: C.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv2d(dim, dim, 3, padding=1)
        self.conv2 = nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.get_parameter("bias"))
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        """Return x plus the residual branch."""
        return x + self.drop_path(self.conv2(F.relu(self.conv1(F.relu(x)))))


def _build_encoder(
    widths: Sequence[int], out_channels: int, blocks_per_scale: int
) -> nn.Sequential:
    """Build the encoder; each scale halves the side, then applies its residual blocks."""
    layers: list[nn.Module] = []
    for in_channels, width in zip((3, *widths[:-1]), widths, strict=True):
        layers.append(nn.Conv2d(in_channels, width, 4, 2, 1))
        layers.extend(ResidualConvBlock(width) for _ in range(blocks_per_scale))
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], out_channels, 1))


def _build_decoder(
    in_channels: int, widths: Sequence[int], out_channels: int, blocks_per_scale: int
) -> nn.Sequential:
    """Build the decoder; each scale applies its residual blocks, then doubles the side."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
    for width, finer in zip(widths, (*widths[1:], out_channels), strict=True):
        layers.extend(ResidualConvBlock(width) for _ in range(blocks_per_scale))
        layers.append(nn.ReLU())
        layers.append(nn.Conv2d(width, 4 * finer, 3, padding=1))
        layers.append(nn.PixelShuffle(2))
    return nn.Sequential(*layers)


def squeeze_pixels(pixels: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Map 0..1 to 0.1..0.9."""
    return SQUEEZE_SCALE * pixels + SQUEEZE_OFFSET


def unsqueeze_pixels(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Map 0.1..0.9 to 0..1, clipping values outside."""
    return ((x - SQUEEZE_OFFSET) / SQUEEZE_SCALE).clamp(0, 1)
