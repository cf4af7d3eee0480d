"""What a recipe begins with: published weights, named by where they lie while a run begins, and by their layout ever
after, so that the run needs nothing but itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.models.towers import Encoder, Tower
from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    load_pretrained,
)
from sensorium.pretrained.load import detect_family
from sensorium.pretrained.weight_files import WeightFiles, open_weights

CONFIG_KEYS = {"source", "family", "config"}


@dataclass(frozen=True)
class PretrainedSource:
    """A published model to start from. `opened` is None where only its layout is known: a run holds the weights."""

    source: str
    family: PretrainedFamily
    config: ModelConfig
    weight_files: WeightFiles | None = None

    @classmethod
    def from_source(cls, spec: str | Mapping[str, Any]) -> PretrainedSource:
        """A folder, file or hub id; or what `told` said of one.

        Raises SensoriumError where it is neither.
        """
        if isinstance(spec, str):
            if not spec:
                raise SensoriumError(
                    "which published model is to be the start? Name a folder, a file or a hub id"
                )
            opened = open_weights(spec)
            family, config = detect_family(opened)
            return cls(spec, family, config, opened)
        if set(spec) != CONFIG_KEYS or spec["family"] not in PRETRAINED_FAMILIES:
            raise SensoriumError(
                f"a start is {{source, family, config}} of a known family; found {str(spec)[:80]}"
            )
        return cls(spec["source"], PRETRAINED_FAMILIES[spec["family"]], spec["config"])

    def build_module(self) -> nn.Module:
        """Our module of that layout; with its weights, where they are at hand and not on the meta device."""
        meta = torch.empty(0).is_meta
        return (
            self.family.build_module(self.config)
            if self.weight_files is None or meta
            else load_pretrained(self.family, self.config, self.weight_files)
        )

    def build_encoder(self, kind: str) -> tuple[Encoder, int]:
        """The encoder that reads `kind` ("image", "text"), and its width. Raises SensoriumError where it has none."""
        module = self.build_module()
        tower = module[kind] if isinstance(module, nn.ModuleDict) and kind in module else None
        if not isinstance(tower, Tower):
            raise SensoriumError(
                f"{self.source} is a {self.family.name}, which has no encoder for {kind}"
            )
        width = (
            tower.projection.in_features
            if isinstance(tower.projection, nn.Linear)
            else tower.embed_dim
        )
        return tower.encoder, width

    def preprocessing(self) -> Preprocessing:
        """What it reads and how; {} where only the layout is known: the run's schema says it."""
        return (
            {}
            if self.weight_files is None
            else self.family.preprocessing(self.config, self.weight_files)
        )

    def to_config(self) -> dict[str, Any]:
        """All that a run must keep to build the same layout again, as plain values."""
        return {"source": self.source, "family": self.family.name, "config": dict(self.config)}


def from_config(keywords: Any) -> Any:
    """Keywords of a run that holds no weights yet: published ones are named by where they lie, as at first."""
    if not isinstance(keywords, Mapping):
        return keywords
    return (
        keywords["source"]
        if set(keywords) == CONFIG_KEYS
        else {name: from_config(value) for name, value in keywords.items()}
    )
