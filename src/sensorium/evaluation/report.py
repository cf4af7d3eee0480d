"""The result of an evaluation: metrics of each split, with the definition of each."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from sensorium.errors import escape_controls, escape_line
from sensorium.io import atomic

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

MAX_TERMINAL_ROWS = 20  # of a further table


@dataclass(frozen=True)
class ReportTable:
    """A further table of a report, such as the importance of each column.

    Attributes:
        title: what it holds.
        rows: {heading: text or number} of each row; all rows have the same headings.
        note: how its figures were made and what they say.
    """

    title: str
    rows: Sequence[Mapping[str, str | float | None]]
    note: str = ""

    def header(self) -> list[str]:
        """Return the headings."""
        return list(self.rows[0]) if self.rows else []

    def cells(self) -> list[list[str]]:
        """Return the rows as text."""
        return [[_format_cell(value) for value in row.values()] for row in self.rows]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        hidden = len(self.rows) - MAX_TERMINAL_ROWS
        more = f" {hidden:,} more columns are in the report." if hidden > 0 else ""
        table = Table(*self.header(), title=Text(self.title), caption=Text(self.note + more))
        for cells in self.cells()[:MAX_TERMINAL_ROWS]:
            table.add_row(*(Text(escape_line(cell)) for cell in cells))
        yield table

    def markdown(self) -> str:
        """Return the table as Markdown."""
        lines = [self.header(), ["---"] * len(self.header()), *self.cells()]
        body = "".join(f"| {' | '.join(map(_escape_cell, cells))} |\n" for cells in lines)
        return f"\n## {self.title}\n\n{body}\n{self.note}\n"


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
        tables: further tables.
    """

    metrics: dict[str, dict[str, float]]
    metadata: dict[str, Any] = field(default_factory=dict)
    task: str = "metric"
    headline_metrics: Sequence[str] = ()
    definitions: str = ""
    notes: Sequence[str] = ()
    charts: Mapping[str, str] = field(default_factory=dict)
    tables: Sequence[ReportTable] = ()

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        yield self.table()
        yield from self.tables

    def __repr__(self) -> str:
        splits = ", ".join(self.metrics) or "none"
        return f"EvaluationReport({self.task}, {len(self.metric_names())} metrics of {splits})"

    def _repr_html_(self) -> str:
        from sensorium.io.web_page import notebook_html

        rows = [[name, *self.format_row(name)] for name in self.shown_metrics()]
        title = f"Evaluation: {self.task}"
        return notebook_html(title, rows, header=["", *self.metrics], note="; ".join(self.notes))

    def table(self) -> Table:
        """Return the headline metrics as a table for the terminal, one column per split."""
        caption = ", ".join(
            f"{name}: {value}"
            for name, value in self.metadata.items()
            if name not in _HIDDEN_METADATA
        )
        caption_text = escape_controls("\n".join([caption, *self.notes]))
        table = Table(self.task, *self.metrics, caption=Text(caption_text))
        for name in self.shown_metrics():
            table.add_row(Text(escape_line(name)), *self.format_row(name))
        return table

    def shown_metrics(self) -> list[str]:
        """Return the headline metrics that a split has; all metrics where none are named."""
        names = self.headline_metrics or self.metric_names()
        return [n for n in names if any(n in values for values in self.metrics.values())]

    def markdown(self) -> str:
        """Return all metrics with their definitions, notes and charts as Markdown."""
        header = f"| metric | {' | '.join(self.metrics)} |\n|---|{'---|' * len(self.metrics)}\n"
        body = "".join(
            f"| {_escape_cell(name)} | {' | '.join(self.format_row(name))} |\n"
            for name in self.metric_names()
        )
        notes = "".join(f"- {note}\n" for note in self.notes) + "\n" * bool(self.notes)
        charts = "".join(f"\n![{path}]({path})\n" for path in self.charts)
        tables = "".join(table.markdown() for table in self.tables)
        text = f"{header}{body}\n{notes}{self.definitions}\n"
        return f"# Evaluation\n\n{text}{tables}{charts}"

    def to_dict(self) -> dict[str, Any]:
        """Return metrics, metadata and further tables as plain data."""
        tables = [asdict(table) for table in self.tables]
        result = {"metrics": self.metrics, "metadata": self.metadata}
        return {**result, "tables": tables} if tables else result

    def save(self, folder: Path) -> None:
        """Write evaluation.json, evaluation.md, evaluation.html and the charts into a folder."""
        from sensorium.evaluation.report_page import render_report

        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.to_dict(), indent=1)
        atomic.write_file(folder / "evaluation.json", text.encode())
        for path, svg in self.charts.items():
            (folder / path).parent.mkdir(exist_ok=True)
            atomic.write_file(folder / path, svg.encode())
        atomic.write_file(folder / "evaluation.md", self.markdown().encode())
        atomic.write_file(folder / "evaluation.html", render_report(self).encode())

    def metric_names(self) -> list[str]:
        """Return the metrics of all splits, in order of first appearance."""
        return list(dict.fromkeys(name for values in self.metrics.values() for name in values))

    def format_row(self, name: str) -> list[str]:
        """Return the value of one metric on each split."""
        return [_format_value(values.get(name)) for values in self.metrics.values()]


_HIDDEN_METADATA = ("run", "fingerprint", "data")  # known to the reader of a table


def _escape_cell(name: str) -> str:
    """Return a name as a Markdown table cell, which a bar or a newline would end."""
    return " ".join(name.replace("|", "\\|").split())


def _format_cell(value: str | float | None) -> str:
    return value if isinstance(value, str) else _format_value(value)


def _format_value(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1 and value == int(value):
        return f"{value:.0f}"
    return f"{value:.3f}"
