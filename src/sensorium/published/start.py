"""What a recipe begins with: published weights, named by where they lie while a run begins, and by their layout ever
after, so that the run needs nothing but itself."""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.models import Encoder, Tower
from sensorium.published import PUBLISHED
from sensorium.published.files import Opened, open_weights
from sensorium.published.load import recognised
from sensorium.published.published import Config, Published, Senses, weighted

TOLD = {"source", "family", "config"}


@dataclass(frozen=True)
class Start:
    """A published model to start from. `opened` is None where only its layout is known: a run holds the weights."""

    source: str
    family: Published
    config: Config
    opened: Opened | None = None

    @classmethod
    def of(cls, given: str | Mapping[str, Any]) -> Start:
        """A folder, file or hub id; or what `told` said of one.

        Raises SensoriumError where it is neither.
        """
        if isinstance(given, str):
            if not given:
                raise SensoriumError("which published model is to be the start? Name a folder, a file or a hub id")
            opened = open_weights(given)
            family, config = recognised(opened)
            return cls(given, family, config, opened)
        if set(given) != TOLD or given["family"] not in PUBLISHED:
            raise SensoriumError(f"a start is {{source, family, config}} of a known family; found {str(given)[:80]}")
        return cls(given["source"], PUBLISHED[given["family"]], given["config"])

    def module(self) -> nn.Module:
        """Our module of that layout; with its weights, where they are at hand and not on the meta device."""
        meta = torch.empty(0).is_meta
        return self.family.build(self.config) if self.opened is None or meta else \
            weighted(self.family, self.config, self.opened)

    def encoder(self, kind: str) -> tuple[Encoder, int]:
        """The encoder that reads `kind` ("image", "text"), and its width. Raises SensoriumError where it has none."""
        module = self.module()
        tower = module[kind] if isinstance(module, nn.ModuleDict) and kind in module else None
        if not isinstance(tower, Tower):
            raise SensoriumError(f"{self.source} is a {self.family.name}, which has no encoder for {kind}")
        width = tower.align.in_features if isinstance(tower.align, nn.Linear) else tower.width
        return tower.encode, width

    def senses(self) -> Senses:
        """What it reads and how; {} where only the layout is known: the run's schema says it."""
        return {} if self.opened is None else self.family.senses(self.config, self.opened)

    def told(self) -> dict[str, Any]:
        """All that a run must keep to build the same layout again, as plain values."""
        return {"source": self.source, "family": self.family.name, "config": dict(self.config)}


def untold(keywords: Any) -> Any:
    """Keywords of a run that holds no weights yet: published ones are named by where they lie, as at first."""
    if not isinstance(keywords, Mapping):
        return keywords
    return keywords["source"] if set(keywords) == TOLD else {name: untold(value) for name, value in keywords.items()}
