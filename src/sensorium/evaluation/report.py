"""What a judge found: figures of each split, with what each means."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sensorium.io import atomic


@dataclass(frozen=True)
class EvaluationReport:
    """Figures of each split: {split: {figure: value}}.

    about: of what and how. task: what was judged, in a word. shown: the figures that matter most, all where there are
    none named. definitions: what each figure means. notes: what a reader must know besides, such as what was left out.
    pictures: SVG by its place in the folder.
    """

    metrics: dict[str, dict[str, float]]
    metadata: dict[str, Any] = field(default_factory=dict)
    task: str = "figure"
    headline_metrics: Sequence[str] = ()
    definitions: str = ""
    notes: Sequence[str] = ()
    charts: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """The figures that matter most, a column for each split."""
        told = ", ".join(
            f"{name}: {value}"
            for name, value in self.metadata.items()
            if name not in _HIDDEN_METADATA
        )
        table = Table(self.task, *self.metrics, caption=Text("\n".join([told, *self.notes])))
        for name in self.headline_metrics or self._metric_names():
            if any(name in f for f in self.metrics.values()):
                table.add_row(
                    Text(name), *(_format_value(f.get(name)) for f in self.metrics.values())
                )
        return table

    def markdown(self) -> str:
        """The same with every figure, and what each means."""
        head = f"| figure | {' | '.join(self.metrics)} |\n|---|{'---|' * len(self.metrics)}\n"
        body = "".join(
            f"| {_escape_cell(n)} | {' | '.join(_format_value(f.get(n)) for f in self.metrics.values())} |\n"
            for n in self._metric_names()
        )
        notes = "".join(f"- {note}\n" for note in self.notes) + "\n" * bool(self.notes)
        shown = "".join(f"\n![{place}]({place})\n" for place in self.charts)
        return f"# Evaluation\n\n{head}{body}\n{notes}{self.definitions}\n{shown}"

    def save(self, folder: Path) -> None:
        """evaluation.json, evaluation.md and the pictures."""
        found = {"figures": self.metrics, "about": self.metadata}
        atomic.write_file(folder / "evaluation.json", json.dumps(found, indent=1).encode())
        for place, svg in self.charts.items():
            (folder / place).parent.mkdir(exist_ok=True)
            atomic.write_file(folder / place, svg.encode())
        atomic.write_file(folder / "evaluation.md", self.markdown().encode())

    def _metric_names(self) -> list[str]:
        return list(dict.fromkeys(name for f in self.metrics.values() for name in f))


_HIDDEN_METADATA = ("run", "fingerprint", "data")  # what the reader of a table knows


def _escape_cell(name: str) -> str:
    """Return a name as a Markdown table cell, which a bar or a newline would end."""
    return " ".join(name.replace("|", "\\|").split())


def _format_value(value: float | None) -> str:
    return (
        ""
        if value is None
        else f"{value:.0f}"
        if value >= 1 and value == int(value)
        else f"{value:.3f}"
    )
