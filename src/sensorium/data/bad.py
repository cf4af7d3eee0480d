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
    """Raises SensoriumError, naming the first ones, where more than the share `max_bad` of `rows` is bad."""
    count = len({b.where for b in bad})
    if count <= max_bad * rows:
        return
    first = "\n".join(f"  {b.where}{f', {b.column}' if b.column else ''}: {b.reason}" for b in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    columns = sorted({b.column for b in bad if b.column})
    other = f", or say what the column is (--columns {columns[0]}=ignore)" if columns else ""
    share = f"{math.ceil(count / rows * 100) / 100:g}"
    raise SensoriumError(f"{count} of {rows} rows cannot be used, more than max_bad={max_bad:g} allows:\n{first}{more}"
                         f"\nMend them{other}, or go on without them: --max-bad {share}.")
