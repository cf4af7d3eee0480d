"""Whole batches of pictures changed at random: one affine map for place, one for colour, no Python per picture.

    B batch   H side as stored   S side a model takes   P pixels of a picture

What lies outside a picture repeats its border. A change is off at 0; each picture of a batch draws its own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

LUMA_WEIGHTS = (0.299, 0.587, 0.114)  # how bright red, green and blue look (BT.601)
MAX_CROP_ASPECT = 4 / 3  # a random crop is stretched at most this much either way


@dataclass(frozen=True)
class ImageAugmentation:
    """How far a batch may be changed. Place is drawn first, then blur, colour, lines, holes."""

    crop: float = 0.0  # random resized crop: the smallest share of the area that is kept
    flip: float = 0.0  # chance of left and right changing places
    rotate: float = 0.0  # degrees, either way
    shift: float = 0.0  # share of the side, either way, in both directions
    scale: float = 0.0  # 0.25: between 1/1.25 and 1.25 times as large
    aspect: float = 0.0  # the same of width against height
    blur: float = 0.0  # chance of a softened picture
    outline: float = 0.0  # chance of dark lines drawn along the edges
    brightness: float = 0.0  # 0.4: between 0.6 and 1.4 times as bright
    contrast: float = 0.0  # the same of the distance from the mean
    saturation: float = 0.0  # the same of the distance from grey
    tint: float = (
        0.0  # the same of each channel's distance from white: paper stays white, inks change
    )
    grayscale: float = 0.0  # chance of no colour
    channel_shuffle: float = 0.0  # chance of red, green and blue changing places
    erase: float = (
        0.0  # chance of a rectangle, up to a third of each side, in the picture's mean colour
    )

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"augmentation {name}={value}: expected 0 (off) or more")

    @property
    def has_affine(self) -> bool:
        """True where pixels land between pixels."""
        return bool(self.crop or self.rotate or self.scale or self.aspect)

    @property
    def has_color_jitter(self) -> bool:
        """True where each pixel changes by its colour alone."""
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
        """True where pixels change in any way but their place."""
        return self.has_color_jitter or any((self.blur, self.outline, self.erase))


def sample_uniform(n: int, limit: float, rng: torch.Generator) -> Float[Tensor, " n"]:
    """n numbers between -reach and reach."""
    return (torch.rand(n, generator=rng) * 2 - 1) * limit


def sample_mask(n: int, probability: float, rng: torch.Generator) -> Tensor:
    """n times True with this chance."""
    return torch.rand(n, generator=rng) < probability


def crop_windows(
    x: UInt8[Tensor, "B 3 H H"], side: int, dy: Int[Tensor, " B"], dx: Int[Tensor, " B"]
) -> UInt8[Tensor, "B 3 S S"]:
    """From each picture the square of `side` pixels whose middle is (dy, dx) pixels below and right of its own."""
    spare = (x.shape[-1] - side) // 2
    far = max(int(dy.abs().max()), int(dx.abs().max())) if len(x) else 0
    pixels = x.numpy()
    if far > spare:
        wide = far - spare
        pixels, spare = np.pad(pixels, ((0, 0), (0, 0), (wide, wide), (wide, wide)), "edge"), far
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(2, 3))
    found = windows[
        np.arange(len(x)), :, spare + dy.numpy(), spare + dx.numpy()
    ]  # laid out as x is
    return torch.from_numpy(found).contiguous()


def apply_randomly(
    x: Tensor, probability: float, rng: torch.Generator, transform: Callable[[Tensor], Tensor]
) -> None:
    """Put act(pictures) in the place of those pictures of x that chance picks."""
    which = sample_mask(len(x), probability, rng).numpy()
    if which.any():
        x.numpy()[which] = transform(
            torch.from_numpy(x.numpy()[which])
        ).numpy()  # numpy copies rows 3 times as fast


def shift_and_flip(
    x: UInt8[Tensor, "B 3 H H"], side: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> UInt8[Tensor, "B 3 S S"]:
    """Shift by whole pixels and flip: exact, and quick."""
    reach = round(augmentation.shift * side)
    dy, dx = torch.randint(-reach, reach + 1, (2, len(x)), generator=rng)
    x = crop_windows(x, side, dy, dx)
    if augmentation.flip:
        apply_randomly(x, augmentation.flip, rng, flip_horizontal)
    return x


def flip_horizontal(x: Tensor) -> Tensor:
    """Left and right exchanged."""
    return x.flip(-1)


def sample_affine(
    n: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "n 2 3"]:
    """Where each place of the new picture is taken from; a picture reaches from -1 to 1 both ways."""
    ones = torch.ones(n)
    area = (
        1 - torch.rand(n, generator=rng) * (1 - min(augmentation.crop, 1))
        if augmentation.crop
        else ones
    )
    aspect = (
        torch.exp(sample_uniform(n, math.log(MAX_CROP_ASPECT), rng)) if augmentation.crop else ones
    )  # of the crop
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    place = torch.stack(
        [(1 - wide) * sample_uniform(n, 1, rng), (1 - high) * sample_uniform(n, 1, rng)], 1
    )
    place = place + 2 * torch.stack(
        [sample_uniform(n, augmentation.shift, rng), sample_uniform(n, augmentation.shift, rng)], 1
    )
    zoom = torch.exp(sample_uniform(n, math.log1p(augmentation.scale), rng))
    angle = sample_uniform(n, math.radians(augmentation.rotate), rng)
    wider = torch.exp(
        sample_uniform(n, math.log1p(augmentation.aspect) / 2, rng)
    )  # of what is shown
    left = torch.where(sample_mask(n, augmentation.flip, rng), -1.0, 1.0)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    size = torch.stack([wide * zoom * wider * left, high * zoom / wider], 1)
    return torch.cat([turn * size[:, None, :], place[:, :, None]], 2)


def warp_affine(
    x: Float[Tensor, "B 3 H H"], side: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Every change of place at once: one bilinear look-up."""
    where = sample_affine(len(x), augmentation, rng) * (side / x.shape[-1])
    grid = F.affine_grid(where, [len(x), 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def gaussian_blur(x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Neighbours mixed with the weights 1 2 1, down and across, twice."""
    for _ in range(2):
        wide = F.pad(x, (1, 1, 1, 1), "replicate")
        rows = (wide[..., :-2, :] + wide[..., 2:, :]).add_(wide[..., 1:-1, :], alpha=2)
        x = (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2).div_(16)
    return x


def sketch_edges(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 1 S S"]:
    """How dark a pen draws along the edges of each picture, 0..255: where any colour jumps within 2 x 2 pixels.

    From picture to picture the pen is thin or thick, and takes note of fainter jumps or of strong ones only.
    """

    def window(x: Tensor, most: Callable[[Tensor, Tensor], Tensor], pad: list[int]) -> Tensor:
        x = F.pad(x, pad, "replicate")  # max_pool2d takes 20 times as long as shifted comparisons
        x = most(x[..., 1:], x[..., :-1])
        return most(x[..., 1:, :], x[..., :-1, :])

    after, before = [0, 1, 0, 1], [1, 0, 1, 0]
    jump = (window(x, torch.maximum, after) - window(x, torch.minimum, after)).amax(1, keepdim=True)
    thick = sample_mask(len(x), 0.3, rng)[:, None, None, None]
    jump = torch.where(thick, window(jump, torch.maximum, before), jump)
    faintest, gain, dark = torch.rand(3, len(x), 1, 1, 1, generator=rng)
    return ((jump - 255 * (0.05 + 0.25 * faintest)) * (2 + 6 * gain)).clamp(0, 255) * (
        0.6 + 0.4 * dark
    )


def sample_color_matrix(
    n: int, augmentation: ImageAugmentation, rng: torch.Generator
) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 1"]]:
    """What each colour is multiplied by and what is added: shuffle, then saturation and grey, tint, brightness."""
    luma = torch.tensor(LUMA_WEIGHTS).expand(3, 3)
    orders = torch.rand(n, 3, generator=rng).argsort(1)
    orders = torch.where(
        sample_mask(n, augmentation.channel_shuffle, rng)[:, None], orders, torch.arange(3)
    )
    vivid = (1 + sample_uniform(n, augmentation.saturation, rng)).masked_fill(
        sample_mask(n, augmentation.grayscale, rng), 0
    )[:, None, None]
    ink = 1 + sample_uniform(3 * n, augmentation.tint, rng).view(n, 3, 1)
    bright = (1 + sample_uniform(n, augmentation.brightness, rng))[:, None, None]
    matrix = bright * ink * (vivid * torch.eye(3) + (1 - vivid) * luma)
    return matrix @ torch.eye(3)[orders], bright * (1 - ink) * 255


def jitter_color(
    x: Float[Tensor, "B 3 S S"], augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Every change of colour at once: one matrix and one offset a picture. Values stay in 0..255."""
    flat, (matrix, offset) = x.flatten(2), sample_color_matrix(len(x), augmentation, rng)
    keep = (1 + sample_uniform(len(x), augmentation.contrast, rng))[:, None, None]
    middle = (matrix @ flat.mean(2, keepdim=True) + offset).mean(1, keepdim=True)
    return (
        torch.baddbmm(keep * offset + (1 - keep) * middle, keep * matrix, flat)
        .clamp_(0, 255)
        .view(x.shape)
    )


def erase_rectangle(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """A rectangle of an eighth to a third of each side, somewhere, filled with the picture's mean colour."""
    side, place = x.shape[-1], torch.arange(x.shape[-1])
    long = (side * (1 / 8 + torch.rand(2, len(x), 1, generator=rng) * (1 / 3 - 1 / 8))).ceil()
    start = ((side - long + 1) * torch.rand(2, len(x), 1, generator=rng)).floor()
    inside = (place >= start) & (place < start + long)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole, x.mean((2, 3), keepdim=True), x)


def apply_pixel_ops(
    x: Float[Tensor, "B 3 S S"], augmentation: ImageAugmentation, rng: torch.Generator
) -> Float[Tensor, "B 3 S S"]:
    """Blur, colour, outlines on top, holes, on values of 0..255; x itself may change."""
    if augmentation.blur:
        apply_randomly(x, augmentation.blur, rng, gaussian_blur)
    lined = sample_mask(len(x), augmentation.outline, rng)
    lines = (
        sketch_edges(x[lined], rng) if augmentation.outline else None
    )  # seen before colours change, drawn after
    if augmentation.has_color_jitter:
        x = jitter_color(x, augmentation, rng)
    if lines is not None:
        x.numpy()[lined.numpy()] = torch.minimum(x[lined], 255 - lines).numpy()
    if augmentation.erase:
        apply_randomly(x, augmentation.erase, rng, partial(erase_rectangle, rng=rng))
    return x
