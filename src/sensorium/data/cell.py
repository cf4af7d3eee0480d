"""What one cell of a table spells: nothing, a number, a list, an address."""
import math
from decimal import Decimal
from typing import Any

import numpy as np

from sensorium.data.sources import parse_json

NUMBERS = (int, float, np.number, Decimal)
_MISSING = {"", "na", "n/a", "nan", "null", "none", "-"}


def absent(value: Any) -> bool:
    """None, or not a number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_address(v: Any) -> bool:
    """Whether a cell names something elsewhere."""
    return isinstance(v, str) and v[:8].lower().startswith(("http://", "https://", "s3://", "gs://", "ftp://"))


def as_list(v: Any) -> list[Any] | None:
    """The list that a cell of a CSV file spells in JSON."""
    if not (isinstance(v, str) and v.lstrip().startswith("[") and v.rstrip().endswith("]")):
        return None
    value = parse_json(v)
    return value if isinstance(value, list) else None


def as_number(v: Any) -> float | None:
    """The number a cell spells, NaN for 'n/a' and its like; None if it spells none. '007' is a code, not a number."""
    if isinstance(v, str):
        v = v.strip()
        digits = v.lstrip("+-")
        if v.lower() in _MISSING:
            return math.nan
        if digits[:1] not in "0123456789." or "_" in v or (digits[0] == "0" and digits[1:2].isdigit()):
            return None
    elif isinstance(v, bool) or not isinstance(v, NUMBERS):
        return None
    try:
        return float(v)
    except (ValueError, OverflowError):
        return None
