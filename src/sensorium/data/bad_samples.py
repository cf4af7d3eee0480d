"""Samples that cannot be used: each has a location and a reason, and too many are an error."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.errors import SensoriumError, escape_line

_MAX_EXAMPLES = 5


@dataclass(frozen=True)
class BadSample:
    """A sample that was left out.

    Attributes:
        row: its row in the dataset, or -1 if it was left out when the source was read.
        column: the column at fault; "" for the whole row.
        location: the row in messages: 'photos/a.jpg' or 'products.csv:17'.
        reason: why it cannot be used.
    """

    row: int
    column: str
    location: str
    reason: str

    def __str__(self) -> str:
        column = f", {self.column}" if self.column else ""
        return escape_line(f"{self.location}{column}: {self.reason}")


def check_invalid_fraction(
    bad_samples: Sequence[BadSample], num_rows: int, max_invalid_fraction: float
) -> None:
    """Check that not too many rows are bad.

    Raises:
        SensoriumError: naming the first bad samples, if more than the fraction
            `max_invalid_fraction` of the rows, or all of them, are bad.
    """
    num_bad = len({sample.location for sample in bad_samples})
    if num_bad == 0:
        return
    too_many = num_bad > max_invalid_fraction * num_rows
    if not too_many and num_bad < num_rows:
        return
    limit = (
        f", more than --max-invalid-fraction {max_invalid_fraction:g} allows" if too_many else ""
    )
    examples = [f"  {sample}" for sample in bad_samples[:_MAX_EXAMPLES]]
    if len(bad_samples) > _MAX_EXAMPLES:
        examples.append(f"  and {len(bad_samples) - _MAX_EXAMPLES} more")
    raise SensoriumError(
        "\n".join(
            [
                f"{num_bad} of {num_rows} rows cannot be used{limit}:",
                *examples,
                _suggest_remedy(bad_samples, num_bad, num_rows),
            ]
        )
    )


def _suggest_remedy(bad_samples: Sequence[BadSample], num_bad: int, num_rows: int) -> str:
    """Return what to do about the bad rows."""
    remedies = ["Fix them"]
    columns = sorted({sample.column for sample in bad_samples if sample.column})
    if columns:
        remedies.append(f"set the type of the column (--type {columns[0]}=ignore)")
    if num_bad >= num_rows:
        return f"{' or '.join(remedies)}. No row would be left without them."
    fraction = math.ceil(num_bad / num_rows * 100) / 100
    remedies.append(f"leave them out with --max-invalid-fraction {fraction:g}")
    return f"{', '.join(remedies[:-1])} or {remedies[-1]}."
