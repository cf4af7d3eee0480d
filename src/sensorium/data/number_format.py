"""Numbers as people write them: 1,234.5 or 1.234,5, $1,200, 12.5 %, (300)."""

import math
import re
from collections import Counter
from collections.abc import Iterable
from functools import cache
from typing import Any, NamedTuple

from sensorium.modalities.base import is_missing_marker

_CURRENCY = (
    r"US\$|A\$|C\$|R\$|[$€£¥₹₽₩₺₪₫฿]|USD|EUR|GBP|CHF|JPY|CNY|RMB|INR|AUD|CAD|NZD|SEK|NOK|DKK|PLN|"
    r"CZK|HUF|BRL|MXN|ZAR|KRW|Rs\.?|kr\.?|zł"
)
_SPACES = " \u00a0\u2009\u202f"
_WRITTEN_NUMBER = re.compile(
    rf"(?P<open>\()?\s*(?P<sign>[+\-\u2212])?\s*(?P<before>{_CURRENCY})?\s*(?P<inner>[+\-\u2212])?"
    rf"(?P<digits>[0-9.,'\u2019{_SPACES}]*[0-9][.,]?(?:e[+-]?[0-9]+)?)\s*(?P<after>{_CURRENCY}|%)?\s*(?P<close>\))?",
    re.IGNORECASE,
)
_PLAIN_NUMBER = re.compile(r"[+-]?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")


class NumberFormat(NamedTuple):
    """How the numbers of a column are written.

    Attributes:
        decimal: the decimal mark, "." or ",".
        unit: the currency or "%", which is left out; 12.5 % is read as 12.5.
    """

    decimal: str = "."
    unit: str = ""

    def describe(self) -> str:
        """Return what differs from plain numbers, for people."""
        parts = [f"with {self.decimal!r} as decimal mark"] if self.decimal == "," else []
        return " ".join([*parts, f"in {self.unit}"] if self.unit else parts)


PLAIN = NumberFormat()


def parse_written_number(cell: str, decimal: str) -> tuple[float, str] | None:
    """Return the number in a cell and its unit, None if it is none.

    Args:
        cell: text without white space around it.
        decimal: the decimal mark; the other mark, a space or an apostrophe parts thousands.
    """
    match = _WRITTEN_NUMBER.fullmatch(cell)
    if match is None or bool(match["open"]) != bool(match["close"]):
        return None
    if (match["sign"] and match["inner"]) or (match["before"] and match["after"]):
        return None
    number = _number_pattern(decimal).fullmatch(match["digits"])
    if number is None:
        return None
    whole = re.sub(r"\D", "", number["whole"] or "")
    if whole[:1] == "0" and len(whole) > 1:  # 007 is a code
        return None
    text = f"{whole or 0}.{number['fraction'] or 0}{number['exponent'] or ''}"
    is_negative = match["open"] or (match["sign"] or match["inner"] or "+") != "+"
    return float(text) * (-1 if is_negative else 1), match["before"] or match["after"] or ""


@cache
def _number_pattern(decimal: str) -> re.Pattern[str]:
    """Return the pattern of digits with this decimal mark, thousands parted or not."""
    thousands = "," if decimal == "." else "."
    mark = f"[{thousands}'\u2019{_SPACES}]"
    grouped = rf"[0-9]{{1,3}}(?P<mark>{mark})[0-9]{{3}}(?:(?P=mark)[0-9]{{3}})*"
    indian = rf"[0-9]{{1,2}}(?:{re.escape(thousands)}[0-9]{{2}})+{re.escape(thousands)}[0-9]{{3}}"
    return re.compile(
        rf"(?P<whole>{grouped}|{indian}|[0-9]*)(?:{re.escape(decimal)}(?P<fraction>[0-9]*))?"
        r"(?P<exponent>[eE][+-]?[0-9]+)?"
    )


def find_number_format(values: Iterable[Any]) -> NumberFormat:
    """Return the format in which most of the texts among some values are numbers.

    A number without a currency fits among amounts, but not among percentages.
    """
    cells = [v.strip() for v in values if isinstance(v, str) and not is_missing_marker(v)]
    if all(map(_PLAIN_NUMBER.fullmatch, cells)):
        return PLAIN
    best, most = PLAIN, -1
    for decimal in (".", ","):
        units = Counter(
            parsed[1] for cell in cells if (parsed := parse_written_number(cell, decimal))
        )
        unit = max((u for u in units if u), key=units.__getitem__, default="")
        if unit == "%" and units["%"] < units[""]:
            unit = ""
        num_fit = units[unit] + (units[""] if unit not in ("", "%") else 0)
        if num_fit > most:
            best, most = NumberFormat(decimal, unit), num_fit
    return best


def parse_number_as(cell: str, number_format: NumberFormat) -> float | None:
    """Return the number in a cell of this format, NaN for a missing marker, None for the rest."""
    cell = cell.strip()
    if is_missing_marker(cell):
        return math.nan
    if number_format.decimal == "." and _PLAIN_NUMBER.fullmatch(cell):
        return float(cell)
    parsed = parse_written_number(cell, number_format.decimal)
    if parsed is None or parsed[1] not in ("", number_format.unit):
        return None
    return parsed[0]
