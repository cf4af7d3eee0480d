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

from sensorium.data.cache import Pictures, Prepared, Source
from sensorium.data.loader import generator
from sensorium.data.once import once
from sensorium.data.schema import Column, Schema
from sensorium.modalities.codes import PictureCodes
from sensorium.modalities.image import Image

VERSION = 1                             # of what coding gives: another version codes anew
PIECE = 256                             # pictures coded at a time


@dataclass(frozen=True)
class Coder:
    """A trained autoencoder that learns no more, how its pictures are read, and the fingerprint of its weights."""

    model: PictureCodes
    image: Image
    fingerprint: str

    @property
    def vocab(self) -> int:
        """K: every code is below it."""
        return self.model.vocab

    @property
    def side(self) -> int:
        """h = w: rows and columns of codes."""
        return self.model.side

    @torch.inference_mode()
    def pictures(self, ids: Int[Tensor, "B h w"]) -> list[PIL.Image.Image]:
        """What codes show."""
        return [self.image.show(picture) for picture in self.model.eval().decode(ids)]


class Coded:
    """The codes of a picture column. With an rng, a batch takes each row's codes from one of the copies."""

    def __init__(self, ids: Int32[Tensor, "C N h w"], pictures: Pictures):
        self.ids, self.valid, self.wrong = ids, pictures.valid, pictures.wrong

    def batch(self, rows: Int[np.ndarray, " B"], rng: torch.Generator | None, how: Mapping[str, float]) -> Tensor:
        which = torch.randint(len(self.ids), (len(rows),), generator=rng) if rng is not None else 0
        return self.ids[which, torch.from_numpy(rows)].long()


def coded(coder: Coder, dataset: Source, column: str, *, copies: int = 1,
          change: Mapping[str, float] | None = None, quiet: bool = False) -> Coded:
    """The codes of every picture of a column, from disk if these pictures have met this coder before.

    copies: how many times each picture is coded; the first is unchanged, the others as `change` says (fields of
    `augment.Change`, as {"flip": 0.5}), the same each time. Raises SensoriumError as `Prepared` does.
    """
    schema = Schema({column: Column(column, coder.image)})
    pictures = Prepared(dataset, schema, (column,), max_bad=1.0, quiet=quiet).columns[column]
    assert isinstance(pictures, Pictures)
    asked = [VERSION, coder.fingerprint, pictures.name, coder.image.to_json(), copies, dict(change or {})]
    ids = once("codes", asked, lambda: _computed(coder, pictures, copies, change or {}), f"coding {column}",
               Console(stderr=True, quiet=quiet))
    return Coded(ids, pictures)


@torch.inference_mode()
def _computed(coder: Coder, pictures: Pictures, copies: int, change: Mapping[str, float]) -> Int32[Tensor, "C N h w"]:
    """Copy by copy, PIECE rows at a time."""
    coder.model.eval()
    rows, side = len(pictures.pixels), coder.side
    ids = torch.zeros(copies, rows, side, side, dtype=torch.int32)
    for copy in range(copies):
        for start in range(0, rows, PIECE):
            part = np.arange(start, min(start + PIECE, rows))
            rng, how = (generator(copy, start), change) if copy else (None, {})
            ids[copy, part] = coder.model.encode(pictures.batch(part, rng, how)).int()
    return ids
