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

LUMA = (0.299, 0.587, 0.114)            # how bright red, green and blue look (BT.601)
ASPECT = 4 / 3                          # a random crop is stretched at most this much either way


@dataclass(frozen=True)
class Change:
    """How far a batch may be changed. Place is drawn first, then blur, colour, lines, holes."""

    crop: float = 0.0           # random resized crop: the smallest share of the area that is kept
    flip: float = 0.0           # chance of left and right changing places
    rotate: float = 0.0         # degrees, either way
    shift: float = 0.0          # share of the side, either way, in both directions
    scale: float = 0.0          # 0.25: between 1/1.25 and 1.25 times as large
    aspect: float = 0.0         # the same of width against height
    blur: float = 0.0           # chance of a softened picture
    outline: float = 0.0        # chance of dark lines drawn along the edges
    brightness: float = 0.0     # 0.4: between 0.6 and 1.4 times as bright
    contrast: float = 0.0       # the same of the distance from the mean
    saturation: float = 0.0     # the same of the distance from grey
    tint: float = 0.0           # the same of each channel's distance from white: paper stays white, inks change
    grey: float = 0.0           # chance of no colour
    shuffle: float = 0.0        # chance of red, green and blue changing places
    erase: float = 0.0          # chance of a rectangle, up to a third of each side, in the picture's mean colour

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"augmentation {name}={value}: expected 0 (off) or more")

    @property
    def bends(self) -> bool:
        """True where pixels land between pixels."""
        return bool(self.crop or self.rotate or self.scale or self.aspect)

    @property
    def colours(self) -> bool:
        """True where each pixel changes by its colour alone."""
        return any((self.brightness, self.contrast, self.saturation, self.tint, self.grey, self.shuffle))

    @property
    def paints(self) -> bool:
        """True where pixels change in any way but their place."""
        return self.colours or any((self.blur, self.outline, self.erase))


def spread(n: int, reach: float, rng: torch.Generator) -> Float[Tensor, " n"]:
    """n numbers between -reach and reach."""
    return (torch.rand(n, generator=rng) * 2 - 1) * reach


def chosen(n: int, chance: float, rng: torch.Generator) -> Tensor:
    """n times True with this chance."""
    return torch.rand(n, generator=rng) < chance


def cut(x: UInt8[Tensor, "B 3 H H"], side: int, dy: Int[Tensor, " B"],
        dx: Int[Tensor, " B"]) -> UInt8[Tensor, "B 3 S S"]:
    """From each picture the square of `side` pixels whose middle is (dy, dx) pixels below and right of its own."""
    spare = (x.shape[-1] - side) // 2
    far = max(int(dy.abs().max()), int(dx.abs().max())) if len(x) else 0
    pixels = x.numpy()
    if far > spare:
        wide = far - spare
        pixels, spare = np.pad(pixels, ((0, 0), (0, 0), (wide, wide), (wide, wide)), "edge"), far
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (side, side), axis=(2, 3))
    found = windows[np.arange(len(x)), :, spare + dy.numpy(), spare + dx.numpy()]       # laid out as x is
    return torch.from_numpy(found).contiguous()


def some(x: Tensor, chance: float, rng: torch.Generator, act: Callable[[Tensor], Tensor]) -> None:
    """Put act(pictures) in the place of those pictures of x that chance picks."""
    which = chosen(len(x), chance, rng).numpy()
    if which.any():
        x.numpy()[which] = act(torch.from_numpy(x.numpy()[which])).numpy()      # numpy copies rows 3 times as fast


def moved(x: UInt8[Tensor, "B 3 H H"], side: int, how: Change, rng: torch.Generator) -> UInt8[Tensor, "B 3 S S"]:
    """Shift by whole pixels and flip: exact, and quick."""
    reach = round(how.shift * side)
    dy, dx = torch.randint(-reach, reach + 1, (2, len(x)), generator=rng)
    x = cut(x, side, dy, dx)
    if how.flip:
        some(x, how.flip, rng, mirrored)
    return x


def mirrored(x: Tensor) -> Tensor:
    """Left and right exchanged."""
    return x.flip(-1)


def affine(n: int, how: Change, rng: torch.Generator) -> Float[Tensor, "n 2 3"]:
    """Where each place of the new picture is taken from; a picture reaches from -1 to 1 both ways."""
    ones = torch.ones(n)
    area = 1 - torch.rand(n, generator=rng) * (1 - min(how.crop, 1)) if how.crop else ones
    aspect = torch.exp(spread(n, math.log(ASPECT), rng)) if how.crop else ones          # of the crop
    wide, high = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    place = torch.stack([(1 - wide) * spread(n, 1, rng), (1 - high) * spread(n, 1, rng)], 1)
    place = place + 2 * torch.stack([spread(n, how.shift, rng), spread(n, how.shift, rng)], 1)
    zoom = torch.exp(spread(n, math.log1p(how.scale), rng))
    angle = spread(n, math.radians(how.rotate), rng)
    wider = torch.exp(spread(n, math.log1p(how.aspect) / 2, rng))                       # of what is shown
    left = torch.where(chosen(n, how.flip, rng), -1.0, 1.0)
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], 1).view(n, 2, 2)
    size = torch.stack([wide * zoom * wider * left, high * zoom / wider], 1)
    return torch.cat([turn * size[:, None, :], place[:, :, None]], 2)


def bent(x: Float[Tensor, "B 3 H H"], side: int, how: Change, rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Every change of place at once: one bilinear look-up."""
    where = affine(len(x), how, rng) * (side / x.shape[-1])
    grid = F.affine_grid(where, [len(x), 3, side, side], align_corners=False)
    return F.grid_sample(x, grid, mode="bilinear", padding_mode="border", align_corners=False)


def softened(x: Float[Tensor, "B 3 S S"]) -> Float[Tensor, "B 3 S S"]:
    """Neighbours mixed with the weights 1 2 1, down and across, twice."""
    for _ in range(2):
        wide = F.pad(x, (1, 1, 1, 1), "replicate")
        rows = (wide[..., :-2, :] + wide[..., 2:, :]).add_(wide[..., 1:-1, :], alpha=2)
        x = (rows[..., :-2] + rows[..., 2:]).add_(rows[..., 1:-1], alpha=2).div_(16)
    return x


def strokes(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 1 S S"]:
    """How dark a pen draws along the edges of each picture, 0..255: where any colour jumps within 2 x 2 pixels.

    From picture to picture the pen is thin or thick, and takes note of fainter jumps or of strong ones only.
    """
    def window(x: Tensor, most: Callable[[Tensor, Tensor], Tensor], pad: list[int]) -> Tensor:
        x = F.pad(x, pad, "replicate")                      # max_pool2d takes 20 times as long as shifted comparisons
        x = most(x[..., 1:], x[..., :-1])
        return most(x[..., 1:, :], x[..., :-1, :])

    after, before = [0, 1, 0, 1], [1, 0, 1, 0]
    jump = (window(x, torch.maximum, after) - window(x, torch.minimum, after)).amax(1, keepdim=True)
    thick = chosen(len(x), 0.3, rng)[:, None, None, None]
    jump = torch.where(thick, window(jump, torch.maximum, before), jump)
    faintest, gain, dark = torch.rand(3, len(x), 1, 1, 1, generator=rng)
    return ((jump - 255 * (0.05 + 0.25 * faintest)) * (2 + 6 * gain)).clamp(0, 255) * (0.6 + 0.4 * dark)


def mixing(n: int, how: Change, rng: torch.Generator) -> tuple[Float[Tensor, "n 3 3"], Float[Tensor, "n 3 1"]]:
    """What each colour is multiplied by and what is added: shuffle, then saturation and grey, tint, brightness."""
    luma = torch.tensor(LUMA).expand(3, 3)
    orders = torch.rand(n, 3, generator=rng).argsort(1)
    orders = torch.where(chosen(n, how.shuffle, rng)[:, None], orders, torch.arange(3))
    vivid = (1 + spread(n, how.saturation, rng)).masked_fill(chosen(n, how.grey, rng), 0)[:, None, None]
    ink = 1 + spread(3 * n, how.tint, rng).view(n, 3, 1)
    bright = (1 + spread(n, how.brightness, rng))[:, None, None]
    matrix = bright * ink * (vivid * torch.eye(3) + (1 - vivid) * luma)
    return matrix @ torch.eye(3)[orders], bright * (1 - ink) * 255


def coloured(x: Float[Tensor, "B 3 S S"], how: Change, rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Every change of colour at once: one matrix and one offset a picture. Values stay in 0..255."""
    flat, (matrix, offset) = x.flatten(2), mixing(len(x), how, rng)
    keep = (1 + spread(len(x), how.contrast, rng))[:, None, None]
    middle = (matrix @ flat.mean(2, keepdim=True) + offset).mean(1, keepdim=True)
    return torch.baddbmm(keep * offset + (1 - keep) * middle, keep * matrix, flat).clamp_(0, 255).view(x.shape)


def holed(x: Float[Tensor, "B 3 S S"], rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """A rectangle of an eighth to a third of each side, somewhere, filled with the picture's mean colour."""
    side, place = x.shape[-1], torch.arange(x.shape[-1])
    long = (side * (1 / 8 + torch.rand(2, len(x), 1, generator=rng) * (1 / 3 - 1 / 8))).ceil()
    start = ((side - long + 1) * torch.rand(2, len(x), 1, generator=rng)).floor()
    inside = (place >= start) & (place < start + long)
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole, x.mean((2, 3), keepdim=True), x)


def painted(x: Float[Tensor, "B 3 S S"], how: Change, rng: torch.Generator) -> Float[Tensor, "B 3 S S"]:
    """Blur, colour, outlines on top, holes, on values of 0..255; x itself may change."""
    if how.blur:
        some(x, how.blur, rng, softened)
    lined = chosen(len(x), how.outline, rng)
    lines = strokes(x[lined], rng) if how.outline else None                 # seen before colours change, drawn after
    if how.colours:
        x = coloured(x, how, rng)
    if lines is not None:
        x.numpy()[lined.numpy()] = torch.minimum(x[lined], 255 - lines).numpy()
    if how.erase:
        some(x, how.erase, rng, partial(holed, rng=rng))
    return x
