"""Sets of tags: genres, ingredients, findings; any number of them a row.

B batch   K tags, and one place for those never seen
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
    """Settings of a column of sets, each a list or one text in which `separator` parts the tags.

    tags: those of the training rows, unless given. counts: rows that have each. rows: how many rows there were.
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
        """The tags of one value, each once. Raises ValueError for what is neither text nor a list of texts."""
        parts = raw.split(self.separator) if isinstance(raw, str) else raw
        if not isinstance(parts, list | tuple | set | frozenset) or not all(
            isinstance(p, str) for p in parts
        ):
            raise ValueError(
                f"expected tags, as a list or parted by {self.separator!r}, found {type(raw).__name__} "
                f"{str(raw)[:40]!r}"
            )
        return list(dict.fromkeys(p.strip() for p in parts if p.strip()))

    def fit(self, values: Iterable[Any]) -> Multilabel:
        """All tags among the values, in order of the alphabet, unless they are there already; how often each is."""
        found, rows = Counter[str](), 0
        for raw in values:
            if raw is not None:
                found.update(self.split_tags(raw))
                rows += 1
        tags = self.tags or tuple(sorted(found))
        return replace(self, tags=tags, counts=tuple(found[t] for t in tags), rows=rows)

    def load(self, raw: Any) -> np.ndarray:
        """uint8 [K]: 1 for each tag that is there, last for any that training did not see."""
        out = np.zeros(len(self.tags) + 1, np.uint8)
        out[[self._tag_to_index.get(tag, len(self.tags)) for tag in self.split_tags(raw)]] = 1
        return out

    def collate(self, values: Sequence[np.ndarray]) -> Float[Tensor, "B K"]:
        return torch.from_numpy(np.array(values, np.float32).reshape(-1, len(self.tags) + 1))

    def augment(
        self, batch: Float[Tensor, "B K"], rng: torch.Generator, *, tag_dropout: float = 0.0
    ) -> Float[Tensor, "B K"]:
        """The batch without some of its tags."""
        return (
            batch * (torch.rand(batch.shape, generator=rng) >= tag_dropout)
            if tag_dropout
            else batch
        )

    def fake(self, n: int, rng: torch.Generator) -> Float[Tensor, "n K"]:
        """n sets, for tests and dry runs."""
        drawn = (torch.rand(n, len(self.tags) + 1, generator=rng) < 0.3).float()
        drawn[:, -1] = 0
        return drawn

    def decode(self, value: Float[Tensor, "K"]) -> list[str]:
        """The names of the tags that are there."""
        return [name for name, there in zip(self.tags, value.tolist(), strict=False) if there > 0.5]

    def to_json(self) -> dict[str, Any]:
        return settings_to_dict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Multilabel:
        return cls(**validate_settings(cls, data))
