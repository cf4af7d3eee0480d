"""Describe pretrained weights without reading them: family, parameters, inputs and verbs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensorium.errors import escape_line
from sensorium.inference.classify import add_classify
from sensorium.pretrained.families import PRETRAINED_FAMILIES
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.load import detect_family
from sensorium.pretrained.weight_files import open_weights

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class PretrainedDescription:
    """A summary of a pretrained model.

    Attributes:
        path: The folder or file.
        family: Name of its family.
        layout: "safetensors", "open_clip", "gguf" or "ctranslate2".
        num_parameters: Parameters of the module.
        parameters_by_module: Parameters of each submodule that has any.
        elements_by_dtype: Stored values by their type in the files.
        inputs: Input name -> its settings.
        verbs: Verbs of the model.
    """

    path: str
    family: str
    layout: str
    num_parameters: int
    parameters_by_module: dict[str, int]
    elements_by_dtype: dict[str, int]
    inputs: dict[str, str]
    verbs: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        title = Text(f"{escape_line(self.path)}: {self.family}, {self.num_parameters:,} parameters")
        table = Table(show_header=False, title=title)
        for name, count in self.parameters_by_module.items():
            table.add_row(Text(escape_line(name)), f"{count:,} parameters")
        table.add_section()
        for name, settings in self.inputs.items():
            table.add_row(f"input {name}", Text(escape_line(settings)))
        table.add_row("verbs", ", ".join(self.verbs) or "none without tokenizer or processor files")
        dtypes = ", ".join(f"{n:,} {dtype}" for dtype, n in self.elements_by_dtype.items())
        table.add_row("stored as", Text(escape_line(f"{self.layout}: {dtypes}")))
        yield table


def describe_pretrained(
    source: str | Path, *, families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES
) -> PretrainedDescription:
    """Describe what `load_pretrained_model` would load.

    Raises:
        SensoriumError: As `load_pretrained_model`, except for what only the values reveal.
    """
    weight_files = open_weights(source)
    family, config = detect_family(weight_files, families)
    with torch.device("meta"):
        module = family.build_module(config)
    preprocessing = family.preprocessing(config, weight_files)
    elements_by_dtype = Counter[str]()
    for entry in weight_files.tensors.entries.values():
        elements_by_dtype[entry.dtype] += math.prod(entry.shape)
    parameters_by_module = {
        name: sum(p.numel() for p in child.parameters()) for name, child in module.named_children()
    }
    return PretrainedDescription(
        path=str(weight_files.path),
        family=family.name,
        layout=weight_files.layout,
        num_parameters=sum(p.numel() for p in module.parameters()),
        parameters_by_module={name: n for name, n in parameters_by_module.items() if n},
        elements_by_dtype=dict(elements_by_dtype.most_common()),
        inputs={name: repr(modality) for name, modality in preprocessing.items()},
        verbs=list(add_classify(family.build_verbs(module, preprocessing), is_pretrained=True)),
    )
