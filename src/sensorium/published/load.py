"""A published folder, file or hub id → a model that answers its verbs."""
from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from sensorium.errors import SensoriumError
from sensorium.published import PUBLISHED
from sensorium.published.files import Opened, open_weights
from sensorium.published.published import Config, Published, Senses, weighted
from sensorium.verbs.verb import Answers

KINDS = ("model_type", "architectures", "general.architecture")        # where a config says what it is


class Pretrained(Answers):
    """A published model in our modules. It has the verbs of its family and no others."""

    def __init__(self, family: Published, config: Config, module: nn.Module, senses: Senses, opened: Opened):
        super().__init__(f"published {family.name}", family.verbs(module, senses))
        self.family, self.config, self.module, self.senses = family, config, module.eval(), senses
        self.folder, self.fingerprint = opened.place, opened.fingerprint

    def __repr__(self) -> str:
        return f"Pretrained({self.family.name} from {self.folder}, verbs: {', '.join(self.verbs) or 'none'})"


def load(source: str | Path, *, dtype: torch.dtype = torch.float32,
         families: Mapping[str, Published] = PUBLISHED) -> Pretrained:
    """The published model in a folder, a file, or on the hub, ready to answer.

    dtype: of the weights in memory, whatever they are stored in. Raises SensoriumError where the files cannot be read,
    are damaged or unsafe, or belong to no family in `families`.
    """
    opened = open_weights(source)
    family, config = recognised(opened, families)
    module = weighted(family, config, opened, dtype)
    return Pretrained(family, config, module, family.senses(config, opened), opened)


def recognised(opened: Opened, families: Mapping[str, Published] = PUBLISHED) -> tuple[Published, Config]:
    """Whose weights they are, and with which settings. Raises SensoriumError where nobody knows them."""
    for family in families.values():
        config = family.recognise(opened)
        if config is not None:
            return family, config
    said = next((opened.config[key] for key in KINDS if key in opened.config), "no model_type")
    raise SensoriumError(f"{opened.place} holds no model that sensorium hosts (its config says {said!r}, its first "
                         f"tensor is {next(iter(opened.tensors), 'none')}); families are {', '.join(families)}")
