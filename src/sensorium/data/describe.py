"""Summaries of datasets: column types with reasons and examples, missing and bad values, splits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from sensorium.data.bad_samples import BadSample, summarize_bad_samples
from sensorium.data.cache.prepared import DataSource, PreparedDataset
from sensorium.data.cell_parsing import is_missing
from sensorium.data.schema import Schema, extensions
from sensorium.data.tables import Table
from sensorium.errors import escape_line
from sensorium.io.web_page import notebook_html

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

_MAX_EXAMPLES = 2
_MAX_EXAMPLE_ROWS = 20  # rows that are looked at for the examples of a notebook
_MAX_NOTEBOOK_COLUMNS = 40
_MAX_CHARACTERS = 40  # of an example


@runtime_checkable
class Describable(DataSource, Protocol):
    """A dataset, as far as its summary needs it."""

    name: str
    table: Table
    schema: Schema
    group_column: str | None

    @property
    def splits(self) -> Mapping[str, np.ndarray]:
        """Row numbers of each split."""
        ...

    @property
    def split_rule(self) -> str:
        """How the splits were made."""
        ...


@dataclass(frozen=True)
class ColumnSummary:
    """One column.

    Attributes:
        name: its name.
        kind: its type or role.
        reason: why it has this type.
        num_missing: rows without a value.
        examples: its first values.
    """

    name: str
    kind: str
    reason: str
    num_missing: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSummary:
    """Plain data, which rich prints as a few short tables.

    Attributes:
        name: the dataset.
        num_rows: how many rows it has.
        columns: its columns, in the order of the source.
        split_sizes: rows in each split.
        split_rule: how the splits were made.
        num_unassigned: rows in no split.
        group_column: the column whose equal values mark one group.
        bad_samples: the rows and values that cannot be used.
        notes: what lay in the source and is not used, a line each.
    """

    name: str
    num_rows: int
    columns: list[ColumnSummary]
    split_sizes: dict[str, int]
    split_rule: str
    num_unassigned: int
    group_column: str | None
    bad_samples: list[BadSample]
    notes: list[str] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"DatasetSummary({self.name!r}, {self.num_rows:,} rows, {len(self.columns)} columns, "
            f"{len(self.bad_samples):,} bad)"
        )

    def _repr_html_(self) -> str:
        rows = [
            (c.name, c.kind, f"{c.num_missing:,}", c.reason, ", ".join(c.examples))
            for c in self.columns
        ]
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.split_sizes.items())
        return notebook_html(
            f"{self.name}: {self.num_rows:,} rows, {len(self.bad_samples):,} bad",
            rows,
            header=("column", "type", "missing", "reason", "examples"),
            facts={"splits": f"{sizes} ({self.split_rule})"},
            note="; ".join([*self.notes, *summarize_bad_samples(self.bad_samples)]),
        )

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table as RichTable
        from rich.text import Text

        size = f": {self.num_rows:,} rows, {len(self.bad_samples)} bad"
        yield Text.assemble((escape_line(self.name), "bold"), size)
        table = RichTable("column", "type", "missing", "reason", "examples")
        for c in self.columns:
            examples = "\n".join(map(escape_line, c.examples))
            cells = (
                escape_line(c.name),
                c.kind,
                f"{c.num_missing:,}",
                escape_line(c.reason),
                examples,
            )
            table.add_row(*map(Text, cells), style="dim" if c.kind == "ignore" else "")
        yield table
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.split_sizes.items())
        unassigned = f"; {self.num_unassigned:,} rows in none" if self.num_unassigned else ""
        yield Text(escape_line(f"splits: {sizes}{unassigned}"))
        yield Text(escape_line(f"        {self.split_rule}"))
        for note in self.notes:
            yield Text(escape_line(f"unused: {note}"))
        for line in summarize_bad_samples(self.bad_samples):
            yield Text.assemble(("bad", "red"), f" {escape_line(line)}")


def render_dataset(dataset: Describable) -> str:
    """Return a dataset as a small table for a notebook; neither splits nor files are needed."""
    typed = {**dataset.schema.roles, **dataset.schema.columns}
    names = list(dataset.table.columns)
    rows = [
        (name, typed[name].kind, ", ".join(_examples(dataset.table.columns[name])))
        for name in names[:_MAX_NOTEBOOK_COLUMNS]
    ]
    hidden = len(names) - len(rows)
    return notebook_html(
        f"{dataset.name}: {len(dataset):,} rows, {len(dataset.bad_samples):,} bad",
        rows,
        header=("column", "type", "examples"),
        note=f"{hidden:,} more columns" if hidden else "",
    )


def describe_dataset(dataset: Describable) -> DatasetSummary:
    """Summarize a dataset. Its splits are made, and every file is read to find the bad ones."""
    typed = {**dataset.schema.roles, **dataset.schema.columns}
    columns = [
        _summarize_column(dataset.table.columns[name], name, typed[name].kind, typed[name].reason)
        for name in dataset.table.columns
    ]
    split_sizes = {name: len(rows) for name, rows in dataset.splits.items()}
    return DatasetSummary(
        name=dataset.name,
        num_rows=len(dataset),
        columns=columns,
        split_sizes=split_sizes,
        split_rule=dataset.split_rule,
        num_unassigned=len(dataset) - sum(split_sizes.values()),
        group_column=dataset.group_column,
        bad_samples=_find_bad_samples(dataset),
        notes=dataset.table.notes,
    )


def _find_bad_samples(dataset: Describable) -> list[BadSample]:
    """Return the bad rows, and the values whose files cannot be read."""
    file_columns = [
        c.name for c in dataset.schema.columns.values() if extensions(c.kind) is not None
    ]
    if not file_columns or not len(dataset):
        return dataset.bad_samples
    return PreparedDataset(
        dataset, dataset.schema, file_columns, max_invalid_fraction=1.0, quiet=True
    ).bad_samples


def _summarize_column(values: Any, name: str, kind: str, reason: str) -> ColumnSummary:
    """Count missing values and pick examples."""
    if not isinstance(values, np.ndarray):
        num_missing = sum(map(is_missing, values))
    elif values.dtype.kind == "f":
        num_missing = int(np.isnan(values).sum())
    else:
        num_missing = 0
    present = (value for value in values if not is_missing(value))
    examples = tuple(_shorten(value) for value in islice(present, _MAX_EXAMPLES))
    return ColumnSummary(name, kind, reason, num_missing, examples)


def _examples(values: Any) -> list[str]:
    """Return the first values that are not missing, among the first rows."""
    present = (value for value in islice(values, _MAX_EXAMPLE_ROWS) if not is_missing(value))
    return [_shorten(value) for value in islice(present, _MAX_EXAMPLES)]


def _shorten(value: Any) -> str:
    """Return a value in at most forty characters."""
    if isinstance(value, np.ndarray):
        unit = "pixels" if value.dtype == np.uint8 else "numbers"
        return f"{' x '.join(map(str, value.shape))} {unit}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and value:
        more = f" (+{len(value) - 1})" if len(value) > 1 else ""
        return _shorten(value[0])[: _MAX_CHARACTERS - len(more)] + more
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= _MAX_CHARACTERS else text[: _MAX_CHARACTERS - 1] + "…"
