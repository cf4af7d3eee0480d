"""Attributes of rows, which are searched by words beside captions: what other columns call a row.

These are classes and tags, identifiers and groups (columns that no model reads) and file names.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sensorium.data.dataset import Dataset
from sensorium.data.schema import SET_BY_USER, extensions
from sensorium.io.untrusted import EmbeddedFile, replace_surrogates
from sensorium.modalities.multilabel import Multilabel
from sensorium.search.results import file_names

MAX_CHARACTERS = 200  # of an identifier; longer cells are something else
CLASS_TYPES = ("category", "ordinal")


def read_attributes(
    dataset: Dataset, rows: Sequence[int] | np.ndarray
) -> list[dict[str, list[str]]]:
    """Return the attributes of rows by column; a column without a value is left out."""
    attributes: list[dict[str, list[str]]] = [{} for _ in rows]
    for name in _attribute_columns(dataset):
        for row_attributes, raw in zip(attributes, dataset.raw(name, rows), strict=True):
            values = _read_values(dataset, name, raw)
            if values:
                row_attributes[name] = replace_surrogates(values)
    return attributes


def _attribute_columns(dataset: Dataset) -> list[str]:
    """Return the columns that may have attributes, in the order of the data."""
    schema = dataset.schema
    names = [
        name
        for name, column in schema.columns.items()
        if column.kind in (*CLASS_TYPES, "multilabel") or extensions(column.kind) is not None
    ]
    names += [
        name
        for name, role in schema.roles.items()
        if role.kind in ("group", "ignore") and role.reason != SET_BY_USER
    ]
    return [name for name in dataset.table.columns if name in names]


def _read_values(dataset: Dataset, name: str, raw: Any) -> list[str]:
    """Return the attributes in one value."""
    column = dataset.schema.columns.get(name)
    if column is None:
        return _read_identifier(raw)
    if isinstance(column.modality, Multilabel):
        return [] if raw is None else column.modality.split_tags(raw)
    if column.kind in CLASS_TYPES:
        return [] if raw is None else [str(raw)]
    return file_names(raw) if isinstance(raw, str | Path | EmbeddedFile) else []


def _read_identifier(raw: Any) -> list[str]:
    """Return a text or a whole number that may name a row."""
    if isinstance(raw, float | np.floating) and float(raw).is_integer():
        raw = int(raw)
    if isinstance(raw, bool) or not isinstance(raw, str | int | np.integer):
        return []
    text = str(raw).strip()
    return [text] if text and len(text) <= MAX_CHARACTERS else []
