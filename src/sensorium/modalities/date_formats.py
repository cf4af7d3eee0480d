"""Dates and times as text: ISO 8601 and the forms that spreadsheets, logs and mail write."""

import re
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, timezone

DATE_ORDERS = ("dmy", "mdy")  # of 03/04/2023
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = (
    r"(?P<hour>\d{1,2}):(?P<minute>\d{2})(?::(?P<second>\d{2})(?:[.,](?P<fraction>\d{1,9}))?)?"
    r"(?:\s*(?P<half>[ap])\.?m\.?)?(?:\s*(?P<zone>Z|UTC|GMT|[+-]\d{2}:?\d{2}))?"
)
_TAIL = rf"(?:[T,\s]+{_TIME})?"
_YEAR_FIRST = re.compile(
    rf"(?P<year>\d{{4}})(?P<mark>[./-])(?P<month>\d{{1,2}})(?P=mark)(?P<day>\d{{1,2}}){_TAIL}", re.I
)
_YEAR_LAST = re.compile(
    rf"(?P<first>\d{{1,2}})(?P<mark>[./-])(?P<second_part>\d{{1,2}})(?P=mark)(?P<year>\d{{4}}){_TAIL}",
    re.I,
)
_SHORT_YEAR = re.compile(
    rf"(?P<first>\d{{2}})(?P<mark>[./])(?P<second_part>\d{{2}})(?P=mark)(?P<year>\d{{2}}){_TAIL}",
    re.I,
)
_DAY_MONTH_NAME = re.compile(
    rf"(?:[a-z]{{3,9}},?\s+)?(?P<day>\d{{1,2}})(?:\.|st|nd|rd|th)?[\s-]+(?P<month>[a-z]{{3,9}})\.?"
    rf"[\s,-]+(?P<year>\d{{4}}){_TAIL}",
    re.I,
)
_MONTH_NAME_DAY = re.compile(
    rf"(?:[a-z]{{3,9}},?\s+)?(?P<month>[a-z]{{3,9}})\.?\s+(?P<day>\d{{1,2}})(?:st|nd|rd|th)?,?\s+"
    rf"(?P<year>\d{{4}}){_TAIL}",
    re.I,
)
_TIME_ONLY = re.compile(_TIME, re.I)


def parse_date(text: str, order: str = "") -> datetime | None:
    """Return the moment that a text stands for, None if it is no date.

    A time without a date is on 1970-01-01.

    Args:
        text: a date, a time, or both, with or without a zone.
        order: "dmy" or "mdy", of dates such as 03/04/2023; with points the day is always first.
    """
    text = text.strip()
    if text.isdigit():
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        pass
    for pattern in (_YEAR_FIRST, _YEAR_LAST, _SHORT_YEAR, _DAY_MONTH_NAME, _MONTH_NAME_DAY):
        match = pattern.fullmatch(text)
        if match is not None:
            return _to_datetime(match, order)
    match = _TIME_ONLY.fullmatch(text)
    return None if match is None else _to_datetime(match, order)


def _to_datetime(match: re.Match[str], order: str) -> datetime | None:
    """Return the moment of a match, None if its numbers are out of range."""
    parts = match.groupdict()
    year, month, day = int(parts.get("year") or 1970), parts.get("month"), parts.get("day")
    if "first" in parts:
        first, second = parts["first"], parts["second_part"]
        is_month_first = order == "mdy" and parts["mark"] != "."
        month, day = (first, second) if is_month_first else (second, first)
        if year < 100:
            year += 2000 if year < 70 else 1900
    if month is not None and not month.isdigit():
        name = month[:3].lower()
        month = str(_MONTHS.index(name) + 1) if name in _MONTHS else "0"
    hour = int(parts["hour"] or 0)
    if parts["half"]:
        hour = hour % 12 + (12 if parts["half"].lower() == "p" else 0)
    microsecond = int((parts["fraction"] or "0")[:6].ljust(6, "0"))
    clock = (hour, int(parts["minute"] or 0), int(parts["second"] or 0), microsecond)
    try:
        return datetime(year, int(month or 1), int(day or 1), *clock, tzinfo=_zone(parts["zone"]))
    except ValueError:
        return None


def _zone(text: str | None) -> timezone | None:
    """Return the zone of +02:00, UTC or Z; None if none is written."""
    if text is None:
        return None
    if text[0] not in "+-":
        return UTC
    minutes = int(text[1:3]) * 60 + int(text[-2:])
    return timezone(timedelta(minutes=-minutes if text[0] == "-" else minutes))


def find_date_order(texts: Iterable[str]) -> str | None:
    """Return the order in which the most dates can be read.

    Returns:
        "dmy" or "mdy"; "" if no date depends on it; None if every date can be read either way and
        some differ.
    """
    readable = dict.fromkeys(DATE_ORDERS, 0)
    num_different = 0
    for text in texts:
        day_first, month_first = (parse_date(text, order) for order in DATE_ORDERS)
        readable["dmy"] += day_first is not None
        readable["mdy"] += month_first is not None
        num_different += day_first != month_first
    if not num_different:
        return ""
    if readable["dmy"] == readable["mdy"]:
        return None
    return max(DATE_ORDERS, key=readable.__getitem__)
