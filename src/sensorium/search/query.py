"""Queries: values of several kinds as lists of one length, and their display."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.errors import SensoriumError
from sensorium.io.untrusted import EmbeddedFile, replace_surrogates
from sensorium.search.results import RowInfo, file_names, make_thumbnail

QUERY_KINDS = ("text", "image", "vector")


def collect_inputs(text: Any, image: Any, vector: Any) -> dict[str, Any]:
    """Return the values that are not None, by kind."""
    values = dict(zip(QUERY_KINDS, (text, image, vector), strict=True))
    return {kind: value for kind, value in values.items() if value is not None}


def as_query_lists(inputs: Mapping[str, Any]) -> tuple[dict[str, list[Any]], bool]:
    """Return every kind as a list of the same length; a single value is repeated.

    Args:
        inputs: a value or a list of values by kind.

    Returns:
        The lists, and whether any input was a list.

    Raises:
        SensoriumError: there is no input, or the lists differ in length.
    """
    if not inputs:
        raise SensoriumError("There is no query. Give a search text or --image PATH (or vector=).")
    lengths = {kind: len(value) for kind, value in inputs.items() if _is_list(kind, value)}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{lengths.get(kind, 1)} {kind}" for kind in inputs)
        raise SensoriumError(f"The lists of a query differ in length: {counts}. Make them equal.")
    n = next(iter(lengths.values()), 1)
    lists = {
        kind: list(value) if kind in lengths else [value] * n for kind, value in inputs.items()
    }
    if "text" in lists:
        lists["text"] = replace_surrogates(lists["text"])
    return lists, bool(lengths)


def check_search(
    inputs: Mapping[str, Any],
    k: int,
    weights: Mapping[str, float],
    *,
    vector_only: bool,
    text_only: bool,
) -> None:
    """Check the options of a search.

    Raises:
        SensoriumError: one is invalid, or they contradict each other.
    """
    if k < 1:
        raise SensoriumError(f"-k must be at least 1, not {k}.")
    if set(weights) - set(inputs):
        raise SensoriumError(
            f"weights={weights!r} has kinds that the query does not have: it has "
            f"{', '.join(inputs)}."
        )
    if text_only and vector_only:
        raise SensoriumError("--text-only and --vector-only exclude each other. Give one of them.")
    if text_only and set(inputs) != {"text"}:
        others = " and ".join(kind for kind in inputs if kind != "text")
        raise SensoriumError(
            f"--text-only searches a text by its words, and there is also {others}. Leave one out."
        )


def row_info_of(kind: str, value: Any) -> RowInfo:
    """Return what to show of an added value, by default."""
    captions = [value] if kind == "text" else []
    is_file = kind != "text" and isinstance(value, str | Path | EmbeddedFile)
    files = file_names(value) if is_file else []
    return RowInfo(describe_value(value), kind, captions, {"file": files} if files else {})


def describe_value(value: Any) -> str:
    """Return a query value as text."""
    if isinstance(value, str | Path | EmbeddedFile):
        return replace_surrogates(str(value))
    is_vector = isinstance(value, np.ndarray | list) and np.ndim(value) == 1
    return "a vector" if is_vector else "an image"


def query_thumbnail(image: Any) -> bytes:
    """Return a PNG of a query image.

    Raises:
        SensoriumError: it cannot be read.
    """
    try:
        return make_thumbnail(image)
    except ValueError as e:
        raise SensoriumError(
            f"{describe_value(image)} cannot be read: {e}. Give an image file."
        ) from e


def _is_list(kind: str, value: Any) -> bool:
    """Return whether a value is a list of values of its kind."""
    if kind == "vector":
        if isinstance(value, np.ndarray):
            return value.ndim == 2
        return isinstance(value, list | tuple) and np.ndim(value[:1]) == 2
    return isinstance(value, list | tuple)
