"""Multilabel columns: any number of tags per row, such as genres or ingredients.

B batch   K tags of training, plus one for all unseen tags
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sensorium.modalities.base import settings_to_dict, validate_settings


@dataclass(frozen=True)
class Multilabel:
    """Settings of a multilabel column; models get a multi-hot vector.

    Attributes:
        separator: Separator of the tags of a value that is text; a value may also be a list.
        tags: Names of the tags; by default those of the training rows.
        counts: Training rows with each tag.
        rows: Number of training rows.
    """

    kind: ClassVar[str] = "multilabel"
    separator: str = "|"
    tags: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()
    rows: int = 0

    @cached_property
    def _tag_to_index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.tags)}

    def split_tags(self, raw: Any) -> list[str]:
        """Return the distinct tags of one value.

        Raises:
            ValueError: If the value is neither text nor a list of texts.
        """
        parts = raw.split(self.separator) if isinstance(raw, str) else raw
        is_list = isinstance(parts, list | tuple | set | frozenset)
        if not is_list or not all(isinstance(part, str) for part in parts):
            raise ValueError(
                f"expected a list of tags, or tags separated by {self.separator!r}, got "
                f"{type(raw).__name__} {str(raw)[:40]!r}"
            )
        return list(dict.fromkeys(part.strip() for part in parts if part.strip()))

    def fit(self, values: Iterable[Any]) -> Multilabel:
        """Return the settings with counts of `tags`, by default the sorted tags of the values."""
        counts = Counter[str]()
        rows = 0
        for raw in values:
            if raw is not None:
                counts.update(self.split_tags(raw))
                rows += 1
        tags = self.tags or tuple(sorted(counts))
        return replace(self, tags=tags, counts=tuple(counts[tag] for tag in tags), rows=rows)

    def load(self, raw: Any) -> np.ndarray:
        """Return one value as a multi-hot vector, uint8 [K]; the last entry is any unseen tag.

        Raises:
            ValueError: If the value is neither text nor a list of texts.
        """
        multi_hot = np.zeros(len(self.tags) + 1, np.uint8)
        unseen = len(self.tags)
        multi_hot[[self._tag_to_index.get(tag, unseen) for tag in self.split_tags(raw)]] = 1
        return multi_hot

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B K"]:
        """Return the multi-hot vectors of a batch."""
        return torch.from_numpy(np.array(values, np.float32).reshape(-1, len(self.tags) + 1))

    def augment(
        self, batch: Float[Tensor, "B K"], rng: torch.Generator, *, tag_dropout: float = 0.0
    ) -> Float[Tensor, "B K"]:
        """Remove some tags at random.

        Args:
            batch: Multi-hot vectors.
            rng: Random generator.
            tag_dropout: Share of tags to remove.
        """
        if not tag_dropout:
            return batch
        return batch * (torch.rand(batch.shape, generator=rng) >= tag_dropout)

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n K"]:
        """Return n random tag sets, for tests and dry runs."""
        sampled = (torch.rand(n, len(self.tags) + 1, generator=rng) < 0.3).float()
        sampled[:, -1] = 0
        return sampled

    def decode(self, value: Float[Tensor, "K"]) -> list[str]:
        """Return the names of the tags with a value above 0.5."""
        return [name for name, v in zip(self.tags, value.tolist(), strict=False) if v > 0.5]

    def to_json(self) -> dict[str, Any]:
        """Return the settings as plain JSON values."""
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Multilabel:
        """Return the settings that `to_json` wrote.

        Raises:
            SensoriumError: If a key is unknown.
        """
        return cls(**validate_settings(cls, data))
