"""What is in a data set, for people: columns with reasons and examples, what is missing or bad, how it is split."""
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from sensorium.data.cell import absent
from sensorium.data.sources import Bad

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from sensorium.data.dataset import Dataset

_SHOWN = 10


@dataclass(frozen=True)
class ColumnFacts:
    """One column: what it is taken for, why, how many rows lack it, and its first values."""

    name: str
    kind: str
    why: str
    missing: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """Plain data; printed by rich it is a few short tables."""

    name: str
    rows: int
    columns: list[ColumnFacts]
    splits: dict[str, int]          # rows in each
    splits_from: str
    unsplit: int                    # rows in none
    group: str | None
    bad: list[Bad]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.markup import escape
        from rich.table import Table

        yield f"[bold]{escape(self.name)}[/]: {self.rows:,} rows, {len(self.bad)} bad"
        table = Table("column", "is", "missing", "because", "for example")
        for c in self.columns:
            style = "dim" if c.kind == "ignore" else ""
            table.add_row(*map(escape, (c.name, c.kind, f"{c.missing:,}", c.why, "\n".join(c.examples))), style=style)
        yield table
        sizes = ", ".join(f"{name} {n:,}" for name, n in self.splits.items())
        yield escape(f"splits: {sizes}" + (f"; {self.unsplit:,} rows in none" if self.unsplit else ""))
        yield escape(f"        {self.splits_from}")
        for b in self.bad[:_SHOWN]:
            yield f"[red]bad[/] {escape(b.where)}{escape(f', {b.column}') if b.column else ''}: {escape(b.reason)}"
        if len(self.bad) > _SHOWN:
            yield f"[red]bad[/] and {len(self.bad) - _SHOWN:,} more"


def describe(data: Dataset) -> Description:
    """Count and collect; the splits are made if they were not yet."""
    said = {**data.schema.roles, **data.schema.columns}
    columns = [_facts(data, name, said[name].kind, said[name].why) for name in data.table.columns]
    splits = {name: len(rows) for name, rows in data.splits.items()}
    return Description(data.name, len(data), columns, splits, data.splits_from, len(data) - sum(splits.values()),
                       data.group, data.bad)


def _facts(data: Dataset, name: str, kind: str, why: str) -> ColumnFacts:
    values = data.table.columns[name]
    if isinstance(values, np.ndarray):
        gone = int(np.isnan(values).sum()) if values.dtype.kind == "f" else 0
    else:
        gone = sum(map(absent, values))
    there = (v for v in values if not absent(v))
    return ColumnFacts(name, kind, why, gone, tuple(_short(v) for v, _ in zip(there, range(2), strict=False)))


def _short(value: Any) -> str:
    """A value in at most forty characters."""
    if isinstance(value, np.ndarray):
        return f"{' x '.join(map(str, value.shape))} {'pixels' if value.dtype == np.uint8 else 'numbers'}"
    if isinstance(value, bytes):
        return f"{len(value):,} bytes"
    if isinstance(value, list) and value:
        more = f" (+{len(value) - 1})" if len(value) > 1 else ""
        return _short(value[0])[:40 - len(more)] + more
    text = f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 40 else text[:39] + "…"
