"""What lies in a published folder, told before a number of it is read: whose model, how large, what it can be asked."""
from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sensorium.published import PUBLISHED
from sensorium.published.files import open_weights
from sensorium.published.load import recognised
from sensorium.published.published import Published

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Description:
    """A published model from the outside."""

    place: str
    family: str
    layout: str                         # safetensors, open_clip, gguf, ctranslate2
    parameters: int
    parts: dict[str, int]               # parameters of each part
    stored: dict[str, int]              # numbers in the files, by their type there
    senses: dict[str, str]              # what it reads, and how
    verbs: list[str]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        table = Table(show_header=False, title=f"{self.place}: {self.family}, {self.parameters:,} parameters")
        for name, n in self.parts.items():
            table.add_row(name, f"{n:,} parameters")
        table.add_section()
        for name, how in self.senses.items():
            table.add_row(f"reads {name}", how)
        table.add_row("can", ", ".join(self.verbs) or "nothing without its tokenizer or its processor")
        table.add_row("stored as", f"{self.layout}: " + ", ".join(f"{n:,} × {kind}" for kind, n in self.stored.items()))
        yield table


def describe(source: str | Path, *, families: Mapping[str, Published] = PUBLISHED) -> Description:
    """Describe what `load` would load. Raises SensoriumError as it does, but for what only the numbers tell."""
    opened = open_weights(source)
    family, config = recognised(opened, families)
    with torch.device("meta"):
        module = family.build(config)
    senses, kinds = family.senses(config, opened), Counter[str]()
    for stored in opened.tensors.stored.values():
        kinds[stored.dtype] += math.prod(stored.shape)
    parts = {name: sum(p.numel() for p in part.parameters()) for name, part in module.named_children()}
    return Description(str(opened.place), family.name, opened.layout, sum(p.numel() for p in module.parameters()),
                       {name: n for name, n in parts.items() if n}, dict(kinds.most_common()),
                       {name: repr(how) for name, how in senses.items()}, list(family.verbs(module, senses)))
