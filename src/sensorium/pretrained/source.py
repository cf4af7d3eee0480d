"""Pretrained weights as the start of a recipe.

A path names them while a run begins; the run stores their config, so that it can be loaded without
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.models.towers import Encoder, Tower
from sensorium.pretrained.families import PRETRAINED_FAMILIES
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
    """A pretrained model to start from.

    Attributes:
        source: The folder, file or hub id.
        family: Its family.
        config: Its config.
        weight_files: The opened files; None if only the config is known, as when a run is loaded.
    """

    source: str
    family: PretrainedFamily
    config: ModelConfig
    weight_files: WeightFiles | None = None

    @classmethod
    def from_source(cls, spec: str | Mapping[str, Any]) -> PretrainedSource:
        """Open pretrained weights, or restore what `to_config` returned.

        Raises:
            SensoriumError: If `spec` is neither.
        """
        if isinstance(spec, str):
            if not spec:
                raise SensoriumError(
                    "The path of the pretrained weights is empty. Give a folder, a file or a "
                    "Hugging Face id such as openai/clip-vit-base-patch32."
                )
            weight_files = open_weights(spec)
            family, config = detect_family(weight_files)
            return cls(spec, family, config, weight_files)
        if set(spec) != CONFIG_KEYS or spec["family"] not in PRETRAINED_FAMILIES:
            raise SensoriumError(
                "A pretrained source in a config must be {source, family, config} of a supported "
                f"family, not {str(spec)[:80]}."
            )
        return cls(spec["source"], PRETRAINED_FAMILIES[spec["family"]], spec["config"])

    def build_module(self) -> nn.Module:
        """Build the module, with its weights if they are known and the device is not `meta`."""
        on_meta_device = torch.empty(0).is_meta
        if self.weight_files is None or on_meta_device:
            return self.family.build_module(self.config)
        return load_pretrained(self.family, self.config, self.weight_files)

    def build_encoder(self, kind: str) -> tuple[Encoder, int]:
        """Build the encoder of one modality.

        Args:
            kind: "image" or "text".

        Returns:
            The encoder and the width of its tokens.

        Raises:
            SensoriumError: If the model has no such encoder.
        """
        module = self.build_module()
        tower = module[kind] if isinstance(module, nn.ModuleDict) and kind in module else None
        if not isinstance(tower, Tower):
            raise SensoriumError(
                f"{self.source} is a {self.family.name} model, which has no encoder for {kind}."
            )
        if isinstance(tower.projection, nn.Linear):
            return tower.encoder, tower.projection.in_features
        return tower.encoder, tower.embed_dim

    def preprocessing(self) -> Preprocessing:
        """Return the settings of the inputs; {} without the files, as the run's schema has them."""
        if self.weight_files is None:
            return {}
        return self.family.preprocessing(self.config, self.weight_files)

    def to_config(self) -> dict[str, Any]:
        """Return what is needed to build the same module again, as JSON values."""
        return {"source": self.source, "family": self.family.name, "config": dict(self.config)}


def from_config(keywords: Any) -> Any:
    """Replace every pretrained source in a run's keywords by its path.

    A run that has not saved weights yet must load the pretrained ones again.
    """
    if not isinstance(keywords, Mapping):
        return keywords
    if set(keywords) == CONFIG_KEYS:
        return keywords["source"]
    return {name: from_config(value) for name, value in keywords.items()}
