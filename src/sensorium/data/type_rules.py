"""The rules that infer the type of a column from its values, from the most to the least certain.

A rule returns the type and the reason, in words that can be checked against the data, or None where
it does not apply.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from sensorium.data.base64_cells import detect_base64, detect_content
from sensorium.data.cell_parsing import NUMBER_TYPES, is_url, parse_list, parse_number
from sensorium.data.common_names import COMMON_NAMES, UNNAMED, is_key_name
from sensorium.data.file_names import FileFinder
from sensorium.data.list_cells import is_abbreviated_array
from sensorium.data.number_format import NumberFormat, find_number_format
from sensorium.data.schema import MODALITIES, extensions
from sensorium.data.splits import KNOWN_SPLITS
from sensorium.data.tables import IMAGE_EXTENSIONS, UNSUPPORTED_IMAGE_EXTENSIONS, Table
from sensorium.data.tag_rules import MAX_TAG_CHARACTERS, count_listed_tags, find_tag_separator
from sensorium.modalities.base import is_missing_marker
from sensorium.modalities.date_formats import find_date_order, parse_date

BOOLEANS = ("true", "false")  # how text spells them, in lower case
IMAGE_URL = "image url"  # in place of a type: web addresses of images, which are not fetched
MISSING_IMAGE = "missing image"  # in place of a type: paths of images, none of which exists
_MAX_CHECKED_PATHS = 1000  # files whose existence is checked
_MAX_CHECKED_STEPS = 100  # of a series, whose values are checked
_MAX_SPLITS = 20  # different values of a split column
_MIN_PATH_FRACTION = 0.5  # of values that are files or end like them
_MIN_URL_FRACTION = 0.5  # of values that are web addresses
_MIN_COUNTING_FRACTION = 0.9  # of steps by one in a counter, which may start again
_MAX_CHECKED_DATES = 100  # texts, of which one must be a date
_MIN_NUMBER_FRACTION = 0.5  # of values that are numbers, where the others are named


class InferredType(NamedTuple):
    """A type, a role, IMAGE_URL or MISSING_IMAGE, and the reason."""

    kind: str
    reason: str


class Sample(NamedTuple):
    """The values by which a column's type is inferred.

    Attributes:
        name: the column, in lower case.
        values: values that are not missing.
        rows: their rows in the table.
        table: where relative paths start from.
        max_invalid_fraction: the largest fraction of values that may not fit the type.
    """

    name: str
    values: list[Any]
    rows: list[int]
    table: Table
    max_invalid_fraction: float

    def is_type(self, num_fit: int) -> bool:
        """Return whether enough values fit a type."""
        num_invalid = len(self.values) - num_fit
        return num_fit > 0 and num_invalid <= self.max_invalid_fraction * len(self.values)


def infer_from_sample(sample: Sample) -> InferredType:
    """Return the type of a column by the first rule that applies."""
    for rule in _RULES:
        inferred = rule(sample)
        if inferred is not None:
            return inferred
    types = sorted({type(v).__name__ for v in sample.values})
    return InferredType("ignore", f"values of type {', '.join(types[:4])} are not supported")


def _infer_pixels(sample: Sample) -> InferredType | None:
    """Recognise encoded images, also as base64, arrays of pixels and encoded audio."""
    contents = Counter(map(_detect_content, sample.values))
    for kind, described in (("image", "images"), ("audio", "audio files")):
        num_fit = contents[kind]
        if num_fit and num_fit >= _MIN_PATH_FRACTION * len(sample.values):
            is_base64 = any(isinstance(value, str) for value in sample.values)
            written = " in base64" if is_base64 else ""
            return InferredType(
                kind, f"{num_fit} of {len(sample.values)} values are {described}{written}"
            )
    return None


def _detect_content(value: Any) -> str:
    """Return "image" or "audio" for a value that is one, "" for another."""
    if isinstance(value, np.ndarray):
        is_pixels = value.ndim == 3 and value.shape[2] == 3 and value.dtype == np.uint8
        return "image" if is_pixels else ""
    return detect_content(value) if isinstance(value, bytes) else detect_base64(value)


def _infer_paths(sample: Sample) -> InferredType | None:
    """Recognise paths by their extension; those of images even where no file exists."""
    if sample.name in COMMON_NAMES["text"]:
        return None
    for kind in ("image", *(k for k in MODALITIES if k != "image" and extensions(k))):
        endings = extensions(kind) or ()
        if kind == "image":
            endings = (*endings, *UNSUPPORTED_IMAGE_EXTENSIONS)
        paths = {
            row: value
            for row, value in zip(sample.rows, sample.values, strict=True)
            if isinstance(value, str) and value.lower().endswith(endings) and not is_url(value)
        }
        if len(paths) < _MIN_PATH_FRACTION * len(sample.values):
            continue
        num_existing, checked = _count_existing(sample.table, paths)
        is_supported = any(p.lower().endswith(extensions(kind) or ()) for p in paths.values())
        if num_existing or (kind == "image" and is_supported):
            suffixes = sorted({path[path.rindex(".") :].lower() for path in paths.values()})
            reason = f"{len(paths)} of {len(sample.values)} values end in {', '.join(suffixes)}"
            return InferredType(
                kind if num_existing else MISSING_IMAGE, f"{reason} and {checked} exist"
            )
    return None


def _count_existing(table: Table, paths: dict[int, str]) -> tuple[int, str]:
    """Return how many of at most _MAX_CHECKED_PATHS files exist, as a number and in words."""
    rows = list(paths)[:: -(-len(paths) // _MAX_CHECKED_PATHS)]
    finder = FileFinder()
    num_existing = sum(
        finder.find(table.base_folder(row), paths[row].replace("\\", "/")) is not None
        for row in rows
    )
    if len(rows) == len(paths):
        return num_existing, f"{num_existing}"
    return num_existing, f"{num_existing} of {len(rows)} checked"


def _infer_urls(sample: Sample) -> InferredType | None:
    """Recognise web addresses."""
    urls = [v for v in sample.values if is_url(v)]
    if len(urls) < _MIN_URL_FRACTION * len(sample.values):
        return None
    num_images = sum(url.lower().split("?")[0].endswith(IMAGE_EXTENSIONS) for url in urls)
    of_images = num_images * 2 > len(urls) or sample.name in COMMON_NAMES["image"]
    content = "web addresses of images" if of_images else "web addresses"
    return InferredType(
        IMAGE_URL if of_images else "ignore",
        f"{len(urls)} of {len(sample.values)} values are {content}, and nothing is fetched",
    )


def _infer_series(sample: Sample) -> InferredType | None:
    """Recognise lists of numbers."""
    num_abbreviated = sum(map(is_abbreviated_array, sample.values))
    if num_abbreviated * 2 > len(sample.values):
        return InferredType(
            "ignore",
            f"{num_abbreviated} of {len(sample.values)} values are arrays that numpy shortened "
            "with '...': write them with tolist()",
        )
    series = [v for v in map(parse_series, sample.values) if v is not None]
    if not sample.is_type(len(series)):
        return None
    lengths = sorted(map(len, series))
    return InferredType(
        "series",
        f"{len(series)} of {len(sample.values)} values are lists of numbers, {lengths[0]} to "
        f"{lengths[-1]} steps long",
    )


def parse_series(value: Any) -> list[Any] | np.ndarray | None:
    """Return the series in a cell, None if it holds none.

    A series is a list or array of numbers or, for several channels, of lists of numbers; in text it
    is written as JSON, Python or numpy write it.
    """
    if isinstance(value, np.ndarray):
        is_series = value.ndim in (1, 2) and len(value) and value.dtype.kind in "fiu"
        return value if is_series else None
    steps = parse_list(value) if isinstance(value, str) else value
    if not isinstance(steps, list) or not steps:
        return None
    channels = (step if isinstance(step, list) else [step] for step in steps[:_MAX_CHECKED_STEPS])
    numbers = [x for step in channels for x in step if x is not None]
    if not numbers:
        return None
    if any(isinstance(x, bool) or not isinstance(x, NUMBER_TYPES) for x in numbers):
        return None
    return steps


def _infer_role(sample: Sample) -> InferredType | None:
    """Recognise split and group columns by their names."""
    is_group = sample.name in COMMON_NAMES["group"]
    if not is_group and sample.name not in COMMON_NAMES["split"]:
        return None
    if not all(isinstance(v, str | int) for v in sample.values):
        return None
    distinct = sorted({str(v) for v in sample.values})
    if is_group:
        return InferredType(
            "group",
            f"named {sample.name!r}: rows with equal values stay in one split; "
            f"{len(distinct)} values",
        )
    if len(distinct) <= _MAX_SPLITS and any(v.strip().lower() in KNOWN_SPLITS for v in distinct):
        return InferredType("split", f"named {sample.name!r} with values {', '.join(distinct[:5])}")
    return None


def _infer_captions(sample: Sample) -> InferredType | None:
    """Recognise lists of texts."""
    lists = [v if isinstance(v, list) else parse_list(v) for v in sample.values]
    sizes = [len(v) for v in lists if v is not None and all(isinstance(t, str) for t in v)]
    if not sample.is_type(len(sizes)):
        return None
    texts = [v for v in lists if v is not None and all(isinstance(t, str) for t in v)]
    num_tags = count_listed_tags(sample.name, texts)
    if num_tags:
        return InferredType("multilabel", f"lists of tags, {num_tags} different ones")
    return InferredType(
        "text",
        f"{len(sizes)} of {len(sample.values)} values are lists of texts, "
        f"{sum(sizes) / len(sizes):.1f} per row",
    )


def _infer_numeric(sample: Sample) -> InferredType | None:
    """Recognise numbers, and among them row numbers, class numbers and constants."""
    number_format = find_number_format(sample.values)
    numbers = _parse_numbers(sample.values, number_format)
    finite = [n for n in numbers if math.isfinite(n)]
    if not finite or not sample.is_type(len(numbers)):
        return None
    name = sample.name
    num_distinct = len(set(finite))
    is_whole = all(n.is_integer() for n in finite)
    if is_whole and len(finite) > 1 and UNNAMED.fullmatch(name):
        return InferredType("ignore", "whole numbers without a column name: they number the rows")
    if is_whole and num_distinct == len(finite) > 1 and is_key_name(name):
        return InferredType("ignore", f"named {name!r} and all different: it only numbers the rows")
    if is_whole and _is_counter(finite) and is_key_name(name, "id"):
        return InferredType("ignore", f"named {name!r} and counting up: it only numbers the rows")
    max_classes = max(20, min(1000, len(finite) // 10))
    if is_whole and name in COMMON_NAMES["category"] and num_distinct <= max_classes:
        return InferredType(
            "category", f"named {name!r} with {num_distinct} different whole numbers"
        )
    if num_distinct == 1 and len(finite) > 1:
        return InferredType("ignore", f"the same number in all of {len(finite)} values")
    written = f" {number_format.describe()}".rstrip()
    return InferredType(
        "numeric",
        f"{len(numbers)} of {len(sample.values)} values are numbers{written}, {min(finite):g} to "
        f"{max(finite):g}",
    )


def _parse_numbers(values: Sequence[Any], number_format: NumberFormat) -> list[float]:
    """Return the numbers among some values, NaN for a missing marker."""
    return [n for n in (_parse_fitting(v, number_format) for v in values) if n is not None]


def _parse_fitting(value: Any, number_format: NumberFormat) -> float | None:
    """Return the number in a cell; among percentages, None for one without the sign."""
    number = parse_number(value, number_format)
    is_percent = number_format.unit == "%" and isinstance(value, str)
    return None if is_percent and number and "%" not in value and number == number else number


def _describe_near_numbers(values: Sequence[Any]) -> str:
    """Return what keeps mostly numeric values from being numbers, "" if they are not."""
    number_format = find_number_format(values)
    others = [v for v in values if _parse_fitting(v, number_format) is None]
    num_numbers = len(values) - len(others)
    if not others or num_numbers < _MIN_NUMBER_FRACTION * len(values):
        return ""
    examples = [repr(str(v)[:20]) for v in dict.fromkeys(map(str, others))]
    more = ", ..." if len(examples) > 5 else ""
    return (
        f"; {num_numbers} of {len(values)} are numbers; the others: {', '.join(examples[:5])}{more}"
    )


def _infer_text(sample: Sample) -> InferredType | None:
    """Recognise strings: dates, tags, classes, identifiers and text."""
    if all(isinstance(v, bool) or str(v).strip().lower() in BOOLEANS for v in sample.values):
        return InferredType("category", "true or false")
    texts = [v for v in sample.values if isinstance(v, str)]
    if not sample.is_type(len(texts)):
        return None
    dates = _infer_dates(sample, texts)
    if dates is not None:
        return dates
    tags = find_tag_separator(sample.name, texts)
    if tags is not None:
        separator, num_tags = tags
        return InferredType(
            "multilabel", f"tags separated by {separator!r}, {num_tags} different ones"
        )
    kind, reason = _infer_from_strings(sample.name, texts)
    return InferredType(kind, reason + _describe_near_numbers(sample.values))


def _infer_dates(sample: Sample, texts: Sequence[str]) -> InferredType | None:
    """Recognise dates and times that `Datetime.load` can read."""
    present = [text for text in texts if not is_missing_marker(text)]
    if not present or all(parse_date(text) is None for text in present[:_MAX_CHECKED_DATES]):
        return None
    order = find_date_order(present) or ""
    num_dates = sum(parse_date(text, order) is not None for text in present)
    if not sample.is_type(num_dates + len(texts) - len(present)):
        return None
    written = {"dmy": ", the day first", "mdy": ", the month first"}.get(order, "")
    return InferredType("datetime", f"{num_dates} of {len(present)} values are dates{written}")


def _infer_from_strings(name: str, texts: Sequence[str]) -> InferredType:
    """Distinguish classes, identifiers and text."""
    num_distinct = len(set(texts))
    max_characters = max(map(len, texts))
    mean_words = sum(len(text.split()) for text in texts) / len(texts)
    for kind in ("category", "text"):
        if name in COMMON_NAMES[kind]:
            return InferredType(
                kind,
                f"named {name!r}; {num_distinct} different values, {mean_words:.1f} words each",
            )
    if num_distinct == 1 and len(texts) > 1:
        return InferredType("ignore", f"the same text in all of {len(texts)} values")
    if num_distinct * 10 <= len(texts) and max_characters <= MAX_TAG_CHARACTERS:
        return InferredType(
            "category",
            f"{num_distinct} different values among {len(texts)}, at most {max_characters} "
            "characters long",
        )
    if num_distinct == len(texts) > 1 and UNNAMED.fullmatch(name):
        return InferredType("ignore", "all different, without a column name: it names the rows")
    if mean_words == 1 and num_distinct == len(texts) > 1 and is_key_name(name):
        return InferredType("ignore", f"named {name!r} and all different: it only names the rows")
    return InferredType(
        "text", f"{num_distinct} different values among {len(texts)}, {mean_words:.1f} words each"
    )


def _is_counter(numbers: Sequence[float]) -> bool:
    """Return whether nearly every number is one more than the number before."""
    steps = np.diff(numbers)
    num_by_one = int((steps == 1).sum())
    return num_by_one > 0 and num_by_one >= _MIN_COUNTING_FRACTION * len(steps)


_RULES: tuple[Callable[[Sample], InferredType | None], ...] = (
    _infer_pixels,
    _infer_paths,
    _infer_urls,
    _infer_series,
    _infer_role,
    _infer_captions,
    _infer_numeric,
    _infer_text,
)
