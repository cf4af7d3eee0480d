"""Schemas: the modality and settings of each column, and the columns that have another role."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from tokenizers import Tokenizer

from sensorium.data.captions import flatten_captions
from sensorium.data.tables import IMAGE_EXTENSIONS
from sensorium.errors import SensoriumError
from sensorium.io import atomic
from sensorium.io.json_files import check_keys, check_object, read_object
from sensorium.modalities.audio import Audio
from sensorium.modalities.base import Modality
from sensorium.modalities.datetime import Datetime
from sensorium.modalities.image import Image
from sensorium.modalities.multilabel import Multilabel
from sensorium.modalities.series import Series
from sensorium.modalities.tabular import Category, Numeric, Ordinal
from sensorium.modalities.text import Text
from sensorium.nn.tokens import ColumnKey, column_key, column_names

SCHEMA_VERSION = 1
MODALITIES: dict[str, Any] = {
    m.kind: m
    for m in (Image, Text, Numeric, Category, Ordinal, Datetime, Multilabel, Series, Audio)
}
ROLES = ("split", "group", "ignore")
SET_BY_USER = "set by the user"  # the reason of a type that was not inferred
_COMMON_NAMES = {
    "image": ("image", "picture", "photo", "img", "file_name", "filepath"),
    "text": ("caption", "captions", "text", "title", "description"),
    "category": ("label", "class", "category"),
}


@runtime_checkable
class RowSource(Protocol):
    """A dataset, as far as a schema needs it to learn its settings."""

    def raw(self, column: str, rows: Sequence[int] | np.ndarray) -> list[Any]:
        """Return the raw values of some rows, None where missing."""
        ...


def extensions(kind: str) -> tuple[str, ...] | None:
    """Return the file extensions of a type; None for a type whose values are never in files."""
    if kind == "image":
        return IMAGE_EXTENSIONS
    return getattr(MODALITIES.get(kind), "extensions", None)


@dataclass(frozen=True)
class Column:
    """A column that a model may read or predict.

    Attributes:
        name: its name.
        modality: its type with the settings.
        reason: why it has this type.
    """

    name: str
    modality: Modality
    reason: str = ""

    @property
    def kind(self) -> str:
        """The name of its type."""
        return self.modality.kind


@dataclass(frozen=True)
class Role:
    """A column that no model reads: the splits, the groups, or an ignored one.

    Attributes:
        name: its name.
        kind: one of ROLES.
        reason: why it has this role.
    """

    name: str
    kind: str
    reason: str = ""


@dataclass(frozen=True)
class Schema:
    """The types of the columns of a dataset.

    Attributes:
        columns: the columns that a model may read or predict, by name.
        roles: the other columns, by name.
        num_rows: number of training rows that the settings were learned from; before `fit`, rows
            of the dataset; None where there are no data.
    """

    columns: dict[str, Column]
    roles: dict[str, Role] = field(default_factory=dict)
    num_rows: int | None = None

    def __getitem__(self, key: ColumnKey) -> Modality:
        """Return the settings of a column; of joined text columns, those of the first."""
        return self.columns[column_names(key)[0]].modality

    def resolve_text_columns(self, names: str | Sequence[str] | None = None) -> ColumnKey:
        """Return the key of a text column, or of several that are joined.

        Args:
            names: one name or several; by default the text column that `resolve_column` finds.

        Raises:
            SensoriumError: if one of them is not a text column.
        """
        if not names:
            return self.resolve_column("text")
        key = column_key(names)
        for name in column_names(key):
            self.resolve_column("text", name)
        return key

    def resolve_column(self, kind: str, name: str | None = None) -> str:
        """Return the name of a column of some type.

        Args:
            kind: the type.
            name: the column. By default the one with a common name (image, photo; caption, title),
                or else the only one of its type.

        Raises:
            SensoriumError: listing the columns, if the name is wrong or there is not exactly one
                candidate.
        """
        if name is not None:
            self._check_kind(kind, name)
            return name
        candidates = [c.name for c in self.columns.values() if c.kind == kind]
        if len(candidates) == 1:
            return candidates[0]
        for common in _COMMON_NAMES.get(kind, ()):
            for candidate in candidates:
                if candidate.lower() == common:
                    return candidate
        if candidates:
            raise SensoriumError(
                f"there are several {kind} columns: {', '.join(candidates)}. Name one of them."
            )
        named = [
            c for c in (*self.columns, *self.roles) if c.lower() in _COMMON_NAMES.get(kind, ())
        ]
        remedy = f" To read {named[0]!r} as {kind}, add --type {named[0]}={kind}." if named else ""
        raise SensoriumError(f"There is no {kind} column. {self._describe_columns()}{remedy}")

    def get_column(self, name: str) -> Column:
        """Return the column of that name.

        Raises:
            SensoriumError: suggesting the nearest name, if there is none that a model may read.
        """
        role = self.roles.get(name)
        if role is not None:
            raise SensoriumError(
                f"The column {name!r} cannot be used ({role.kind}: {role.reason}). "
                f"{self._describe_columns()}"
            )
        if name in self.columns:
            return self.columns[name]
        hint = self._describe_columns()
        parts = [part.strip() for part in name.split(",")]
        if set(parts) <= self.columns.keys():
            hint = f"Give several columns one by one, as in {parts}. {hint}"
        raise unknown_column_error(name, [*self.columns, *self.roles], hint)

    def _check_kind(self, kind: str, name: str) -> None:
        """Raise SensoriumError if the column is of another type."""
        column = self.get_column(name)
        if column.kind != kind:
            raise SensoriumError(
                f"The column {name!r} is {column.kind}, not {kind}: {column.reason}. "
                f"If that is wrong, add --type {name}={kind}. {self._describe_columns()}"
            )

    def _describe_columns(self) -> str:
        """Return all columns with their types, for messages."""
        columns = (*self.columns.values(), *self.roles.values())
        listed = ", ".join(f"{c.name} ({c.kind})" for c in columns)
        return f"Columns: {listed or 'none'}. Set the type of a column with --type NAME=TYPE."

    def find_role(self, kind: str) -> str | None:
        """Return the column that has this role, None if there is none."""
        return next((r.name for r in self.roles.values() if r.kind == kind), None)

    def fit(
        self,
        dataset: RowSource,
        rows: Sequence[int] | np.ndarray,
        columns: Iterable[ColumnKey] | None = None,
        column_settings: Mapping[ColumnKey, Modality] | None = None,
        max_text_length: int = 0,
    ) -> Schema:
        """Return a copy with settings learned from the data; all text columns share one tokenizer.

        Args:
            dataset: where the values are.
            rows: the training rows; no others are read.
            columns: the columns that a model reads (default: all). The others are not learned from.
            column_settings: settings that are taken as they are, because pretrained weights need
                them.
            max_text_length: tokens up to which long texts are read (see `Text.fit_length`); 0: as
                the settings say.

        Raises:
            SensoriumError: if a column holds values from which nothing can be learned.
        """
        if column_settings:
            preset = self.with_settings(column_settings)
            preset = preset.fit(dataset, rows, columns, max_text_length=max_text_length)
            return preset.with_settings(column_settings)
        if columns is None:
            read = set(self.columns)
        else:
            read = {name for key in columns for name in column_names(key)}

        def values(name: str) -> Iterator[Any]:
            return (v for v in dataset.raw(name, rows) if v is not None)

        texts = {n: c.modality for n, c in self.columns.items() if isinstance(c.modality, Text)}
        fitted: dict[str, Modality] = {}
        if texts:
            first = next((t for t in texts.values() if t.tokenizer), next(iter(texts.values())))
            shared = first.fit(v for name in texts if name in read for v in values(name))
            for name, text in texts.items():
                text = replace(text, tokenizer=shared.tokenizer, vocab_size=shared.vocab_size)
                if name in read and max_text_length:
                    text = text.fit_length(flatten_captions(values(name)), max_text_length)
                fitted[name] = text
        for name, column in self.columns.items():
            if name not in texts:
                is_read = name in read
                fitted[name] = _fit_column(column, values(name)) if is_read else column.modality
        return replace(self._with_modalities(fitted), num_rows=len(rows))

    def with_settings(self, column_settings: Mapping[ColumnKey, Modality]) -> Schema:
        """Return a copy in which these columns have these settings."""
        return self._with_modalities(
            {
                name: settings
                for key, settings in column_settings.items()
                for name in column_names(key)
            }
        )

    def _with_modalities(self, modalities: Mapping[str, Modality]) -> Schema:
        """Return a copy with these settings; columns that are not named keep theirs."""
        columns = {
            name: replace(column, modality=modalities.get(name, column.modality))
            for name, column in self.columns.items()
        }
        return replace(self, columns=columns)

    def save(self, folder: str | Path) -> None:
        """Write schema.json, and tokenizer.json if there is a tokenizer, atomically.

        Raises:
            SensoriumError: if the text columns have different tokenizers, or the files cannot be
                written.
        """
        folder = Path(folder)
        tokenizer = self._shared_tokenizer()
        if tokenizer:
            atomic.write_file(folder / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
        schema = {
            "version": SCHEMA_VERSION,
            "tokenizer": tokenizer is not None,
            "num_rows": self.num_rows,
            "columns": {
                c.name: {"kind": c.kind, "reason": c.reason, "settings": c.modality.to_json()}
                for c in self.columns.values()
            },
            "roles": {r.name: {"kind": r.kind, "reason": r.reason} for r in self.roles.values()},
        }
        atomic.write_json(folder / "schema.json", schema)

    def _shared_tokenizer(self) -> Tokenizer | None:
        """Return the one tokenizer of the text columns, None if they have none."""
        texts = [c.modality for c in self.columns.values() if isinstance(c.modality, Text)]
        tokenizers = [t.tokenizer for t in texts if t.tokenizer]
        if any(tokenizer is not tokenizers[0] for tokenizer in tokenizers):
            raise SensoriumError(
                "the text columns have different tokenizers, but a run stores one. Use Schema.fit, "
                "which learns one for all."
            )
        return tokenizers[0] if tokenizers else None

    @classmethod
    def load(cls, folder: str | Path) -> Schema:
        """Read what `save` wrote.

        Raises:
            SensoriumError: if a file is missing, damaged, of another version or holds an unknown
                key.
        """
        path = Path(folder) / "schema.json"
        schema = _read_run_file(path)
        if schema.get("version") != SCHEMA_VERSION:
            raise SensoriumError(
                f"{path} has version {schema.get('version')!r}, but this Sensorium reads version "
                f"{SCHEMA_VERSION}. Use the Sensorium that wrote it."
            )
        schema = {"num_rows": None, **schema}  # not in schemas written before there was a number
        keys = {"version", "tokenizer", "num_rows", "columns", "roles"}
        check_keys(path, "schema", schema, keys)
        tokenizer = None
        if schema["tokenizer"]:
            from sensorium.modalities.tokenizer_json import parse_tokenizer

            tokenizer_path = path.with_name("tokenizer.json")
            tokenizer_json = _read_run_file(tokenizer_path)
            tokenizer = parse_tokenizer(json.dumps(tokenizer_json), str(tokenizer_path))
        columns = check_object(path, "columns", schema["columns"])
        roles = check_object(path, "roles", schema["roles"])
        return cls(
            {name: _parse_column(path, name, c, tokenizer) for name, c in columns.items()},
            {name: _parse_role(path, name, r) for name, r in roles.items()},
            schema["num_rows"],
        )


def _fit_column(column: Column, values: Iterator[Any]) -> Modality:
    """Learn the settings of a column from its values."""
    try:
        return column.modality.fit(values)
    except ValueError as e:
        raise SensoriumError(f"column {column.name!r} ({column.kind}): {e}") from e


def _read_run_file(path: Path) -> dict[str, Any]:
    """Read a JSON object of a run folder."""
    try:
        return read_object(path)
    except FileNotFoundError as e:
        raise SensoriumError(
            f"{path} is missing. Every run has this file: restore it or train again."
        ) from e


def _parse_column(path: Path, name: str, value: Any, tokenizer: Tokenizer | None) -> Column:
    """Return a column of schema.json."""
    entry = check_keys(path, f"column {name!r}", value, {"kind", "reason", "settings"})
    if entry["kind"] not in list(MODALITIES):
        raise SensoriumError(
            f"{path}: the type {entry['kind']!r} of column {name!r} is unknown; the types are "
            f"{', '.join(MODALITIES)}. If a file of yours adds it, name it before the command: "
            "sensorium --use mine.py ... (in Python, import it first)."
        )
    settings = check_object(path, f"settings of {name!r}", entry["settings"])
    modality = MODALITIES[entry["kind"]].from_json(settings)
    if isinstance(modality, Text):
        modality = replace(modality, tokenizer=tokenizer)
    return Column(name, modality, entry["reason"])


def _parse_role(path: Path, name: str, value: Any) -> Role:
    """Return a role of schema.json."""
    entry = check_keys(path, f"column {name!r}", value, {"kind", "reason"})
    if entry["kind"] not in ROLES:
        raise SensoriumError(
            f"{path}: the role {entry['kind']!r} of column {name!r} is unknown; the roles are "
            f"{', '.join(ROLES)}. The file was written by another version or edited by hand."
        )
    return Role(name, entry["kind"], entry["reason"])


def split_pair(text: str, known: Container[str]) -> tuple[str, str]:
    """Split NAME=VALUE into name and value, where the name may hold "=" itself.

    The name is the longest known one, or else what precedes the first "=".
    """
    positions = [i for i, character in enumerate(text) if character == "="]
    end = positions[0] if positions else len(text)
    for position in reversed(positions):
        if text[:position] in known:
            end = position
            break
    return text[:end], text[end + 1 :]


def unknown_column_error(name: str, known: Iterable[str], hint: str = "") -> SensoriumError:
    """Return the error for a column that does not exist, with the nearest name as a suggestion."""
    matches = get_close_matches(name, list(known), 1)
    suggestion = f"; did you mean {matches[0]!r}?" if matches else "."
    return SensoriumError(f"There is no column {name!r}{suggestion} {hint}".strip())
