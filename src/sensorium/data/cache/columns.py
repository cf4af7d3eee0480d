"""Columns of prepared values, from which a batch is one gather.

N rows   B batch   C captions   I token ids of all captions   H side of an image as stored
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Int, Int32
from torch import Tensor

from sensorium.data.cache.image_cache import ImageCache
from sensorium.modalities.base import Modality
from sensorium.modalities.image import Image
from sensorium.modalities.text import Text
from sensorium.nn.tokens import ColumnKey

Augment = Mapping[ColumnKey, Mapping[str, float]]  # column -> transform -> strength


@runtime_checkable
class ColumnStore(Protocol):
    """The prepared values of one column.

    Attributes:
        valid: the rows that have a value.
        errors: row -> why its value could not be read.
    """

    valid: Bool[np.ndarray, " N"]
    errors: dict[int, str]

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,
    ) -> Tensor:
        """Return the values of some rows.

        Args:
            rows: row numbers.
            rng: source of random choices; None: no augmentation, and the first caption.
            augment: the strength of each transform.
            group: the group of each row; rows of one group make the same choice of caption. None:
                each its own.
        """
        ...


class ImageColumn:
    """Decoded images, memory-mapped from disk.

    Args:
        image: the settings of the column.
        cache: the images.

    Attributes:
        fingerprint: a hash of the images and of how they were decoded.
    """

    def __init__(self, image: Image, cache: ImageCache):
        self.image = image
        self.pixels = cache.pixels
        self.fingerprint = cache.fingerprint
        self.valid = np.ones(len(cache.pixels), bool)
        self.valid[list(cache.errors)] = False
        self.errors = {row: error for row, error in cache.errors.items() if error}

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,  # noqa: ARG002 - as in ColumnStore
    ) -> Tensor:
        """Return the images of some rows, augmented and normalized."""
        return self.image.preprocess(torch.from_numpy(self.pixels[rows]), rng, **augment)


class TextColumn:
    """The token ids of all captions, end to end; the captions of a row are neighbours.

    Caption c is ids[token_offsets[c] : token_offsets[c + 1]]. The first caption of row n is
    caption_offsets[n].

    Args:
        text: the settings of the column.
        ids: the token ids.
        lengths: the number of tokens in each caption.
        caption_counts: the number of captions in each row.
        errors: row -> why its captions could not be read.
    """

    def __init__(
        self,
        text: Text,
        ids: Int32[np.ndarray, " I"],
        lengths: Int[np.ndarray, " C"],
        caption_counts: Int[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.text = text
        self.ids = ids
        self.lengths = np.append(lengths, 0)
        self.token_offsets = np.append(0, lengths.cumsum())
        self.caption_counts = caption_counts
        self.caption_offsets = caption_counts.cumsum() - caption_counts
        self.valid = caption_counts > 0
        self.errors = errors

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,
    ) -> Int[Tensor, "B *K T"]:
        """Return the captions of some rows, padded to the longest.

        Args:
            rows: row numbers.
            rng: the captions are sampled; None: the first caption of each row, without
                augmentation.
            augment: "captions" is the number of captions per row, spread evenly over its list from
                a random start; the rest is for `Text.augment`.
            group: the group of each row; rows of one group use the same positions in their lists.
        """
        transforms = {name: value for name, value in augment.items() if name != "captions"}
        num_captions = int(augment.get("captions", 1)) if rng is not None else 1
        captions = self._choose_captions(rows, rng, num_captions, group)
        is_present = (self.caption_counts[rows] > 0).repeat(num_captions)
        ids = self._pad_ids(captions.reshape(-1), is_present)
        if rng is not None and transforms:
            ids = self.text.augment(ids, rng, **transforms)
        return ids.unflatten(0, (len(rows), num_captions)) if num_captions > 1 else ids

    def _choose_captions(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        num_captions: int,
        group: Int[np.ndarray, " B"] | None,
    ) -> Int[np.ndarray, "B K"]:
        """Return the numbers of some captions of each row; its first one without a generator."""
        first = self.caption_offsets[rows, None]
        if rng is None:
            return first
        start = torch.rand(len(rows), generator=rng).double().numpy()[:, None]
        if group is not None:
            start = start[np.unique(group, return_inverse=True)[1]]
        position = (start + np.arange(num_captions)) / num_captions  # in the row's list, 0 to 1
        return first + (position * self.caption_counts[rows, None]).astype(np.int64)

    def _pad_ids(
        self, captions: Int[np.ndarray, " C"], is_present: Bool[np.ndarray, " C"]
    ) -> Int[Tensor, "C T"]:
        """Return the ids of some captions, padded to the longest; padding where one is missing."""
        lengths = self.lengths[captions] * is_present
        position = np.arange(max(1, lengths.max(initial=0)))
        is_token = position < lengths[:, None]
        ids = np.full(is_token.shape, self.text.pad, np.int64)
        ids[is_token] = self.ids[(self.token_offsets[captions][:, None] + position)[is_token]]
        return torch.from_numpy(ids)


class ArrayColumn:
    """Values of one shape: numbers, classes, dates, tags. A missing one is zero.

    Args:
        modality: the settings of the column.
        values: the values, whose first axis is the rows.
        valid: the rows that have a value.
        errors: row -> why its value could not be read.
    """

    def __init__(
        self,
        modality: Modality,
        values: np.ndarray,
        valid: Bool[np.ndarray, " N"],
        errors: dict[int, str],
    ):
        self.modality = modality
        self.values = values
        self.valid = valid
        self.errors = errors

    def batch(
        self,
        rows: Int[np.ndarray, " B"],
        rng: torch.Generator | None,
        augment: Mapping[str, float],
        group: Int[np.ndarray, " B"] | None = None,  # noqa: ARG002 - as in ColumnStore
    ) -> Tensor:
        """Return the values of some rows, augmented."""
        batch = self.modality.collate([*map(np.asarray, self.values[rows])])
        if rng is None or not augment:
            return batch
        return self.modality.augment(batch, rng, **augment)
