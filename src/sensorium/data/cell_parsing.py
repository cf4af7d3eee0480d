"""Parse one cell of a table: a missing value, a number, a list or a URL."""

import math
from decimal import Decimal
from typing import Any

import numpy as np

from sensorium.data.list_cells import parse_python_list
from sensorium.data.number_format import PLAIN, NumberFormat, parse_number_as
from sensorium.data.tables import parse_json

NUMBER_TYPES = (int, float, np.number, Decimal)
_URL_PREFIXES = ("http://", "https://", "s3://", "gs://", "ftp://")


def is_missing(value: Any) -> bool:
    """Return whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_url(cell: Any) -> bool:
    """Return whether a cell is a web address."""
    return isinstance(cell, str) and cell[:8].lower().startswith(_URL_PREFIXES)


def parse_list(cell: Any) -> list[Any] | None:
    """Return the list in a cell, as JSON, Python or numpy write it; None if it holds none."""
    if not isinstance(cell, str):
        return None
    if cell.lstrip().startswith("[") and cell.rstrip().endswith("]"):
        value = parse_json(cell)
        if isinstance(value, list):
            return value
    return parse_python_list(cell)


def parse_number(cell: Any, number_format: NumberFormat = PLAIN) -> float | None:
    """Return the number in a cell, NaN for 'n/a' and the like, None for anything else.

    A leading zero, as in '007', marks a code and not a number.

    Args:
        cell: a text or a number.
        number_format: how numbers are written in its column.
    """
    if isinstance(cell, str):
        return parse_number_as(cell, number_format)
    if isinstance(cell, bool) or not isinstance(cell, NUMBER_TYPES):
        return None
    try:
        return float(cell)
    except (ValueError, OverflowError):
        return None
