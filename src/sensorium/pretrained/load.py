"""Load a pretrained model from a folder, a file or the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.inference.base import VerbModel
from sensorium.pretrained.families import PRETRAINED_FAMILIES
from sensorium.pretrained.family import (
    ModelConfig,
    Preprocessing,
    PretrainedFamily,
    load_pretrained,
)
from sensorium.pretrained.weight_files import WeightFiles, open_weights

# Config keys that name the architecture.
MODEL_TYPE_KEYS = ("model_type", "architectures", "general.architecture")


class PretrainedModel(VerbModel):
    """A pretrained model in our modules, with the verbs of its family.

    Attributes:
        family: Its family.
        config: Its config.
        module: The module, in eval mode.
        preprocessing: Settings of its inputs.
        folder: The folder or file it was loaded from.
        fingerprint: SHA-256 that tells models apart, see `WeightFiles.fingerprint`.
    """

    def __init__(
        self,
        family: PretrainedFamily,
        config: ModelConfig,
        module: nn.Module,
        preprocessing: Preprocessing,
        weight_files: WeightFiles,
    ):
        verbs = family.build_verbs(module, preprocessing)
        super().__init__(f"pretrained {family.name}", verbs, is_pretrained=True)
        self.family = family
        self.config = config
        self.module = module.eval()
        self.preprocessing = preprocessing
        self.folder = weight_files.path
        self.fingerprint = weight_files.fingerprint

    def __repr__(self) -> str:
        verbs = ", ".join(self.verbs) or "none"
        return f"PretrainedModel({self.family.name} from {self.folder}, verbs: {verbs})"

    def _repr_html_(self) -> str:
        from sensorium.io.web_page import notebook_html

        return notebook_html(
            f"pretrained {self.family.name} from {self.folder}",
            facts={
                "inputs": ", ".join(self.preprocessing) or "none",
                "verbs": ", ".join(self.verbs) or "none",
                "parameters": f"{sum(p.numel() for p in self.module.parameters()):,}",
            },
        )


def load_pretrained_model(
    source: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES,
) -> PretrainedModel:
    """Load a pretrained model.

    Args:
        source: A folder, a file or a hub id.
        dtype: Type of the weights in memory, whatever the type in the file.
        families: The families that are considered, in order.

    Raises:
        SensoriumError: If the files cannot be read, are damaged or unsafe, or belong to no family.
    """
    weight_files = open_weights(source)
    family, config = detect_family(weight_files, families)
    module = load_pretrained(family, config, weight_files, dtype)
    preprocessing = family.preprocessing(config, weight_files)
    return PretrainedModel(family, config, module, preprocessing, weight_files)


def detect_family(
    weight_files: WeightFiles, families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES
) -> tuple[PretrainedFamily, ModelConfig]:
    """Return the family that the files belong to, and their config.

    Raises:
        SensoriumError: If they belong to none.
    """
    for family in families.values():
        config = family.detect_config(weight_files)
        if config is not None:
            return family, config
    model_types = [
        weight_files.config[key] for key in MODEL_TYPE_KEYS if key in weight_files.config
    ]
    model_type = repr(model_types[0]) if model_types else "missing"
    raise SensoriumError(
        f"{weight_files.path} holds no supported model: its model type is {model_type}, its first "
        f"tensor is {next(iter(weight_files.tensors), 'missing')}. "
        f"Supported families: {', '.join(families)}."
    )
