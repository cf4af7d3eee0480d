"""Images as tokens of a frozen image tokenizer, computed once; `dalle` is trained on them.

N rows   C copies, each augmented in its own way   B batch   h, w sides of the token grid

The name of a file is a hash of the images, of how they are read and augmented, and of the
tokenizer's weights.

Example:
    tokenizer = load_frozen_tokenizer("runs/tokenizer")
    derived_columns = {("image", "tokens"): tokenize_images(tokenizer, dataset, "image")}
    ids = batch["image", "tokens"]  # Int [B h w], each below vocab_size
    images = tokenizer.decode_images(ids)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from jaxtyping import Int, Int32
from torch import Tensor

from sensorium.data.batching import iter_batches
from sensorium.data.cache.columns import ImageColumn
from sensorium.data.cache.memoize import memoize_tensor
from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.schema import Column, Schema
from sensorium.io.terminal import SafeConsole
from sensorium.modalities.image import Image
from sensorium.models.image_tokenizer import ImageTokenizer
from sensorium.rng import generator

CACHE_VERSION = 1  # of what a tokenizer returns: another version is computed again
CACHE_FOLDER = "tokens"
BATCH_SIZE = 256  # images tokenized at a time


@dataclass(frozen=True)
class FrozenImageTokenizer:
    """A trained image tokenizer that is not trained further.

    Attributes:
        model: the tokenizer.
        image: how its images are read.
        fingerprint: a hash of its weights.
    """

    model: ImageTokenizer
    image: Image
    fingerprint: str

    @property
    def vocab_size(self) -> int:
        """Number of different tokens; all ids are smaller."""
        return self.model.vocab_size

    @property
    def grid_size(self) -> int:
        """Rows and columns of tokens in an image, h = w."""
        return self.model.grid_size

    @torch.inference_mode()
    def decode_images(self, ids: Int[Tensor, "B h w"]) -> list[PIL.Image.Image]:
        """Return the images that grids of tokens stand for."""
        return [self.image.decode(pixels) for pixels in self.model.eval().decode(ids)]


class ImageTokenColumn:
    """The tokens of an image column, of which there may be several augmented copies.

    Args:
        ids: the tokens of each copy; the first is of the images without augmentation.
        images: the column that was tokenized.
    """

    def __init__(self, ids: Int32[Tensor, "C N h w"], images: ImageColumn):
        self.ids = ids
        self.valid = images.valid
        self.errors = images.errors

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],  # noqa: ARG002 - as in ColumnStore
        group: Int[np.ndarray, " B"] | None = None,  # noqa: ARG002 - as in ColumnStore
    ) -> Tensor:
        """Return the tokens of some rows, of random copies; of the first without a generator."""
        copy = torch.randint(len(self.ids), (len(rows),), generator=rng) if rng is not None else 0
        return self.ids[copy, torch.from_numpy(rows)].long()


def tokenize_images(
    tokenizer: FrozenImageTokenizer,
    dataset: DataSource,
    column: str,
    *,
    num_copies: int = 1,
    augment: Mapping[str, float] | None = None,
    quiet: bool = False,
) -> ImageTokenColumn:
    """Tokenize every image of a column.

    Args:
        tokenizer: the tokenizer.
        dataset: where the images are.
        column: the image column.
        num_copies: how many times each image is tokenized: first as it is, then augmented, the same
            each time.
        augment: the strength of each transform (`ImageAugmentation`), e.g. {"flip": 0.5}.
        quiet: do not report progress on stderr.

    Raises:
        SensoriumError: as `PreparedDataset` does.
    """
    schema = Schema({column: Column(column, tokenizer.image)})
    prepared = PreparedDataset(dataset, schema, (column,), max_invalid_fraction=1.0, quiet=quiet)
    images = prepared.image_column(column)
    augment = dict(augment or {})
    key = [
        CACHE_VERSION,
        tokenizer.fingerprint,
        images.fingerprint,
        tokenizer.image.to_json(),
        num_copies,
        augment,
    ]
    ids = memoize_tensor(
        CACHE_FOLDER,
        key,
        lambda: _compute_tokens(tokenizer, images, num_copies, augment),
        f"tokenizing {column}",
        SafeConsole(stderr=True, quiet=quiet),
    )
    return ImageTokenColumn(ids, images)


@torch.inference_mode()
def _compute_tokens(
    tokenizer: FrozenImageTokenizer,
    images: ImageColumn,
    num_copies: int,
    augment: Mapping[str, float],
) -> Int32[Tensor, "C N h w"]:
    """Tokenize all copies; the generator of a batch depends on its copy and first row."""
    tokenizer.model.eval()
    num_rows = len(images.pixels)
    side = tokenizer.grid_size
    ids = torch.zeros(num_copies, num_rows, side, side, dtype=torch.int32)
    for copy in range(num_copies):
        for rows in iter_batches(np.arange(num_rows), BATCH_SIZE):
            rng = generator(copy, int(rows[0])) if copy else None
            pixels = images.batch(rows, rng, augment if copy else {})
            ids[copy, rows] = tokenizer.model.encode(pixels).int()
    return ids
