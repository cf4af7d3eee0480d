"""Samples that cannot be used: each has a location and a reason, and too many are an error."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from sensorium.errors import SensoriumError, escape_line

MIN_BAD_ROWS = 10  # from which on the limit stops, as long as most rows are good
_MAX_EXAMPLES = 5  # locations named of each reason
_MAX_REASONS = 8
_DETAIL = re.compile(  # what differs between samples that are bad for one reason
    r"'[^']*'|\"[^\"]*\"|(?<=there is no file ).*|(?<=\w\()[^()]*(?=\))|\d[\d.,]*"
)


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


def summarize_bad_samples(bad_samples: Sequence[BadSample]) -> list[str]:
    """Return a line for each reason, the most frequent first: "248 x .svg files ...: a.svg, ...".

    Reasons that differ only in a quoted value, a number or a path are one; a sample that is alone
    is a line of its own.
    """
    groups: dict[tuple[str, str], list[BadSample]] = {}
    for sample in bad_samples:
        key = sample.column, _DETAIL.sub("", sample.reason)
        groups.setdefault(key, []).append(sample)
    ordered = sorted(groups.values(), key=len, reverse=True)
    lines = [_describe_group(group) for group in ordered[:_MAX_REASONS]]
    rest = ordered[_MAX_REASONS:]
    if rest:
        lines.append(f"{sum(map(len, rest)):,} more, for {len(rest)} other reasons")
    return lines


def _describe_group(group: Sequence[BadSample]) -> str:
    """Return one line about the samples that are bad for one reason."""
    first = group[0]
    if len(group) == 1:
        return str(first)
    column = f"{first.column}: " if first.column else ""
    is_same = all(sample.reason == first.reason for sample in group)
    more = ", ..." if len(group) > _MAX_EXAMPLES else ""
    if is_same:
        examples = ", ".join(sample.location for sample in group[:_MAX_EXAMPLES])
        return f"{len(group):,} x {column}{first.reason} ({examples}{more})"
    examples = ", ".join(sample.location for sample in group[1:_MAX_EXAMPLES])
    return (
        f"{len(group):,} x {column}such as {first.location}: {first.reason} (also {examples}{more})"
    )


def check_invalid_fraction(
    bad_samples: Sequence[BadSample], num_rows: int, max_invalid_fraction: float
) -> None:
    """Check that not too many rows are bad.

    Fewer than MIN_BAD_ROWS bad rows are never too many as long as more than half of the rows are
    good: one bad image does not stop a folder of 60. A limit of 0 allows none.

    Raises:
        SensoriumError: naming the bad samples by reason, if more than the fraction
            `max_invalid_fraction` of the rows, or all of them, are bad.
    """
    num_bad = len({sample.location for sample in bad_samples})
    if num_bad == 0:
        return
    is_few = num_bad < MIN_BAD_ROWS and 2 * num_bad < num_rows and max_invalid_fraction > 0
    too_many = num_bad > max_invalid_fraction * num_rows and not is_few
    if not too_many and num_bad < num_rows:
        return
    limit = (
        f", more than --max-invalid-fraction {max_invalid_fraction:g} allows" if too_many else ""
    )
    raise SensoriumError(
        "\n".join(
            [
                f"{num_bad} of {num_rows} rows cannot be used{limit}:",
                *(f"  {line}" for line in summarize_bad_samples(bad_samples)),
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
