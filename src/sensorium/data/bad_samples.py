"""Samples that cannot be used: each has a name and a reason, all are counted, and too many are an error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.errors import SensoriumError

_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class BadSample:
    """A sample in quarantine: `row` is its number in the dataset, or -1 if it was left out when the source was read."""

    row: int
    column: str  # "" where the whole row is at fault
    location: str  # 'photos/a.jpg' or 'mine.csv:17'
    reason: str


def check_invalid_fraction(
    bad_samples: Sequence[BadSample], num_rows: int, max_invalid_fraction: float
) -> None:
    """Raises SensoriumError, naming the first ones, where a share above `max_invalid_fraction` of the rows, or all, are bad."""
    count = len({b.location for b in bad_samples})
    if not count or (count <= max_invalid_fraction * num_rows and count < num_rows):
        return
    first = "\n".join(
        f"  {b.location}{f', {b.column}' if b.column else ''}: {b.reason}"
        for b in bad_samples[:_MAX_EXAMPLES]
    )
    more = (
        f"\n  and {len(bad_samples) - _MAX_EXAMPLES} more"
        if len(bad_samples) > _MAX_EXAMPLES
        else ""
    )
    columns = sorted({b.column for b in bad_samples if b.column})
    other = f", or say what the column is (--column {columns[0]}=ignore)" if columns else ""
    share = math.ceil(count / num_rows * 100) / 100
    go_on = (
        f", or go on without them: --max-invalid-fraction {share:g}"
        if count < num_rows
        else ". Without them nothing is left"
    )
    limit = (
        f", more than max_invalid_fraction={max_invalid_fraction:g} allows"
        if count > max_invalid_fraction * num_rows
        else ""
    )
    raise SensoriumError(
        f"{count} of {num_rows} rows cannot be used{limit}:\n{first}{more}\nMend them{other}{go_on}."
    )
