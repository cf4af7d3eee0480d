"""Infer the type of each column of a table, with a reason that can be checked against the data."""

import itertools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from sensorium.data.cell_parsing import is_missing
from sensorium.data.number_format import find_number_format
from sensorium.data.schema import (
    MODALITIES,
    ROLES,
    SET_BY_USER,
    Column,
    Role,
    Schema,
    extensions,
    split_pair,
    unknown_column_error,
)
from sensorium.data.tables import Table, parse_json
from sensorium.data.tag_rules import TAG_SEPARATORS, find_tag_separator
from sensorium.data.type_rules import (
    IMAGE_URL,
    MISSING_IMAGE,
    InferredType,
    Sample,
    infer_from_sample,
)
from sensorium.errors import SensoriumError
from sensorium.modalities.audio import Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.date_formats import find_date_order, parse_date
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.tabular import Numeric

MAX_SAMPLED_ROWS = 10_000  # of each column; the inferred type is then checked against every row
MAX_AUDIO_SECONDS = 60.0  # of a column, unless --type NAME=audio:max_seconds=300 sets another limit
_PANDAS_INDEX_NAME = re.compile(r"__index_level_\d+__")
_JSON_TYPES = {tuple: list, float: (int, float)}  # how JSON writes the values of settings


def infer_schema(
    table: Table, types: Mapping[str, str | Modality], max_invalid_fraction: float = 0.01
) -> Schema:
    """Return the schema of a table.

    Args:
        table: the raw values.
        types: the types of columns for which they are not inferred: a name, a name with settings
            such as "image:size=128:resize_mode=pad", or a modality.
        max_invalid_fraction: the largest fraction of values that may not fit the inferred type.

    Raises:
        SensoriumError: for an unknown column or type, and where the only images are web addresses.
    """
    user_types = _parse_types(table, types)
    role_columns = {
        kind: name
        for name, kind in user_types.items()
        if isinstance(kind, str) and kind in ("split", "group")
    }
    columns: dict[str, Column] = {}
    roles: dict[str, Role] = {}
    for name, values in table.columns.items():
        if name in user_types:
            kind, reason = user_types[name], SET_BY_USER
        else:
            kind, reason = _infer_type(table, name, values, max_invalid_fraction)
        if isinstance(kind, str) and kind in ("split", "group"):
            role_column = role_columns.setdefault(kind, name)
            if role_column != name:
                kind, reason = "ignore", f"the {kind} is in the column {role_column!r}"
        if not isinstance(kind, str):
            columns[name] = Column(name, kind, reason)
        elif kind in MODALITIES:
            columns[name] = Column(name, _default_modality(kind, name, values), reason)
        else:
            roles[name] = Role(name, kind, reason)
    return _drop_unusable_images(Schema(columns, roles))


def _parse_types(table: Table, types: Mapping[str, str | Modality]) -> dict[str, str | Modality]:
    """Return the type that the user set for each column."""
    parsed: dict[str, str | Modality] = {}
    for name, kind in types.items():
        column = name
        if isinstance(kind, str) and "=" in kind:  # the first "=" may be part of the column's name
            column, kind = split_pair(f"{name}={kind}", table.columns)
        parsed[column] = _parse_type(table, column, kind)
    return parsed


def _parse_type(table: Table, name: str, kind: str | Modality) -> str | Modality:
    """Return a type without settings by its name, and one with settings as a modality."""
    if name not in table.columns:
        raise unknown_column_error(name, table.columns, f"Columns: {', '.join(table.columns)}.")
    if not isinstance(kind, str):
        return kind
    kind, *pairs = kind.split(":")
    if kind not in (*MODALITIES, *ROLES):
        raise SensoriumError(
            f"--type {name}={kind}: {kind!r} is not a type. Choose "
            f"{', '.join((*MODALITIES, *ROLES))}. "
            "If a file of yours adds it, name it before the command: sensorium --use mine.py ..."
        )
    if not pairs:
        return kind
    settings = _parse_settings(name, kind, pairs)
    return MODALITIES[kind].from_json(settings)


def _setting_type(default: Modality | None, key: str) -> type | None:
    """Return the type of a setting; None: there is no such setting, or it cannot be written."""
    value = getattr(default, key, None)
    if value is not None:
        return type(value)
    annotations: Mapping[str, object] = getattr(type(default), "__annotations__", {})
    return float if annotations.get(key) == "float | None" else None


def _parse_settings(name: str, kind: str, pairs: list[str]) -> dict[str, Any]:
    """Return the settings in NAME=VALUE pairs; each must be a valid setting of the type."""
    default = MODALITIES[kind]() if kind in MODALITIES else None
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, _, text = pair.partition("=")
        default_value = getattr(default, key, None)
        value = text if isinstance(default_value, str) else parse_json(text)
        value_type = _setting_type(default, key)
        is_valid = value_type is not None and isinstance(
            value, _JSON_TYPES.get(value_type, value_type)
        )
        if not is_valid or (isinstance(value, bool) and value_type is not bool):
            available = (
                f"Its defaults are {default}" if default is not None else "It has no settings"
            )
            raise SensoriumError(
                f"--type {name}={kind}:{pair}: {pair!r} is not a setting of {kind}. {available}."
            )
        settings[key] = value
    return settings


def _default_modality(kind: str, name: str, values: Any) -> Modality:
    """Return the default settings of a type, adapted to the values.

    Arrays of pixels keep their size, tags have the separator that occurs most, numbers and dates
    are read as most of them are written, and the length of audio is limited.
    """
    if kind == "audio":
        return Audio(max_seconds=MAX_AUDIO_SECONDS)
    if kind not in ("image", "multilabel", "numeric", "datetime"):
        return MODALITIES[kind]()
    sample = [v for v in itertools.islice(values, MAX_SAMPLED_ROWS) if v is not None]
    texts = [v for v in sample if isinstance(v, str)]
    if kind == "numeric":
        return Numeric(**find_number_format(texts)._asdict())
    if kind == "datetime":
        return Datetime(order=_date_order(name, texts))
    if kind == "multilabel":
        found = find_tag_separator(name.lower(), texts)
        counts = {mark: sum(mark in text for text in texts) for mark in TAG_SEPARATORS}
        most = max(TAG_SEPARATORS, key=counts.__getitem__)
        return Multilabel(separator=most if found is None else found[0])
    if sample and isinstance(sample[0], np.ndarray):
        return Image(size=max(sample[0].shape[:2]))
    return MODALITIES[kind]()


def _date_order(name: str, texts: list[str]) -> str:
    """Return the order of day and month in a column of dates.

    Raises:
        SensoriumError: if the dates do not tell.
    """
    order = find_date_order(texts)
    if order is None:
        example = next(t for t in texts if parse_date(t, "dmy") != parse_date(t, "mdy"))
        raise SensoriumError(
            f"column {name!r}: {example!r} and the other dates may have the day or the month "
            f"first. Say which: --type {name}=datetime:order=dmy (day) or order=mdy (month)."
        )
    return order


def _drop_unusable_images(schema: Schema) -> Schema:
    """Ignore web addresses and missing files of images where there are other images.

    Raises:
        SensoriumError: if the only images are web addresses. Missing files become invalid rows
            instead.
    """
    columns = dict(schema.columns)
    roles = dict(schema.roles)
    doubtful = [r for r in roles.values() if r.kind in (IMAGE_URL, MISSING_IMAGE)]
    any_missing = any(r.kind == MISSING_IMAGE for r in doubtful)
    any_usable = any(c.kind == "image" for c in columns.values())
    for role in doubtful:
        roles[role.name] = Role(role.name, "ignore", role.reason)
        if any_usable:
            continue
        if role.kind == MISSING_IMAGE:
            del roles[role.name]
            columns[role.name] = Column(role.name, Image(), role.reason)
        elif not any_missing:
            raise SensoriumError(
                f"column {role.name!r}: {role.reason}. Download the images and give their paths, "
                f"or continue without them: --type {role.name}=ignore."
            )
    return Schema(columns, roles)


def _infer_type(table: Table, name: str, values: Any, max_invalid_fraction: float) -> InferredType:
    """Return the type that the source declares, else the one that a sample of the values has."""
    declared = _declared_kind(table, name)
    if declared:
        return InferredType(declared, table.reasons.get(name, "declared by the source"))
    rows = _sample_rows(values)
    if not rows:
        return InferredType("ignore", "no value in any row")
    sample = Sample(name.lower(), [values[i] for i in rows], rows, table, max_invalid_fraction)
    kind, reason = infer_from_sample(sample)
    if _is_index(table, name) and kind in MODALITIES and extensions(kind) is None:
        return InferredType("ignore", "the index of a pandas table, which tells rows apart")
    if len(values) > MAX_SAMPLED_ROWS:
        reason += f" (in a sample of {MAX_SAMPLED_ROWS:,} of {len(values):,} rows)"
    return InferredType(kind, reason)


def _is_index(table: Table, name: str) -> bool:
    """Return whether pandas declares the column to be an index, or writes an index by this name."""
    return name in table.index_columns or _PANDAS_INDEX_NAME.fullmatch(name) is not None


def _declared_kind(table: Table, name: str) -> str:
    """Return the type or role that the source declares for a column, "" if it declares none."""
    if name == table.split_column:
        return "split"
    if name == table.group_column:
        return "group"
    return table.kinds.get(name, "")


def _sample_rows(values: Any) -> list[int]:
    """Return the rows with a value, among at most MAX_SAMPLED_ROWS evenly spaced ones."""
    num_rows = len(values)
    rows = range(num_rows)
    if num_rows > MAX_SAMPLED_ROWS:
        rows = np.linspace(0, num_rows - 1, MAX_SAMPLED_ROWS).astype(int).tolist()
    return [i for i in rows if not is_missing(values[i])]
