"""Pictures ↔ a grid of codes: convolutions, a quantizer between them, convolutions back.

B batch   H, W sides in pixels   h, w sides of the grid (H / patch, W / patch)   C channels
D, E widths of what the quantizer takes and gives

ids = model.encode(pixels)          # Int [B h w], each below model.vocab
pixels = model.decode(ids)          # Float [B 3 H W], normalised as the pictures that came in
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
SQUEEZE_SCALE, SQUEEZE_OFFSET = (
    0.8,
    0.1,
)  # pixels in 0..1 → 0.1..0.9, where a logit is finite (Ramesh et al. 2021)


@dataclass(frozen=True)
class Reconstruction:
    """said: what the decoder says, before it is made pixels. loss: the quantizer's own."""

    decoder_output: Float[Tensor, "B C H W"]
    pixels: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "B h w"]
    loss: Float[Tensor, ""]


class ImageTokenizer(nn.Module):
    """An autoencoder of pictures whose middle is a grid of codes, one for each `patch` x `patch` pixels.

    patch: a power of two. dim: channels at the grid; half as many at each finer scale. depth: residual blocks a scale.
    laplace: the decoder says location and log scale of a logit-Laplace distribution instead of pixels.
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
        scales = patch_size.bit_length() - 1
        if dim < 1 or blocks_per_scale < 0:
            raise SensoriumError(
                f"dim={dim}, depth={blocks_per_scale}: expected 1 or more, and 0 or more."
            )
        if patch_size < 2 or 1 << scales != patch_size or image.size % patch_size:
            raise SensoriumError(
                f"patch={patch_size}: expected 2, 4, 8, ... that divides a side of {image.size} pixels."
            )
        widths = [
            max(MIN_CHANNELS, dim >> i) for i in range(scales)
        ]  # from the grid to the finest scale
        self.quantizer, self.laplace = quantizer, laplace
        self.vocab, self.grid_size = quantizer.vocab, image.size // patch_size
        self.encoder = _build_encoder(widths[::-1], quantizer.in_dim, blocks_per_scale)
        self.decoder = _build_decoder(
            quantizer.out_dim, widths, 6 if laplace else 3, blocks_per_scale
        )
        self.register_buffer("mean", torch.tensor(image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Reconstruction:
        q = self.quantizer(self._encode_features(pixels))
        said = self._decode_vectors(q.x)
        return Reconstruction(said, self._to_pixels(said), q.ids, q.loss)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """The codes of normalised pictures."""
        return self.quantizer.to_ids(self._encode_features(pixels))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """The normalised pictures that codes stand for."""
        return self._to_pixels(self._decode_vectors(self.quantizer.to_vectors(ids)))

    def denormalize(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalised pixels on a scale of 0..1."""
        return pixels * self.std + self.mean

    def after_step(self) -> None:
        """To be called after each update of the weights."""
        self.quantizer.after_step()

    def _encode_features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        return rearrange(
            self.encoder(pixels.contiguous(memory_format=channels_last)), "b d h w -> b h w d"
        )

    def _decode_vectors(self, x: Float[Tensor, "B h w E"]) -> Float[Tensor, "B C H W"]:
        return self.decoder(rearrange(x, "b h w e -> b e h w")).float()

    def _to_pixels(self, decoder_output: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        return (
            (unsqueeze_pixels(decoder_output[:, :3].sigmoid()) - self.mean) / self.std
            if self.laplace
            else decoder_output
        )


class ResidualConvBlock(nn.Module):
    """x + a 1 x 1 convolution of a 3 x 3 one of x; it starts as x, and needs no norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.get_parameter("bias"))
        self.drop_path = StochasticDepth()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.drop_path(self.conv2(F.relu(self.conv1(F.relu(x)))))


def _build_encoder(
    widths: Sequence[int], out_channels: int, blocks_per_scale: int
) -> nn.Sequential:
    """Each scale: a convolution that halves the side, then `depth` blocks."""
    layers: list[nn.Module] = []
    for inside, width in zip((3, *widths[:-1]), widths, strict=True):
        layers += [
            nn.Conv2d(inside, width, 4, 2, 1),
            *(ResidualConvBlock(width) for _ in range(blocks_per_scale)),
        ]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], out_channels, 1))


def _build_decoder(
    in_channels: int, widths: Sequence[int], out_channels: int, blocks_per_scale: int
) -> nn.Sequential:
    """Each scale: `depth` blocks, then a convolution whose channels become a side twice as long."""
    layers: list[nn.Module] = [nn.Conv2d(in_channels, widths[0], 3, padding=1)]
    for width, finer in zip(widths, (*widths[1:], out_channels), strict=True):
        layers += [*(ResidualConvBlock(width) for _ in range(blocks_per_scale)), nn.ReLU()]
        layers += [nn.Conv2d(width, 4 * finer, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)


def squeeze_pixels(pixels: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0..1 → 0.1..0.9."""
    return SQUEEZE_SCALE * pixels + SQUEEZE_OFFSET


def unsqueeze_pixels(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0.1..0.9 → 0..1; what lies beyond is cut off."""
    return ((x - SQUEEZE_OFFSET) / SQUEEZE_SCALE).clamp(0, 1)
