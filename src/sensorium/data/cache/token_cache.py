"""Pictures as codes, computed once by a trained autoencoder and mapped from disk: what a later stage learns from.

    N rows   C copies, each changed at random in its own way   B batch   h, w sides of the grid

    coder = sensorium.recipes.codes.frozen("runs/codes")        # in the later stage's recipe:
    Recipe(..., columns=("caption",), derived=lambda data: {("image", "codes"): coded(coder, data, "image")})
    batch["image", "codes"]                                     # in its objective: Int [B h w], each below coder.vocab
    coder.pictures(ids)                                         # in its sampler: pictures to look at

A file's name is a hash of the pictures, of how they are read and changed, and of the autoencoder's weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int, Int32
from rich.console import Console
from torch import Tensor

from sensorium.data.cache.memoize import memoize_tensor
from sensorium.data.cache.prepared import ImageColumn, PreparedDataset, Source
from sensorium.data.schema import Column, Schema
from sensorium.modalities.image import Image
from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.rng import generator

CACHE_VERSION = 1  # of what coding gives: another version codes anew
BATCH_SIZE = 256  # pictures coded at a time


@dataclass(frozen=True)
class FrozenImageTokenizer:
    """A trained autoencoder that learns no more, how its pictures are read, and the fingerprint of its weights."""

    model: ImageTokenizer
    image: Image
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """K: every code is below it."""
        return self.model.vocab

    @property
    def grid_size(self) -> int:
        """h = w: rows and columns of codes."""
        return self.model.grid_size

    @torch.inference_mode()
    def decode_images(self, ids: Int[Tensor, "B h w"]) -> list[PIL.Image.Image]:
        """What codes show."""
        return [self.image.decode(picture) for picture in self.model.eval().decode(ids)]


class ImageTokenColumn:
    """The codes of a picture column. With an rng, a batch takes each row's codes from one of the copies."""

    def __init__(self, ids: Int32[Tensor, "C N h w"], images: ImageColumn):
        self.ids, self.valid, self.errors = ids, images.valid, images.errors

    def batch(
        self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, augment: Mapping[str, float]
    ) -> Tensor:
        which = torch.randint(len(self.ids), (len(rows),), generator=rng) if rng is not None else 0
        return self.ids[which, torch.from_numpy(rows)].long()


def tokenize_images(
    tokenizer: FrozenImageTokenizer,
    dataset: Source,
    column: str,
    *,
    num_copies: int = 1,
    augment: Mapping[str, float] | None = None,
    quiet: bool = False,
) -> ImageTokenColumn:
    """The codes of every picture of a column, from disk if these pictures have met this coder before.

    num_copies: how many times each picture is coded; the first is unchanged, the others as `change` says (fields of
    `augment.Change`, as {"flip": 0.5}), the same each time. Raises SensoriumError as `Prepared` does.
    """
    schema = Schema({column: Column(column, tokenizer.image)})
    pictures = PreparedDataset(
        dataset, schema, (column,), max_invalid_fraction=1.0, quiet=quiet
    ).columns[column]
    assert isinstance(pictures, ImageColumn)
    asked = [
        CACHE_VERSION,
        tokenizer.fingerprint,
        pictures.fingerprint,
        tokenizer.image.to_json(),
        num_copies,
        dict(augment or {}),
    ]
    ids = memoize_tensor(
        "codes",
        asked,
        lambda: _compute_tokens(tokenizer, pictures, num_copies, augment or {}),
        f"coding {column}",
        Console(stderr=True, quiet=quiet),
    )
    return ImageTokenColumn(ids, pictures)


@torch.inference_mode()
def _compute_tokens(
    tokenizer: FrozenImageTokenizer,
    images: ImageColumn,
    num_copies: int,
    augment: Mapping[str, float],
) -> Int32[Tensor, "C N h w"]:
    """Copy by copy, PIECE rows at a time."""
    tokenizer.model.eval()
    rows, side = len(images.pixels), tokenizer.grid_size
    ids = torch.zeros(num_copies, rows, side, side, dtype=torch.int32)
    for copy in range(num_copies):
        for start in range(0, rows, BATCH_SIZE):
            part = np.arange(start, min(start + BATCH_SIZE, rows))
            rng, how = (generator(copy, start), augment) if copy else (None, {})
            ids[copy, part] = tokenizer.model.encode(images.batch(part, rng, how)).int()
    return ids
