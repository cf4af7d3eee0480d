"""The result of an evaluation: metrics of each split, with the definition of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from sensorium.errors import escape_controls, escape_line
from sensorium.io import atomic


@dataclass(frozen=True)
class EvaluationReport:
    """Metrics of each split, with what is needed to read them.

    Attributes:
        metrics: {split: {metric: value}}.
        metadata: the run, the data and the options of the evaluation.
        task: the evaluated task, in a word or two.
        headline_metrics: metrics of the table; all of them where none are named.
        definitions: the definition of each metric.
        notes: remarks, such as columns that were left out.
        charts: SVG documents by their path in the report's folder.
    """

    metrics: dict[str, dict[str, float]]
    metadata: dict[str, Any] = field(default_factory=dict)
    task: str = "metric"
    headline_metrics: Sequence[str] = ()
    definitions: str = ""
    notes: Sequence[str] = ()
    charts: Mapping[str, str] = field(default_factory=dict)

    def table(self) -> Table:
        """Return the headline metrics as a table for the terminal, one column per split."""
        caption = ", ".join(
            f"{name}: {value}"
            for name, value in self.metadata.items()
            if name not in _HIDDEN_METADATA
        )
        table = Table(
            self.task,
            *self.metrics,
            caption=Text(escape_controls("\n".join([caption, *self.notes]))),
        )
        for name in self.headline_metrics or self._metric_names():
            if any(name in values for values in self.metrics.values()):
                table.add_row(Text(escape_line(name)), *self._format_row(name))
        return table

    def markdown(self) -> str:
        """Return all metrics with their definitions, notes and charts as Markdown."""
        header = f"| metric | {' | '.join(self.metrics)} |\n|---|{'---|' * len(self.metrics)}\n"
        body = "".join(
            f"| {_escape_cell(name)} | {' | '.join(self._format_row(name))} |\n"
            for name in self._metric_names()
        )
        notes = "".join(f"- {note}\n" for note in self.notes) + "\n" * bool(self.notes)
        charts = "".join(f"\n![{path}]({path})\n" for path in self.charts)
        return f"# Evaluation\n\n{header}{body}\n{notes}{self.definitions}\n{charts}"

    def save(self, folder: Path) -> None:
        """Write evaluation.json, evaluation.md and the charts into a folder."""
        folder.mkdir(parents=True, exist_ok=True)
        content = {"metrics": self.metrics, "metadata": self.metadata}
        atomic.write_file(folder / "evaluation.json", json.dumps(content, indent=1).encode())
        for path, svg in self.charts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            atomic.write_file(folder / path, svg.encode())
        atomic.write_file(folder / "evaluation.md", self.markdown().encode())

    def _metric_names(self) -> list[str]:
        """Return the metrics of all splits, in order of first appearance."""
        return list(dict.fromkeys(name for values in self.metrics.values() for name in values))

    def _format_row(self, name: str) -> list[str]:
        """Return the value of one metric on each split."""
        return [_format_value(values.get(name)) for values in self.metrics.values()]


_HIDDEN_METADATA = ("run", "fingerprint", "data")  # known to the reader of a table


def _escape_cell(name: str) -> str:
    """Return a name as a Markdown table cell, which a bar or a newline would end."""
    return " ".join(name.replace("|", "\\|").split())


def _format_value(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1 and value == int(value):
        return f"{value:.0f}"
    return f"{value:.3f}"
