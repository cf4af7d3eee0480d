"""Random augmentation of image batches: one affine map and one color map per image.

B batch   H side as stored   S side of the model input

All images of a batch are changed at once, each with its own random values. Beyond its edges an
image repeats its border pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # perceived brightness of red, green and blue (BT.601)
MAX_CROP_ASPECT = 4 / 3  # largest aspect ratio of a random crop, either way
THICK_OUTLINE_PROBABILITY = 0.3


@dataclass(frozen=True)
class ImageAugmentation:
    """Strength of each random change; 0 is off.

    The order is: geometry, blur, color, outlines, erasing.

    Attributes:
        crop: Random resized crop: smallest fraction of the area that remains.
        flip: Probability of a horizontal flip.
        rotate: Largest rotation in degrees, either way.
        shift: Largest shift as a fraction of the side, either way, in both directions.
        scale: Largest zoom: 0.25 is 1/1.25 to 1.25 times the size.
        aspect: Largest change of the aspect ratio, as in `scale`.
        blur: Probability of a Gaussian blur.
        outline: Probability of dark lines along edges.
        brightness: 0.4 is 0.6 to 1.4 times the brightness.
        contrast: The same for the difference from the mean.
        saturation: The same for the difference from gray.
        tint: The same for each channel's difference from white, which stays white.
        grayscale: Probability of removing color.
        channel_shuffle: Probability of permuting the channels.
        erase: Probability of a rectangle in the image's mean color, up to a third of each side.

    Raises:
        ValueError: If a strength is negative or not finite.
    """

    crop: float = 0.0
    flip: float = 0.0
    rotate: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    aspect: float = 0.0
    blur: float = 0.0
    outline: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0
    grayscale: float = 0.0
    channel_shuffle: float = 0.0
    erase: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"augmentation {name}={value}: expected 0 (off) or more")

    @property
    def has_affine(self) -> bool:
        """Return True if pixels must be interpolated."""
        return bool(self.crop or self.rotate or self.scale or self.aspect)

    @property
    def has_color_jitter(self) -> bool:
        """Return True if colors change pixel by pixel."""
        return any(
            (
                self.brightness,
                self.contrast,
                self.saturation,
                self.tint,
                self.grayscale,
                self.channel_shuffle,
            )
        )

    @property
    def has_pixel_ops(self) -> bool:
        """Return True if pixel values change, not only their positions."""
        return self.has_color_jitter or any((self.blur, self.outline, self.erase))


def sample_uniform(n: int, limit: float, rng: torch.Generator) -> Float[Tensor, "n"]:
    """Return n uniform random numbers between -limit and limit."""
    return (torch.rand(n, generator=rng) * 2 - 1) * limit


def sample_mask(n: int, probability: float, rng: torch.Generator) -> Bool[Tensor, "n"]:
    """Return n random flags that are True with this probability."""
    return torch.rand(n, generator=rng) < probability


def apply_randomly(
    x: Tensor, probability: float, rng: torch.Generator, transform: Callable[[Tensor], Tensor]
) -> None:
    """Replace each image of x, with this probability, by its transform, in place."""
    selected = sample_mask(len(x), probability, rng).numpy()
    if selected.any():
        images = x.numpy()  # NumPy copies rows three times as fast as torch
        images[selected] = transform(torch.from_numpy(images[selected])).numpy()


# Geometry -----------------------------------------------------------------------------------------


def shift_and_flip(
    x: UInt8[Tensor, "B 3 H H"], side: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> UInt8[Tensor, "B 3 S S"]:
    """Return images shifted by whole pixels and flipped, without interpolation."""
    limit = round(augmentation.shift * side)
    dy, dx = torch.randint(-limit, limit + 1, (2, len(x)), generator=rng)
    x = crop_windows(x, side, dy, dx)
    if augmentation.flip:
        apply_randomly(x, augmentation.flip, rng, flip_horizontal)
    return x


def crop_windows(
    x: UInt8[Tensor, "B 3 H H"], side: int, dy: Int[Tensor, "B"], dx: Int[Tensor, "B"]
) -> UInt8[Tensor, "B 3 S S"]:
    """Return the square of each image that is centered (dy, dx) pixels off the image's center."""
    margin = (x.shape[-1] - side) // 2
    offset = max(int(dy.abs().max()), int(dx.abs().max())) if len(x) else 0
    pixels = x.numpy()
    if offset > margin:
        padding = offset - margin
        pixels = np.pad(
            pixels, ((0, 0), (0, 0), (padding, padding), (padding, padding)), mode="edge"
        )
        margin = offset
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(2, 3))
    crops = windows[np.arange(len(x)), :, margin + dy.numpy(), margin + dx.numpy()]
    return torch.from_numpy(crops).contiguous()


def flip_horizontal(x: Tensor) -> Tensor:
    """Return images with left and right exchanged."""
    return x.flip(-1)


def warp_affine(
    x: Float[Tensor, "B 3 H H"], side: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Return images after all geometric changes, by one bilinear interpolation."""
    matrix = sample_affine(len(x), augmentation, rng) * (side / x.shape[-1])
    grid = F.affine_grid(matrix, [len(x), 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def sample_affine(
    n: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "n 2 3"]:
    """Return random affine maps from output to input coordinates, which are -1..1 on an image."""
    area = crop_aspect = torch.ones(n)
    if augmentation.crop:
        area = 1 - torch.rand(n, generator=rng) * (1 - min(augmentation.crop, 1))
        crop_aspect = torch.exp(sample_uniform(n, math.log(MAX_CROP_ASPECT), rng))
    width = (area * crop_aspect).sqrt().clamp(max=1)
    height = (area / crop_aspect).sqrt().clamp(max=1)
    crop_x = (1 - width) * sample_uniform(n, 1, rng)
    crop_y = (1 - height) * sample_uniform(n, 1, rng)
    shift_x = sample_uniform(n, augmentation.shift, rng)
    shift_y = sample_uniform(n, augmentation.shift, rng)
    center = torch.stack([crop_x, crop_y], 1) + 2 * torch.stack([shift_x, shift_y], 1)
    zoom = torch.exp(sample_uniform(n, math.log1p(augmentation.scale), rng))
    angle = sample_uniform(n, math.radians(augmentation.rotate), rng)
    aspect = torch.exp(sample_uniform(n, math.log1p(augmentation.aspect) / 2, rng))
    direction = torch.where(sample_mask(n, augmentation.flip, rng), -1.0, 1.0)
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    size = torch.stack([width * zoom * aspect * direction, height * zoom / aspect], 1)
    return torch.cat([rotation * size[:, None, :], center[:, :, None]], 2)


# Pixel values -------------------------------------------------------------------------------------


def apply_pixel_ops(
    x: Float[Tensor, "B 3 S S"], augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Return images of 0..255 after blur, color jitter, outlines and erasing; may change x."""
    if augmentation.blur:
        apply_randomly(x, augmentation.blur, rng, gaussian_blur)
    outlined = sample_mask(len(x), augmentation.outline, rng)
    # Edges are detected before colors change, and drawn afterwards.
    edges = sketch_edges(x[outlined], rng) if augmentation.outline else None
    if augmentation.has_color_jitter:
        x = jitter_color(x, augmentation, rng)
    if edges is not None:
        x.numpy()[outlined.numpy()] = torch.minimum(x[outlined], 255 - edges).numpy()
    if augmentation.erase:
        apply_randomly(x, augmentation.erase, rng, partial(erase_rectangle, rng=rng))
    return x


def gaussian_blur(x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Return images after two passes of the binomial filter 1 2 1 in both directions."""
    for _ in range(2):
        padded = F.pad(x, (1, 1, 1, 1), "replicate")
        rows = (padded[..., :-2, :] + padded[..., 2:, :]).add_(padded[..., 1:-1, :], alpha=2)
        x = (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2).div_(16)
    return x


def sketch_edges(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 1 S S"]:
    """Return the darkness, 0..255, of lines along the edges of each image.

    An edge is a jump of any channel within 2 x 2 pixels. Threshold, contrast, darkness and
    thickness of the lines are random for each image.
    """
    after = (0, 1, 0, 1)
    before = (1, 0, 1, 0)
    highest = _pool_2x2(x, torch.maximum, after)
    lowest = _pool_2x2(x, torch.minimum, after)
    jump = (highest - lowest).amax(1, keepdim=True)
    thick = sample_mask(len(x), THICK_OUTLINE_PROBABILITY, rng)[:, None, None, None]
    jump = torch.where(thick, _pool_2x2(jump, torch.maximum, before), jump)
    threshold, gain, darkness = torch.rand(3, len(x), 1, 1, 1, generator=rng)
    lines = ((jump - 255 * (0.05 + 0.25 * threshold)) * (2 + 6 * gain)).clamp(0, 255)
    return lines * (0.6 + 0.4 * darkness)


def _pool_2x2(
    x: Tensor, reduce: Callable[[Tensor, Tensor], Tensor], padding: tuple[int, int, int, int]
) -> Tensor:
    """Reduce 2 x 2 neighborhoods with stride 1; max_pool2d takes 20 times as long."""
    x = F.pad(x, padding, "replicate")
    x = reduce(x[..., 1:], x[..., :-1])
    return reduce(x[..., 1:, :], x[..., :-1, :])


def jitter_color(
    x: Float[Tensor, "B 3 S S"], augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Return images of 0..255 after all color changes, by one matrix and offset per image."""
    pixels = x.flatten(2)
    matrix, offset = sample_color_matrix(len(x), augmentation, rng)
    contrast = (1 + sample_uniform(len(x), augmentation.contrast, rng))[:, None, None]
    mean = (matrix @ pixels.mean(2, keepdim=True) + offset).mean(1, keepdim=True)
    jittered = torch.baddbmm(contrast * offset + (1 - contrast) * mean, contrast * matrix, pixels)
    return jittered.clamp_(0, 255).view(x.shape)


def sample_color_matrix(
    n: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 1"]]:
    """Return random color matrices and offsets.

    They shuffle channels, then change saturation (or remove color), tint and brightness.
    """
    luma = torch.tensor(LUMA_WEIGHTS).expand(3, 3)
    permutation = torch.rand(n, 3, generator=rng).argsort(1)
    shuffled = sample_mask(n, augmentation.channel_shuffle, rng)[:, None]
    permutation = torch.where(shuffled, permutation, torch.arange(3))
    saturation = 1 + sample_uniform(n, augmentation.saturation, rng)
    saturation = saturation.masked_fill(sample_mask(n, augmentation.grayscale, rng), 0)
    saturation = saturation[:, None, None]
    tint = 1 + sample_uniform(3 * n, augmentation.tint, rng).view(n, 3, 1)
    brightness = (1 + sample_uniform(n, augmentation.brightness, rng))[:, None, None]
    matrix = brightness * tint * (saturation * torch.eye(3) + (1 - saturation) * luma)
    offset = brightness * (1 - tint) * 255
    return matrix @ torch.eye(3)[permutation], offset


def erase_rectangle(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Return images with a random rectangle filled with the image's mean color.

    Its sides are an eighth to a third of the image's side.
    """
    side = x.shape[-1]
    position = torch.arange(side)
    length = (side * (1 / 8 + torch.rand(2, len(x), 1, generator=rng) * (1 / 3 - 1 / 8))).ceil()
    start = ((side - length + 1) * torch.rand(2, len(x), 1, generator=rng)).floor()
    inside = (position >= start) & (position < start + length)
    rectangle = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(rectangle, x.mean((2, 3), keepdim=True), x)
