"""Pictures: decode safely, change whole batches at random, cut into patches.

    B batch   H side as stored   S side a model takes   T tokens   D width of a token
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
from sensorium.kernels import Linear, drawn
from sensorium.modalities.augment import Change, bent, moved, painted
from sensorium.modalities.decode import PIXELS, decode, resized, whole
from sensorium.modalities.modality import checked, settings
from sensorium.tokens import Tokens, grid

FILTERS = tuple(kind.name.lower() for kind in PIL.Image.Resampling)
SQUARES, EXACT = ("crop", "pad", "trim", "stretch"), ("crop", "centre", "stretch")
SAMPLE = 512                            # pictures looked at to learn mean and spread


@dataclass(frozen=True)
class Image:
    """Settings of a picture column.

    size: side of what a model sees. square: how a picture becomes square, "crop" (shorter side to fit, centre kept),
    "pad" (longer side to fit, white beside), "trim" (a plain border cut away, then pad) or "stretch". margin: pixels
    stored beyond `size`, which shifts and turns bring in before they repeat the border. mean, std: of each channel, on
    a scale of 0..1. resample, edge: for a published model, which wants its own pixels: by this filter (bicubic,
    bilinear, ...) without any shortcut, and before "crop" the shorter side at so many pixels (0: at `size`). There is
    "centre" then too, "crop" as torchvision rounds it.
    """

    kind: ClassVar[str] = "image"
    size: int = 64
    square: str = "crop"
    margin: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = ""
    edge: int = 0

    def __post_init__(self) -> None:
        if self.square not in (EXACT if self.resample else SQUARES):
            raise SensoriumError(f"image square={self.square!r}: choose one of {', '.join(SQUARES)}; with a resample, "
                                 f"one of {', '.join(EXACT)}.")
        if self.size < 1 or self.margin < 0 or self.side ** 2 > PIXELS:
            raise SensoriumError(f"image size={self.size}, margin={self.margin}: expected a size of 1 pixel or more, "
                                 f"a margin of 0 or more, and at most {PIXELS:,} pixels.")
        if self.resample not in ("", *FILTERS):
            raise SensoriumError(f"image resample={self.resample!r}: choose one of {', '.join(FILTERS)}.")
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SensoriumError("image mean and std need three numbers each, one a channel, every std above 0.")

    @property
    def side(self) -> int:
        """Side of a stored picture."""
        return self.size + self.margin

    def fit(self, values: Iterable[Any]) -> Image:
        """Mean and spread of each channel over a sample of `values`, evenly spaced; unreadable ones are passed over."""
        there = [v for v in values if v is not None]
        loaded = []
        for raw in there[::max(1, -(-len(there) // SAMPLE))]:
            try:
                loaded.append(self.load(raw).reshape(-1, 3))
            except ValueError:
                continue                # quarantined by name where the data are prepared
        if not loaded:
            return self
        pixels = np.stack(loaded) / np.float32(255)
        mean, std = pixels.mean((0, 1), dtype=np.float64), pixels.std((0, 1), dtype=np.float64)
        return replace(self, mean=tuple(mean.round(4).tolist()), std=tuple(std.clip(0.05).round(4).tolist()))

    def load(self, raw: Any, into: UInt8[np.ndarray, "H H 3"] | None = None) -> UInt8[np.ndarray, "H H 3"]:
        """One picture (a path, bytes, a PIL image, an array) decoded, upright, square: side x side.

        into: the array to fill, instead of a new one. Raises ValueError with the reason it cannot be.
        """
        found = (resized(whole(raw), self.side, self.square, max(self.edge, self.side), self.resample)
                 if self.resample else decode(raw, self.side, self.square, into))
        if into is None or found is into:
            return found
        into[...] = found
        return into

    def collate(self, values: Sequence[UInt8[np.ndarray, "H H 3"]]) -> Float[Tensor, "B 3 S S"]:
        """Loaded pictures as a model takes them."""
        stacked = np.stack(values) if len(values) else np.zeros((0, self.side, self.side, 3), np.uint8)
        return self.finish(torch.from_numpy(stacked).permute(0, 3, 1, 2))

    def finish(self, stored: UInt8[Tensor, "B 3 H H"], rng: torch.Generator | None = None,
               **how: float) -> Float[Tensor, "B 3 S S"]:
        """Stored pictures, channels first, as a model takes them: changed at random as `how` says, then normalised.

        how: fields of augment.Change. Without `rng` or `how` the middle `size` pixels, unchanged.
        """
        change = Change(**how) if rng is not None else Change()
        draw = rng if rng is not None else torch.Generator()
        if change.bends:
            x = bent(stored.float(), self.size, change, draw)
        else:
            x = moved(stored, self.size, change, draw)
        if change.paints:
            x = painted(x.float(), change, draw)
        return self._normalised(x)

    def augment(self, batch: Float[Tensor, "B 3 S S"], rng: torch.Generator, **how: float) -> Float[Tensor, "B 3 S S"]:
        """`finish` for a batch that is normalised already: rounded to stored values, changed, normalised again."""
        if not how:
            return batch
        return replace(self, margin=0).finish(self._stored(batch), rng, **how)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n 3 S S"]:
        """n pictures of soft noise, for tests and dry runs."""
        coarse = torch.randint(0, 256, (n, 3, -(-self.size // 8), -(-self.size // 8)), generator=rng, dtype=torch.uint8)
        return self._normalised(coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., :self.size, :self.size])

    def show(self, picture: Float[Tensor, "3 H W"]) -> PIL.Image.Image:
        """A normalised picture back as one to look at."""
        return PIL.Image.fromarray(self._stored(picture[None])[0].permute(1, 2, 0).contiguous().numpy())

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return settings(self)

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> Image:
        return cls(**checked(cls, given))

    def _normalised(self, x: Tensor) -> Float[Tensor, "B 3 S S"]:
        """(x / 255 - mean) / std, 32 pictures at a time so that they stay in the cache: one trip to memory."""
        std = torch.tensor(self.std).view(3, 1, 1)
        gain, offset = 1 / (255 * std), torch.tensor(self.mean).view(3, 1, 1) / std
        out = torch.empty(x.shape)
        for part, pixels in zip(out.split(32), x.split(32), strict=True):
            part.copy_(pixels).mul_(gain).sub_(offset)
        return out

    def _stored(self, x: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
        std, mean = torch.tensor(self.std).view(3, 1, 1), torch.tensor(self.mean).view(3, 1, 1)
        return ((x.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class Patches(nn.Module):
    """Picture → Tokens: square patches, each through one linear layer, plus a learned vector for each place (ViT).

    The first token is learned, stands for no patch, and is where the whole picture is read from.
    """

    def __init__(self, dim: int, size: int, patch: int, *, bias: bool = False):
        super().__init__()
        if size % patch:
            raise ValueError(f"pictures of {size} pixels cannot be cut into patches of {patch}")
        self.patch, self.columns = patch, size // patch
        self.linear = Linear(3 * patch * patch, dim, bias=bias)
        self.whole = drawn(dim, std=dim ** -0.5)
        self.places = drawn(1 + self.columns ** 2, dim, std=dim ** -0.5)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        flat = rearrange(image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch, q=self.patch)
        x = self.linear(flat)
        x = torch.cat([self.whole.to(x.dtype).expand(x.shape[0], 1, -1), x], 1) + self.places.to(x.dtype)
        pos = grid(x[:, 1:], self.columns)
        return Tokens(x, torch.cat([pos.new_zeros(x.shape[0], 1, 3), pos], 1))

    def summary(self, image: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B"]:
        return torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
