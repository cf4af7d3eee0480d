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

from sensorium.depth import StochasticDepth
from sensorium.errors import SensoriumError
from sensorium.modalities.image import Image
from sensorium.modalities.quantize import Quantizer

NARROWEST = 32                          # channels at the finest scale
SQUEEZE, MARGIN = 0.8, 0.1              # pixels in 0..1 → 0.1..0.9, where a logit is finite (Ramesh et al. 2021)


@dataclass(frozen=True)
class Reconstruction:
    """said: what the decoder says, before it is made pixels. loss: the quantizer's own."""

    said: Float[Tensor, "B C H W"]
    pixels: Float[Tensor, "B 3 H W"]
    ids: Int[Tensor, "B h w"]
    loss: Float[Tensor, ""]


class PictureCodes(nn.Module):
    """An autoencoder of pictures whose middle is a grid of codes, one for each `patch` x `patch` pixels.

    patch: a power of two. dim: channels at the grid; half as many at each finer scale. depth: residual blocks a scale.
    laplace: the decoder says location and log scale of a logit-Laplace distribution instead of pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, image: Image, quantizer: Quantizer, *, patch: int, dim: int, depth: int, laplace: bool = False):
        super().__init__()
        scales = patch.bit_length() - 1
        if dim < 1 or depth < 0:
            raise SensoriumError(f"dim={dim}, depth={depth}: expected 1 or more, and 0 or more.")
        if patch < 2 or 1 << scales != patch or image.size % patch:
            raise SensoriumError(f"patch={patch}: expected 2, 4, 8, ... that divides a side of {image.size} pixels.")
        widths = [max(NARROWEST, dim >> i) for i in range(scales)]         # from the grid to the finest scale
        self.quantizer, self.laplace = quantizer, laplace
        self.vocab, self.side = quantizer.vocab, image.size // patch
        self.encoder = _encoder(widths[::-1], quantizer.inside, depth)
        self.decoder = _decoder(quantizer.outside, widths, 6 if laplace else 3, depth)
        self.register_buffer("mean", torch.tensor(image.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(image.std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Float[Tensor, "B 3 H W"]) -> Reconstruction:
        q = self.quantizer(self._features(pixels))
        said = self._said(q.x)
        return Reconstruction(said, self._pixels(said), q.ids, q.loss)

    def encode(self, pixels: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B h w"]:
        """The codes of normalised pictures."""
        return self.quantizer.ids(self._features(pixels))

    def decode(self, ids: Int[Tensor, "B h w"]) -> Float[Tensor, "B 3 H W"]:
        """The normalised pictures that codes stand for."""
        return self._pixels(self._said(self.quantizer.vectors(ids)))

    def unit(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        """Normalised pixels on a scale of 0..1."""
        return pixels * self.std + self.mean

    def after_step(self) -> None:
        """To be called after each update of the weights."""
        self.quantizer.after_step()

    def _features(self, pixels: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B h w D"]:
        return rearrange(self.encoder(pixels.contiguous(memory_format=channels_last)), "b d h w -> b h w d")

    def _said(self, x: Float[Tensor, "B h w E"]) -> Float[Tensor, "B C H W"]:
        return self.decoder(rearrange(x, "b h w e -> b e h w")).float()

    def _pixels(self, said: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 3 H W"]:
        return (unsqueezed(said[:, :3].sigmoid()) - self.mean) / self.std if self.laplace else said


class Residual(nn.Module):
    """x + a 1 x 1 convolution of a 3 x 3 one of x; it starts as x, and needs no norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.first, self.second = nn.Conv2d(dim, dim, 3, padding=1), nn.Conv2d(dim, dim, 1)
        nn.init.zeros_(self.second.weight)
        nn.init.zeros_(self.second.get_parameter("bias"))
        self.deep = StochasticDepth()

    def forward(self, x: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C H W"]:
        return x + self.deep(self.second(F.relu(self.first(F.relu(x)))))


def _encoder(widths: Sequence[int], outside: int, depth: int) -> nn.Sequential:
    """Each scale: a convolution that halves the side, then `depth` blocks."""
    layers: list[nn.Module] = []
    for inside, width in zip((3, *widths[:-1]), widths, strict=True):
        layers += [nn.Conv2d(inside, width, 4, 2, 1), *(Residual(width) for _ in range(depth))]
    return nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(widths[-1], outside, 1))


def _decoder(inside: int, widths: Sequence[int], outside: int, depth: int) -> nn.Sequential:
    """Each scale: `depth` blocks, then a convolution whose channels become a side twice as long."""
    layers: list[nn.Module] = [nn.Conv2d(inside, widths[0], 3, padding=1)]
    for width, finer in zip(widths, (*widths[1:], outside), strict=True):
        layers += [*(Residual(width) for _ in range(depth)), nn.ReLU()]
        layers += [nn.Conv2d(width, 4 * finer, 3, padding=1), nn.PixelShuffle(2)]
    return nn.Sequential(*layers)


def squeezed(unit: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0..1 → 0.1..0.9."""
    return SQUEEZE * unit + MARGIN


def unsqueezed(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """0.1..0.9 → 0..1; what lies beyond is cut off."""
    return ((x - MARGIN) / SQUEEZE).clamp(0, 1)
