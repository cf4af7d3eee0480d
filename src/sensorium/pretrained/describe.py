"""What lies in a published folder, told before a number of it is read: whose model, how large, what it can be asked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensorium.pretrained import PRETRAINED_FAMILIES
from sensorium.pretrained.family import PretrainedFamily
from sensorium.pretrained.load import detect_family
from sensorium.pretrained.weight_files import open_weights

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class PretrainedDescription:
    """A published model from the outside."""

    path: str
    family: str
    layout: str  # safetensors, open_clip, gguf, ctranslate2
    num_parameters: int
    parameters_by_module: dict[str, int]  # parameters of each part
    elements_by_dtype: dict[str, int]  # numbers in the files, by their type there
    inputs: dict[str, str]  # what it reads, and how
    verbs: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table

        table = Table(
            show_header=False,
            title=f"{self.path}: {self.family}, {self.num_parameters:,} parameters",
        )
        for name, n in self.parameters_by_module.items():
            table.add_row(name, f"{n:,} parameters")
        table.add_section()
        for name, how in self.inputs.items():
            table.add_row(f"reads {name}", how)
        table.add_row(
            "can", ", ".join(self.verbs) or "nothing without its tokenizer or its processor"
        )
        table.add_row(
            "stored as",
            f"{self.layout}: "
            + ", ".join(f"{n:,} × {kind}" for kind, n in self.elements_by_dtype.items()),
        )
        yield table


def describe_pretrained(
    source: str | Path, *, families: Mapping[str, PretrainedFamily] = PRETRAINED_FAMILIES
) -> PretrainedDescription:
    """Describe what `load` would load. Raises SensoriumError as it does, but for what only the numbers tell."""
    opened = open_weights(source)
    family, config = detect_family(opened, families)
    with torch.device("meta"):
        module = family.build_module(config)
    senses, kinds = family.preprocessing(config, opened), Counter[str]()
    for stored in opened.tensors.entries.values():
        kinds[stored.dtype] += math.prod(stored.shape)
    parts = {
        name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()
    }
    return PretrainedDescription(
        str(opened.path),
        family.name,
        opened.layout,
        sum(p.numel() for p in module.parameters()),
        {name: n for name, n in parts.items() if n},
        dict(kinds.most_common()),
        {name: repr(how) for name, how in senses.items()},
        list(family.build_verbs(module, senses)),
    )
