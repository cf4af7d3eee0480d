"""Images: settings of a column, loading, normalization, and patches as Tokens (ViT).

B batch   H side as stored   S side of the model input   T tokens   D width
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import PIL.Image
import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from sensorium.errors import SensoriumError
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.modalities.image_augment import (
    ImageAugmentation,
    apply_pixel_ops,
    shift_and_flip,
    warp_affine,
)
from sensorium.modalities.image_decode import MAX_IMAGE_PIXELS, decode_full_image, decode_image
from sensorium.modalities.image_resize import resize_exact
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.tokens import Tokens, grid_positions

RESAMPLE_FILTERS = tuple(kind.name.lower() for kind in PIL.Image.Resampling)
RESIZE_MODES = ("crop", "pad", "trim", "stretch")
EXACT_RESIZE_MODES = ("crop", "centre", "stretch")  # with a resample filter
MAX_FIT_SAMPLES = 512  # images from which `fit` estimates mean and standard deviation
IMAGES_PER_CHUNK = 32  # images normalized at a time, so that they stay in the CPU cache


@dataclass(frozen=True)
class Image:
    """Settings of an image column: how images become squares of normalized pixels.

    Attributes:
        size: Side of the model input in pixels.
        resize_mode: How an image becomes square: "crop" (shorter side to fit, center kept), "pad"
            (longer side to fit, padded with white), "trim" (a plain border removed, then "pad") or
            "stretch".
        margin: Pixels stored beyond `size`, for shifts and rotations.
        mean: Mean of each channel, on a scale of 0..1.
        std: Standard deviation of each channel, on a scale of 0..1.
        resample: For pretrained models: name of the Pillow filter with which images are resized
            exactly, without decoding shortcuts. `resize_mode` is then "crop" (as in transformers),
            "centre" (as in torchvision) or "stretch".
        shortest_edge: With `resample`, the shorter side before cropping, in pixels; 0 is `size`.

    Raises:
        SensoriumError: If a setting is out of range.
    """

    kind: ClassVar[str] = "image"
    size: int = 64
    resize_mode: str = "crop"
    margin: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = ""
    shortest_edge: int = 0

    def __post_init__(self) -> None:
        if self.resample not in ("", *RESAMPLE_FILTERS):
            raise SensoriumError(
                f"image resample={self.resample!r} is unknown. "
                f"Choose one of: {', '.join(RESAMPLE_FILTERS)}."
            )
        modes = EXACT_RESIZE_MODES if self.resample else RESIZE_MODES
        if self.resize_mode not in modes:
            condition = f" with resample={self.resample!r}" if self.resample else ""
            raise SensoriumError(
                f"image resize_mode={self.resize_mode!r} is unknown{condition}. "
                f"Choose one of: {', '.join(modes)}."
            )
        largest = max(self.stored_size, self.shortest_edge)
        if self.size < 1 or self.margin < 0 or largest**2 > MAX_IMAGE_PIXELS:
            raise SensoriumError(
                f"image size={self.size}, margin={self.margin}, "
                f"shortest_edge={self.shortest_edge} is out of range. Use a size of at "
                f"least 1, a margin of at least 0, and at most {MAX_IMAGE_PIXELS:,} pixels in all."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SensoriumError(
                f"image mean={self.mean}, std={self.std} is invalid. "
                "Give three numbers each, one per channel, with every std above 0."
            )

    @property
    def stored_size(self) -> int:
        """Return the side of a stored image in pixels."""
        return self.size + self.margin

    def fit(self, values: Iterable[Any]) -> Image:
        """Return settings with mean and standard deviation of a sample of `values`.

        The statistics are over at most MAX_FIT_SAMPLES evenly spaced images; unreadable ones are
        skipped.
        """
        present = [v for v in values if v is not None]
        loaded = []
        for raw in present[:: max(1, -(-len(present) // MAX_FIT_SAMPLES))]:
            try:
                loaded.append(self.load(raw).reshape(-1, 3))
            except ValueError:
                continue  # reported and quarantined when the data are prepared
        if not loaded:
            return self
        pixels = np.stack(loaded) / np.float32(255)
        mean = pixels.mean((0, 1), dtype=np.float64)
        std = pixels.std((0, 1), dtype=np.float64)
        return replace(
            self, mean=tuple(mean.round(4).tolist()), std=tuple(std.clip(0.05).round(4).tolist())
        )

    def load(
        self, raw: Any, out: UInt8[np.ndarray, "H H 3"] | None = None
    ) -> UInt8[np.ndarray, "H H 3"]:
        """Return one image, upright, as a square of `stored_size` pixels.

        Args:
            raw: A path, the bytes of a file, a PIL image, or an array uint8 [H W], [H W 1],
                [H W 3] or [H W 4].
            out: The array to fill and return, instead of a new one.

        Raises:
            ValueError: If the image cannot be read or exceeds a limit.
        """
        if self.resample:
            pixels = resize_exact(
                decode_full_image(raw),
                self.stored_size,
                self.resize_mode,
                max(self.shortest_edge, self.stored_size),
                self.resample,
            )
        else:
            pixels = decode_image(raw, self.stored_size, self.resize_mode, out)
        if out is None or pixels is out:
            return pixels
        out[...] = pixels
        return out

    def collate(self, values: Sequence[UInt8[np.ndarray, "H H 3"]]) -> Float[Tensor, "B 3 S S"]:
        """Return loaded images as normalized model input."""
        if len(values):
            pixels = np.stack(values)
        else:
            pixels = np.zeros((0, self.stored_size, self.stored_size, 3), np.uint8)
        return self.preprocess(torch.from_numpy(pixels).permute(0, 3, 1, 2))

    def preprocess(
        self, images: UInt8[Tensor, "B 3 H H"], rng: torch.Generator | None = None, **options: float
    ) -> Float[Tensor, "B 3 S S"]:
        """Augment stored images at random and normalize them.

        Args:
            images: Stored images, channels first.
            rng: Random generator; without one, the central `size` pixels are taken unchanged.
            **options: Fields of `ImageAugmentation`.
        """
        augmentation = ImageAugmentation()
        generator = torch.Generator()
        if rng is not None:
            augmentation = ImageAugmentation(**options)
            generator = rng
        if augmentation.has_affine:
            x = warp_affine(images.float(), self.size, augmentation, generator)
        else:
            x = shift_and_flip(images, self.size, augmentation, generator)
        if augmentation.has_pixel_ops:
            x = apply_pixel_ops(x.float(), augmentation, generator)
        return self._normalize(x)

    def augment(
        self, batch: Float[Tensor, "B 3 S S"], rng: torch.Generator, **options: float
    ) -> Float[Tensor, "B 3 S S"]:
        """Return normalized images with random changes.

        The images are rounded to stored values, augmented and normalized again.

        Args:
            batch: Images as `collate` returns them.
            rng: Random generator.
            **options: Fields of `ImageAugmentation`.
        """
        if not options:
            return batch
        return replace(self, margin=0).preprocess(self.denormalize(batch), rng, **options)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n 3 S S"]:
        """Return n images of blocky noise, for tests and dry runs."""
        blocks = -(-self.size // 8)
        coarse = torch.randint(0, 256, (n, 3, blocks, blocks), generator=rng, dtype=torch.uint8)
        pixels = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
        return self._normalize(pixels[..., : self.size, : self.size])

    def decode(self, image: Float[Tensor, "3 H W"]) -> PIL.Image.Image:
        """Return a normalized image as a PIL image."""
        pixels = self.denormalize(image[None])[0].permute(1, 2, 0)
        return PIL.Image.fromarray(pixels.contiguous().numpy())

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Image:
        """Return settings from plain JSON values."""
        return cls(**validate_settings(cls, data))

    def denormalize(self, x: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
        """Return normalized images as pixels of 0..255."""
        std = torch.tensor(self.std).view(3, 1, 1)
        mean = torch.tensor(self.mean).view(3, 1, 1)
        return ((x.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)

    def _normalize(self, x: Tensor) -> Float[Tensor, "B 3 S S"]:
        """Return (x / 255 - mean) / std."""
        std = torch.tensor(self.std).view(3, 1, 1)
        scale = 1 / (255 * std)
        offset = torch.tensor(self.mean).view(3, 1, 1) / std
        out = torch.empty(x.shape)
        for target, pixels in zip(
            out.split(IMAGES_PER_CHUNK), x.split(IMAGES_PER_CHUNK), strict=True
        ):
            target.copy_(pixels).mul_(scale).sub_(offset)
        return out


class PatchEmbedding(nn.Module):
    """Image → Tokens: a linear projection of square patches plus learned positions (ViT).

    A learned class token comes first, and the image is represented by it.

    Args:
        dim: Width of the tokens.
        image_size: Side of the image in pixels.
        patch_size: Side of a patch in pixels.
        bias: Give the projection a bias.
        crop: Leave out the pixels at the right and at the bottom that make no whole patch.

    Raises:
        ValueError: If the image size is not a multiple of the patch size, without `crop`.
    """

    def __init__(
        self,
        dim: int,
        image_size: int,
        patch_size: int,
        *,
        bias: bool = False,
        crop: bool = False,
    ):
        super().__init__()
        if image_size % patch_size and not crop:
            raise ValueError(
                f"image size {image_size} is not a multiple of the patch size {patch_size}"
            )
        self.patch_size = patch_size
        self.grid_size = image_size // patch_size
        self.projection = Linear(3 * patch_size * patch_size, dim, bias=bias)
        self.cls_token = normal_parameter(dim, std=dim**-0.5)
        self.position_embedding = normal_parameter(1 + self.grid_size**2, dim, std=dim**-0.5)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        """Return the class token and one token per patch, row by row."""
        x = self.projection(split_patches(image, self.patch_size))
        cls_token = self.cls_token.to(x.dtype).expand(x.shape[0], 1, -1)
        x = torch.cat([cls_token, x], 1) + self.position_embedding.to(x.dtype)
        pos = grid_positions(x[:, 1:], self.grid_size)
        return Tokens(x, torch.cat([pos.new_zeros(x.shape[0], 1, 3), pos], 1))

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B"]:
        """Return the index of the class token, 0."""
        return torch.zeros(image.shape[0], dtype=torch.long, device=image.device)


def split_patches(image: Float[Tensor, "B C H W"], patch_size: int) -> Float[Tensor, "B T P"]:
    """Return the pixels of each whole patch, row by row, as a convolution reads them."""
    height, width = (side // patch_size * patch_size for side in image.shape[-2:])
    return rearrange(
        image[..., :height, :width],
        "b c (h p) (w q) -> b (h w) (c p q)",
        p=patch_size,
        q=patch_size,
    )
