"""What is in a data set, for people: columns with reasons and examples, what is missing or bad, how it is split."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.data.cell_parsing import is_missing
from sensorium.data.tables import BadSample

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sensorium.data.dataset import Dataset

_MAX_BAD_SAMPLES = 10


@dataclass(frozen=True)
class ColumnSummary:
    """One column: what it is taken for, why, how many rows lack it, and its first values."""

    name: str
    kind: str
    reason: str
    num_missing: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class DatasetSummary:
    """Plain data; printed by rich it is a few short tables."""

    name: str
    num_rows: int
    columns: list[ColumnSummary]
    split_sizes: dict[str, int]  # rows in each
    split_rule: str
    num_unassigned: int  # rows in none
    group_column: str | None
    bad_samples: list[BadSample]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markup import escape
        from rich.table import Table

        yield f"[bold]{escape(self.name)}[/]: {self.num_rows:,} rows, {len(self.bad_samples)} bad"
        table = Table("column", "is", "missing", "because", "for example")
        for c in self.columns:
            style = "dim" if c.kind == "ignore" else ""
            table.add_row(
                *map(
                    escape, (c.name, c.kind, f"{c.num_missing:,}", c.reason, "\n".join(c.examples))
                ),
                style=style,
            )
        yield table
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.split_sizes.items())
        yield escape(
            f"splits: {sizes}"
            + (f"; {self.num_unassigned:,} rows in none" if self.num_unassigned else "")
        )
        yield escape(f"        {self.split_rule}")
        for b in self.bad_samples[:_MAX_BAD_SAMPLES]:
            yield f"[red]bad[/] {escape(b.location)}{escape(f', {b.column}') if b.column else ''}: {escape(b.reason)}"
        if len(self.bad_samples) > _MAX_BAD_SAMPLES:
            yield f"[red]bad[/] and {len(self.bad_samples) - _MAX_BAD_SAMPLES:,} more"


def describe_dataset(dataset: Dataset) -> DatasetSummary:
    """Count and collect; the splits are made if they were not yet."""
    said = {**dataset.schema.roles, **dataset.schema.columns}
    columns = [
        _summarize_column(dataset, name, said[name].kind, said[name].reason)
        for name in dataset.table.columns
    ]
    splits = {name: len(rows) for name, rows in dataset.splits.items()}
    return DatasetSummary(
        dataset.name,
        len(dataset),
        columns,
        splits,
        dataset.split_rule,
        len(dataset) - sum(splits.values()),
        dataset.group_column,
        dataset.bad_samples,
    )


def _summarize_column(dataset: Dataset, name: str, kind: str, reason: str) -> ColumnSummary:
    values = dataset.table.columns[name]
    if isinstance(values, np.ndarray):
        gone = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    else:
        gone = sum(map(is_missing, values))
    there = (v for v in values if not is_missing(v))
    return ColumnSummary(
        name, kind, reason, gone, tuple(_shorten(v) for v, _ in zip(there, range(2), strict=False))
    )


def _shorten(value: Any) -> str:
    """A value in at most forty characters."""
    if isinstance(value, np.ndarray):
        return f"{' x '.join(map(str, value.shape))} {'pixels' if value.dtype == np.uint8 else 'numbers'}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and value:
        more = f" (+{len(value) - 1})" if len(value) > 1 else ""
        return _shorten(value[0])[: 40 - len(more)] + more
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 40 else text[:39] + "…"
