"""Captions of rows: the texts of one or several columns as one flat list per row."""

from collections.abc import Iterable
from typing import Any


def caption_list(value: Any) -> list[Any]:
    """Return the captions in a raw value: nothing, a text or a list of texts."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def flatten_captions(values: Iterable[Any]) -> list[Any]:
    """Return the captions of one row as one list.

    Args:
        values: the raw value of each of its text columns: None, a text or a list of texts.
    """
    return [caption for value in values for caption in caption_list(value)]
