"""What one cell of a table spells: nothing, a number, a list, an address."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

from sensorium.data.tables import parse_json

NUMBER_TYPES = (int, float, np.number, Decimal)
_MISSING_MARKERS = {"", "na", "n/a", "nan", "null", "none", "-"}


def is_missing(value: Any) -> bool:
    """None, or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_url(cell: Any) -> bool:
    """Whether a cell names something elsewhere."""
    return isinstance(cell, str) and cell[:8].lower().startswith(
        ("http://", "https://", "s3://", "gs://", "ftp://")
    )


def parse_list(cell: Any) -> list[Any] | None:
    """The list that a cell of a CSV file spells in JSON."""
    if not (
        isinstance(cell, str) and cell.lstrip().startswith("[") and cell.rstrip().endswith("]")
    ):
        return None
    value = parse_json(cell)
    return value if isinstance(value, list) else None


def parse_number(cell: Any) -> float | None:
    """The number a cell spells, NaN for 'n/a' and its like; None if it spells none. '007' is a code, not a number."""
    if isinstance(cell, str):
        cell = cell.strip()
        digits = cell.lstrip("+-")
        if cell.lower() in _MISSING_MARKERS:
            return math.nan
        if (
            digits[:1] not in "0123456789."
            or "_" in cell
            or (digits[0] == "0" and digits[1:2].isdigit())
        ):
            return None
    elif isinstance(cell, bool) or not isinstance(cell, NUMBER_TYPES):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
