"""A published folder, file or hub id → a model that answers its verbs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    load_pretrained,
)
from sensorium.pretrained.weight_files import WeightFiles, open_weights

MODEL_TYPE_KEYS = (
    "model_type",
    "architectures",
    "general.architecture",
)  # where a config says what it is


class PretrainedModel(VerbModel):
    """A published model in our modules. It has the verbs of its family and no others."""

    def __init__(
        self,
        family: PretrainedFamily,
        config: ModelConfig,
        module: nn.Module,
        preprocessing: Preprocessing,
        weight_files: WeightFiles,
    ):
        super().__init__(f"published {family.name}", family.build_verbs(module, preprocessing))
        self.family, self.config, self.module, self.preprocessing = (
            family,
            config,
            module.eval(),
            preprocessing,
        )
        self.folder, self.fingerprint = weight_files.path, weight_files.fingerprint

    def __repr__(self) -> str:
        return f"Pretrained({self.family.name} from {self.folder}, verbs: {', '.join(self.verbs) or 'none'})"


def load_pretrained_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES,
) -> PretrainedModel:
    """The published model in a folder, a file, or on the hub, ready to answer.

    dtype: of the weights in memory, whatever they are stored in. Raises SensoriumError where the files cannot be read,
    are damaged or unsafe, or belong to no family in `families`.
    """
    opened = open_weights(source)
    family, config = detect_family(opened, families)
    module = load_pretrained(family, config, opened, dtype)
    return PretrainedModel(family, config, module, family.preprocessing(config, opened), opened)


def detect_family(
    weight_files: WeightFiles, families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES
) -> tuple[PretrainedFamily, ModelConfig]:
    """Whose weights they are, and with which settings. Raises SensoriumError where nobody knows them."""
    for family in families.values():
        config = family.detect_config(weight_files)
        if config is not None:
            return family, config
    said = next(
        (weight_files.config[key] for key in MODEL_TYPE_KEYS if key in weight_files.config),
        "no model_type",
    )
    raise SensoriumError(
        f"{weight_files.path} holds no model that sensorium hosts (its config says {said!r}, its first "
        f"tensor is {next(iter(weight_files.tensors), 'none')}); families are {', '.join(families)}"
    )
