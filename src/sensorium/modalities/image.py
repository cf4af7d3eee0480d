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
from sensorium.modalities.base import settings_to_dict, validate_settings
from sensorium.modalities.image_augment import (
    ImageAugmentation,
    apply_pixel_ops,
    shift_and_flip,
    warp_affine,
)
from sensorium.modalities.image_decode import (
    MAX_IMAGE_PIXELS,
    decode_full_image,
    decode_image,
    resize_exact,
)
from sensorium.nn.linear import Linear, normal_parameter
from sensorium.nn.tokens import Tokens, grid_positions

RESAMPLE_FILTERS = tuple(kind.name.lower() for kind in PIL.Image.Resampling)
RESIZE_MODES, EXACT_RESIZE_MODES = ("crop", "pad", "trim", "stretch"), ("crop", "centre", "stretch")
MAX_FIT_SAMPLES = 512  # pictures looked at to learn mean and spread


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
    resize_mode: str = "crop"
    margin: int = 0
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    resample: str = ""
    shortest_edge: int = 0

    def __post_init__(self) -> None:
        if self.resize_mode not in (EXACT_RESIZE_MODES if self.resample else RESIZE_MODES):
            raise SensoriumError(
                f"image square={self.resize_mode!r}: choose one of {', '.join(RESIZE_MODES)}; with a resample, "
                f"one of {', '.join(EXACT_RESIZE_MODES)}."
            )
        if self.size < 1 or self.margin < 0 or self.stored_size**2 > MAX_IMAGE_PIXELS:
            raise SensoriumError(
                f"image size={self.size}, margin={self.margin}: expected a size of 1 pixel or more, "
                f"a margin of 0 or more, and at most {MAX_IMAGE_PIXELS:,} pixels."
            )
        if self.resample not in ("", *RESAMPLE_FILTERS):
            raise SensoriumError(
                f"image resample={self.resample!r}: choose one of {', '.join(RESAMPLE_FILTERS)}."
            )
        if len(self.mean) != 3 or len(self.std) != 3 or min(self.std) <= 0:
            raise SensoriumError(
                "image mean and std need three numbers each, one a channel, every std above 0."
            )

    @property
    def stored_size(self) -> int:
        """Side of a stored picture."""
        return self.size + self.margin

    def fit(self, values: Iterable[Any]) -> Image:
        """Mean and spread of each channel over a sample of `values`, evenly spaced; unreadable ones are passed over."""
        there = [v for v in values if v is not None]
        loaded = []
        for raw in there[:: max(1, -(-len(there) // MAX_FIT_SAMPLES))]:
            try:
                loaded.append(self.load(raw).reshape(-1, 3))
            except ValueError:
                continue  # quarantined by name where the data are prepared
        if not loaded:
            return self
        pixels = np.stack(loaded) / np.float32(255)
        mean, std = pixels.mean((0, 1), dtype=np.float64), pixels.std((0, 1), dtype=np.float64)
        return replace(
            self, mean=tuple(mean.round(4).tolist()), std=tuple(std.clip(0.05).round(4).tolist())
        )

    def load(
        self, raw: Any, out: UInt8[np.ndarray, "H H 3"] | None = None
    ) -> UInt8[np.ndarray, "H H 3"]:
        """One picture (a path, bytes, a PIL image, an array) decoded, upright, square: side x side.

        out: the array to fill, instead of a new one. Raises ValueError with the reason it cannot be.
        """
        found = (
            resize_exact(
                decode_full_image(raw),
                self.stored_size,
                self.resize_mode,
                max(self.shortest_edge, self.stored_size),
                self.resample,
            )
            if self.resample
            else decode_image(raw, self.stored_size, self.resize_mode, out)
        )
        if out is None or found is out:
            return found
        out[...] = found
        return out

    def collate(self, values: Sequence[UInt8[np.ndarray, "H H 3"]]) -> Float[Tensor, "B 3 S S"]:
        """Loaded pictures as a model takes them."""
        stacked = (
            np.stack(values)
            if len(values)
            else np.zeros((0, self.stored_size, self.stored_size, 3), np.uint8)
        )
        return self.preprocess(torch.from_numpy(stacked).permute(0, 3, 1, 2))

    def preprocess(
        self, images: UInt8[Tensor, "B 3 H H"], rng: torch.Generator | None = None, **options: float
    ) -> Float[Tensor, "B 3 S S"]:
        """Stored pictures, channels first, as a model takes them: changed at random as `how` says, then normalised.

        options: fields of augment.Change. Without `rng` or `how` the middle `size` pixels, unchanged.
        """
        change = ImageAugmentation(**options) if rng is not None else ImageAugmentation()
        draw = rng if rng is not None else torch.Generator()
        if change.has_affine:
            x = warp_affine(images.float(), self.size, change, draw)
        else:
            x = shift_and_flip(images, self.size, change, draw)
        if change.has_pixel_ops:
            x = apply_pixel_ops(x.float(), change, draw)
        return self._normalize(x)

    def augment(
        self, batch: Float[Tensor, "B 3 S S"], rng: torch.Generator, **options: float
    ) -> Float[Tensor, "B 3 S S"]:
        """`finish` for a batch that is normalised already: rounded to stored values, changed, normalised again."""
        if not options:
            return batch
        return replace(self, margin=0).preprocess(self._denormalize(batch), rng, **options)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n 3 S S"]:
        """n pictures of soft noise, for tests and dry runs."""
        coarse = torch.randint(
            0, 256, (n, 3, -(-self.size // 8), -(-self.size // 8)), generator=rng, dtype=torch.uint8
        )
        return self._normalize(
            coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)[..., : self.size, : self.size]
        )

    def decode(self, image: Float[Tensor, "3 H W"]) -> PIL.Image.Image:
        """A normalised picture back as one to look at."""
        return PIL.Image.fromarray(
            self._denormalize(image[None])[0].permute(1, 2, 0).contiguous().numpy()
        )

    def to_json(self) -> dict[str, Any]:
        """Plain settings."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Image:
        return cls(**validate_settings(cls, data))

    def _normalize(self, x: Tensor) -> Float[Tensor, "B 3 S S"]:
        """(x / 255 - mean) / std, 32 pictures at a time so that they stay in the cache: one trip to memory."""
        std = torch.tensor(self.std).view(3, 1, 1)
        gain, offset = 1 / (255 * std), torch.tensor(self.mean).view(3, 1, 1) / std
        out = torch.empty(x.shape)
        for part, pixels in zip(out.split(32), x.split(32), strict=True):
            part.copy_(pixels).mul_(gain).sub_(offset)
        return out

    def _denormalize(self, x: Float[Tensor, "B 3 H W"]) -> UInt8[Tensor, "B 3 H W"]:
        std, mean = torch.tensor(self.std).view(3, 1, 1), torch.tensor(self.mean).view(3, 1, 1)
        return ((x.detach().float().cpu() * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)


class PatchEmbedding(nn.Module):
    """Picture → Tokens: square patches, each through one linear layer, plus a learned vector for each place (ViT).

    The first token is learned, stands for no patch, and is where the whole picture is read from.
    """

    def __init__(self, dim: int, image_size: int, patch_size: int, *, bias: bool = False):
        super().__init__()
        if image_size % patch_size:
            raise ValueError(
                f"pictures of {image_size} pixels cannot be cut into patches of {patch_size}"
            )
        self.patch_size, self.grid_size = patch_size, image_size // patch_size
        self.projection = Linear(3 * patch_size * patch_size, dim, bias=bias)
        self.cls_token = normal_parameter(dim, std=dim**-0.5)
        self.position_embedding = normal_parameter(1 + self.grid_size**2, dim, std=dim**-0.5)

    def forward(self, image: Float[Tensor, "B 3 H W"]) -> Tokens:
        flat = rearrange(
            image, "b c (h p) (w q) -> b (h w) (c p q)", p=self.patch_size, q=self.patch_size
        )
        x = self.projection(flat)
        x = torch.cat(
            [self.cls_token.to(x.dtype).expand(x.shape[0], 1, -1), x], 1
        ) + self.position_embedding.to(x.dtype)
        pos = grid_positions(x[:, 1:], self.grid_size)
        return Tokens(x, torch.cat([pos.new_zeros(x.shape[0], 1, 3), pos], 1))

    def pool_index(self, image: Float[Tensor, "B 3 H W"]) -> Int[Tensor, "B"]:
        return torch.zeros(image.shape[0], dtype=torch.long, device=image.device)
