"""Samples that cannot be used: each has a name and a reason, all are counted, and too many are an error."""
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.errors import SensoriumError

_SHOWN = 5


@dataclass(frozen=True)
class Bad:
    """A sample in quarantine: `row` is its number in the dataset, or -1 if it was left out when the source was read."""

    row: int
    column: str                 # "" where the whole row is at fault
    where: str                  # 'photos/a.jpg' or 'mine.csv:17'
    reason: str


def check_share(bad: Sequence[Bad], rows: int, max_bad: float) -> None:
    """Raises SensoriumError, naming the first ones, where a share above `max_bad` of the rows, or all, are bad."""
    count = len({b.where for b in bad})
    if not count or (count <= max_bad * rows and count < rows):
        return
    first = "\n".join(f"  {b.where}{f', {b.column}' if b.column else ''}: {b.reason}" for b in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    columns = sorted({b.column for b in bad if b.column})
    other = f", or say what the column is (--column {columns[0]}=ignore)" if columns else ""
    share = math.ceil(count / rows * 100) / 100
    go_on = f", or go on without them: --max-bad {share:g}" if count < rows else ". Without them nothing is left"
    limit = f", more than max_bad={max_bad:g} allows" if count > max_bad * rows else ""
    raise SensoriumError(f"{count} of {rows} rows cannot be used{limit}:\n{first}{more}\nMend them{other}{go_on}.")
